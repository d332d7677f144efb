"""Text to token ids. The template travels with the tokenizer; what users write can never become a control token.

A template is rendered with signs that stand for what people wrote. Only control tokens that stand in the template
itself become ids, and everything between two of them is encoded as one text, as the original models do. Rendering
depends on the roles alone, so that each sequence of roles is rendered once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypedDict, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from glmtune.models.templates import around
from glmtune.runtime import UserError
from glmtune.tasks import Example

# {"role": "user" | "assistant" | "system" | ..., "content": text}, and what else a template knows, such as "metadata".
Message = dict[str, Any]
TOOL_ROLES = ("observation", "tool")  # what tools say: in GLM's templates, in those of others
IGNORED = -100  # label of a token that is not learned

# The first of the characters that stand for what people wrote while a template is rendered, one for each text. They
# are for private use, so that no template writes them and no tokenizer has tokens for them.
_CONTENT = 0xF0000
_CONTENT_PATTERN = re.compile("[\U000f0000-\U000ffffd]")
_NAME = re.compile(r"[\w.$-]+")
# Where a template does more with a content than to write it.
_LOOKS = re.compile(r"\|\s*trim|\bstrip\(|\.(split|replace|startswith|endswith)\(|\bin\s+\w+(\.content|\[.content.\])")
_MARK = re.compile(r"{%-?\s*generation\s*-?%}")


class Encoding(TypedDict):
    """One example: `input_ids` and `labels`, both (T,), unshifted; the shift is in the loss.

    `record` is its index in its data set, -1 outside of one.
    """

    input_ids: list[int]
    labels: list[int]
    record: int


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered template: a control token, or text with signs for contents in it; learned or not."""

    text: str
    is_control: bool
    learned: bool


def as_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """A text is one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def with_known_roles(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[Message]:
    """What a tool said in the role that the template has for it: GLM's say `observation`, those of others `tool`.

    Raises:
        UserError: it has none, and would leave the tool's words out.
    """
    if tokenizer.chat_template is None or all(message.get("role") not in TOOL_ROLES for message in messages):
        return messages
    role = _tool_role(tokenizer.get_chat_template(), tuple(named_tokens(tokenizer).items()))
    if role is None:
        raise UserError(
            f"The model's chat template has no form for what a tool says, the role {' or '.join(TOOL_ROLES)}. Choose "
            "another data.template, such as chatml, or leave out turns of tools."
        )
    return [{**message, "role": role} if message.get("role") in TOOL_ROLES else message for message in messages]


@lru_cache(maxsize=64)
def _tool_role(template: str, named: tuple[tuple[str, str], ...]) -> str | None:
    # Some write whatever role they are given; what they name comes first.
    for role in sorted(TOOL_ROLES, key=lambda role: role not in template):
        turns, _ = with_stand_ins([{"role": name, "content": "."} for name in ("user", "assistant", role)])
        try:
            rendered, _ = _render(template, turns, True, dict(named))
        except TemplateError:
            continue
        if turns[-1]["content"] in rendered:
            return role
    return None


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Message]) -> list[int]:
    """Token ids of a prompt, ready to be answered: template and special tokens included.

    Args:
        tokenizer: with a `chat_template`; without one the bare prompt gets the tokenizer's own special tokens.
        prompt: a text, which is one user message, or messages.
    """
    messages = with_known_roles(tokenizer, as_messages(prompt))
    if tokenizer.chat_template is None:
        text = "\n".join(message["content"] for message in messages)
        return cast(list[int], tokenizer(text, split_special_tokens=True)["input_ids"])
    stand_ins, texts = with_stand_ins(messages)
    rendered, spans = render(tokenizer, stand_ins, for_answer=True)
    texts = as_rendered(tokenizer, messages, stand_ins, texts)
    ids, _ = encode_pieces(tokenizer, pieces_of(tokenizer, rendered, spans, []), texts)
    return ids


def encode_example(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    target: str,
    record: int = -1,
    every_turn: bool = False,
    learn_start: bool = False,
) -> Encoding:
    """A prompt with its target. Learned are the target, with what the template puts around it, and the end token.

    Args:
        tokenizer: with the template of the model.
        prompt: a text, which is one user message, or messages.
        target: the answer.
        max_length: in tokens.
        record: index of the example in its data set.
        every_turn: the assistant's turns in the prompt are learned, too, as far as the template marks them.
        learn_start: the control token right before an answer is learned, too.
    """
    messages = with_known_roles(tokenizer, as_messages(prompt))
    if tokenizer.chat_template is None:
        prompt_ids = encode_prompt(tokenizer, messages)
        target_ids = [*plain_ids(tokenizer, target), end_id(tokenizer)]
        ids, labels = prompt_ids + target_ids, [IGNORED] * len(prompt_ids) + target_ids
    else:
        stand_ins, texts = with_stand_ins([*messages, {"role": "assistant", "content": target}])
        before = texts[:-1] if target else texts
        texts = [*as_rendered(tokenizer, messages, stand_ins[:-1], before), *texts[len(before) :]]
        pieces = conversation(tokenizer, stand_ins, every_turn)
        pieces = with_starts(pieces) if learn_start else pieces
        ids, learned = encode_pieces(tokenizer, pieces, texts)
        labels = [token if is_learned else IGNORED for token, is_learned in zip(ids, learned, strict=True)]
    return {"input_ids": ids, "labels": labels, "record": record}


@dataclass(frozen=True)
class Encoder:
    """Examples to encodings, as a recipe says.

    Attributes:
        tokenizer: with the template of the model.
        max_length: of an encoding, in tokens; None where there is no limit.
        learn_start: see `encode_example`.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None
    learn_start: bool = False

    def __call__(self, example: Example, record: int = -1) -> Encoding:
        """The whole of an example, however long it is."""
        return encode_example(
            self.tokenizer, example.prompt, example.target, record, example.every_turn, self.learn_start
        )

    def fits(self, encoding: Encoding) -> bool:
        """Whether it has at most `max_length` tokens."""
        return self.max_length is None or len(encoding["input_ids"]) <= self.max_length

    def too_long(self, encoding: Encoding) -> str:
        """What is said of an encoding that does not fit."""
        return (
            f"has {len(encoding['input_ids']):,} tokens, more than data.max_length or the model's {self.max_length:,}"
        )

    def cut(self, example: Example, record: int = -1) -> Encoding | None:
        """An example that is made to fit; None if it does not even with a single character of its question.

        The oldest rounds go first, then the beginning of what the first question says, of an Alpaca one of its input.
        The answer stays whole, and so does what the template says.
        """
        messages = as_messages(example.prompt)
        system = [message for message in messages[:1] if message["role"] == "system"]
        turns = messages[len(system) :]
        questions = [place for place, message in enumerate(turns) if message["role"] == "user"]

        def encoded(rest: list[Message]) -> Encoding:
            return self(replace(example, prompt=[*system, *rest]), record)

        for place in questions:
            if self.fits(encoding := encoded(turns[place:])):
                return encoding
        first, *others = turns[questions[-1] :] if questions else turns
        instruction = f"{first['instruction']}\n" if first.get("input") else ""
        text = str(first["input"] if instruction else first["content"])

        def from_character(place: int) -> Encoding:
            parts = {"instruction": instruction[:-1], "input": text[place:]} if instruction else {}
            return encoded([{"role": first["role"], "content": instruction + text[place:], **parts}, *others])

        low, high = 0, len(text)  # too long from `low` on; from `high` on it fits, if it does at all
        if not text or not self.fits(shortest := from_character(high - 1)):
            return None
        high -= 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.fits(encoding := from_character(middle)):
                high, shortest = middle, encoding
            else:
                low = middle
        return shortest


def with_starts(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces, and learned with each answer the control token before it."""
    following = [piece.learned for piece in pieces[1:]] + [False]
    return [
        replace(piece, learned=True) if piece.is_control and is_followed else piece
        for piece, is_followed in zip(pieces, following, strict=True)
    ]


def as_rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], stand_ins: list[Message], texts: list[str]
) -> list[str]:
    """The texts as the template itself writes them: as they are, or stripped of the blanks around them.

    Args:
        tokenizer: with a template.
        messages: as they were given.
        stand_ins: the same with signs.
        texts: what the signs stand for.

    Raises:
        UserError: the template looks at what is in the texts, e.g. for a word that ends reasoning.
    """
    template = tokenizer.get_chat_template()
    if _LOOKS.search(template) is None:
        return texts
    rendered, _ = render(tokenizer, stand_ins, for_answer=True)
    whole, _ = _render(template, messages, True, named_tokens(tokenizer))
    for candidate in (texts, [text.strip() for text in texts]):
        if written(rendered, candidate) == whole:
            return candidate
    raise UserError(
        "The model's chat template treats messages by what is in them (it takes reasoning out of earlier answers, for "
        "instance), which is not supported. Take that out of the messages, or choose another data.template."
    )


def with_stand_ins(messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
    """Messages with a sign in place of each text but the roles, and the texts; an empty text stays empty.

    Texts within tools and the like, which templates write as JSON, are written as JSON writes them.

    Raises:
        UserError: a role or the name of a field is no name.
    """
    texts: list[str] = []

    def sign(value: Any, nested: bool = False) -> Any:
        if isinstance(value, Mapping):
            return {name(key): sign(inner, True) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [sign(inner, True) for inner in value]
        if not isinstance(value, str) or not value:
            return value
        texts.append(json.dumps(value, ensure_ascii=False)[1:-1] if nested else value)
        return chr(_CONTENT + len(texts) - 1)

    for message in messages:
        if message.get("content") is None:
            raise UserError(f"{str(message)[:80]}: a message needs a 'role' and a 'content', which may be empty.")
    return [
        {name(key): name(value) if key == "role" else sign(value) for key, value in message.items()}
        for message in messages
    ], texts


def name(text: Any) -> str:
    """The text, if it is a name: templates write these as they are.

    Raises:
        UserError: it is none.
    """
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise UserError(
            f"{text!r}: roles and fields of messages are names, of letters, digits and any of _ - . $ only."
        )
    return text


def render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], for_answer: bool
) -> tuple[str, list[tuple[int, int]]]:
    """The template's text for some messages, and where in it stands what is learned, as far as the template says.

    Args:
        tokenizer: with a template.
        messages: with signs for contents.
        for_answer: let the assistant's answer follow (`add_generation_prompt`).
    """
    named = named_tokens(tokenizer)
    shape = tuple(tuple(message.items()) for message in messages)
    template = tokenizer.get_chat_template()
    if any(not isinstance(value, str) for message in messages for value in message.values()):  # tools
        return _render(template, messages, for_answer, named)
    return _render_shape(template, shape, for_answer, tuple(named.items()))


@lru_cache(maxsize=256)
def _render_shape(
    template: str, shape: tuple[tuple[tuple[str, str], ...], ...], for_answer: bool, named: tuple[tuple[str, str], ...]
) -> tuple[str, list[tuple[int, int]]]:
    return _render(template, [dict(message) for message in shape], for_answer, dict(named))


def _render(
    template: str, messages: list[Message], for_answer: bool, named: Mapping[str, str]
) -> tuple[str, list[tuple[int, int]]]:
    library: Any = render_jinja_template  # its annotations do not say what it returns
    texts, spans = library(
        conversations=[messages],
        chat_template=template,
        return_assistant_tokens_mask=_MARK.search(template) is not None,
        add_generation_prompt=for_answer,
        **named,
    )
    return texts[0], [(int(first), int(last)) for first, last in (spans[0] if spans else [])]


def conversation(tokenizer: PreTrainedTokenizerBase, messages: list[Message], every_turn: bool = False) -> list[Piece]:
    """A conversation that ends with an answer, and what of it is learned: the answer, and an end token in any case.

    Args:
        tokenizer: with a template.
        messages: with signs for contents, the last one the assistant's.
        every_turn: learn what the template marks in earlier turns, too.
    """
    asked, _ = render(tokenizer, messages[:-1], for_answer=True)
    whole, spans = render(tokenizer, messages, for_answer=False)
    content = messages[-1]["content"]
    if not spans:  # an unmarked template: what follows the prompt, up to the control token that ends the turn
        if not whole.startswith(asked) or (content and content not in whole[len(asked) :]):
            whole = asked + content
        last = whole.rindex(content) + len(content) if content else len(asked)
        following = next(iter(pieces_of(tokenizer, whole[last:], [], [])), None)
        last += len(following.text) if following is not None and following.is_control else 0
        whole, spans = whole[:last], [(len(asked), last)]
    spans = [with_end(tokenizer, whole, span) for span in spans]
    learned = spans if every_turn else spans[-1:]
    pieces = pieces_of(tokenizer, whole[: spans[-1][1]], spans, learned)
    if not pieces or not pieces[-1].is_control:
        pieces.append(Piece(str(tokenizer.eos_token), is_control=True, learned=True))
    return pieces


def with_end(tokenizer: PreTrainedTokenizerBase, rendered: str, span: tuple[int, int]) -> tuple[int, int]:
    """What is learned of an answer, with the control token that ends it where that stands outside of the marks."""
    first, last = span
    inside, behind = (pieces_of(tokenizer, text, [], []) for text in (rendered[first:last], rendered[last:]))
    has_end = bool(inside) and inside[-1].is_control
    if not has_end and behind and (following := behind[0]).is_control:
        return first, last + len(following.text)
    return span


def pieces_of(
    tokenizer: PreTrainedTokenizerBase,
    rendered: str,
    spans: Sequence[tuple[int, int]],
    chosen: Sequence[tuple[int, int]],
) -> list[Piece]:
    """A rendered template cut at control tokens, and at the bounds of all answers, so that each has tokens of its own.

    Args:
        tokenizer: knows control tokens.
        rendered: a template's text.
        spans: answers in it.
        chosen: those of them that are learned.
    """
    bounds = sorted({bound for span in spans for bound in span})
    pieces = []
    for start, text, is_control in cut_at(control_pattern(tokenizer), rendered):
        inner = [bound - start for bound in bounds if start < bound < start + len(text)]
        for first, last in zip([0, *inner], [*inner, len(text)], strict=True):
            learned = any(left <= start + first and start + last <= right for left, right in chosen)
            pieces.append(Piece(text[first:last], is_control, learned))
    return pieces


def cut_at(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, str, bool]]:
    """(place, text, whether it matches) of what matches a pattern and of what stands between, in order."""
    place = 0
    for found in pattern.finditer(text):
        if place < found.start():
            yield place, text[place : found.start()], False
        yield found.start(), found[0], True
        place = found.end()
    if place < len(text):
        yield place, text[place:], False


def encode_pieces(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece], texts: Sequence[str]
) -> tuple[list[int], list[bool]]:
    """Token ids, and whether each is learned. Signs in the pieces become the texts that they stand for."""
    ids: list[int] = []
    learned: list[bool] = []
    run: list[Piece] = []  # text since the last control token

    def flush() -> None:
        for piece, new in zip(run, encode_run(tokenizer, [written(piece.text, texts) for piece in run]), strict=True):
            ids.extend(new)
            learned.extend([piece.learned] * len(new))
        run.clear()

    for piece in pieces:
        if piece.is_control:
            flush()
            ids.append(cast(int, tokenizer.convert_tokens_to_ids(piece.text)))
            learned.append(piece.learned)
        else:
            run.append(piece)
    flush()
    return ids, learned


def encode_run(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts that stand side by side: those of the whole, unless tokens would reach across the bounds."""
    parts: list[list[int]] = []
    so_far: list[int] = []
    whole = ""
    for text in texts:
        whole += text
        ids = plain_ids(tokenizer, whole)
        if ids[: len(so_far)] == so_far:
            parts.append(ids[len(so_far) :])
        else:
            parts.append(plain_ids(tokenizer, text))
        so_far = so_far + parts[-1]
    return parts


def written(piece: str, texts: Sequence[str]) -> str:
    """A piece with the texts in place of their signs."""
    return _CONTENT_PATTERN.sub(lambda found: texts[ord(found[0]) - _CONTENT], piece)


def named_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The special tokens that have names, such as `eos_token`; templates know them by these."""
    return {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Every token that a template may use as a control token."""
    return {*named_tokens(tokenizer).values(), *tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}


def control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """What matches a control token, the longest first."""
    return _control_pattern(frozenset(control_tokens(tokenizer)))


@lru_cache(maxsize=64)
def _control_pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text in which nothing is a control token.

    `split_special_tokens` covers the special ones. Checkpoints also mark control words, such as those around tool
    calls, as added but not special; these are cut after their first character.
    """
    added = [
        str(token) for token in tokenizer.added_tokens_decoder.values() if not token.special and str(token).strip()
    ]
    cuts = "|".join(f"(?<={re.escape(token[0])})(?={re.escape(token[1:])})" for token in added if len(token) > 1)
    pieces = re.split(cuts, text) if cuts else [text]
    encoded = [tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"] for piece in pieces]
    return [token_id for ids in encoded for token_id in ids]


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The end token."""
    return cast(int, tokenizer.eos_token_id)


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: the end token, and those that the template puts behind one, last or between turns."""
    if tokenizer.chat_template is None:
        return [end_id(tokenizer)]
    endings = set()
    for following in ([], ["user"], ["observation"]):
        turns = ["user", "assistant", *following]
        messages, _ = with_stand_ins([{"role": role, "content": "."} for role in turns])
        try:
            if not following:
                endings.add(conversation(tokenizer, messages)[-1].text)
                continue
            whole, spans = render(tokenizer, messages, for_answer=False)
        except TemplateError:  # a template for one turn, or without such a role
            continue
        for span in spans:
            first, last = with_end(tokenizer, whole, span)
            *_, ending = pieces_of(tokenizer, whole[first:last], [], [])
            endings |= {ending.text} if ending.is_control else set()
    return sorted({end_id(tokenizer), *(cast(int, tokenizer.convert_tokens_to_ids(token)) for token in endings)})


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """See whether a model can learn by its template: it must see what is asked, and where an answer begins and ends.

    Raises:
        UserError: something is left out.
    """
    if tokenizer.chat_template is None:
        return
    remedy = "Mend chat_template.jinja, or choose another data.template."
    try:
        asked, other = (encode_prompt(tokenizer, prompt) for prompt in ("1+1=", "2*3="))
        learned, learned_other = (
            [label for label in encode_example(tokenizer, "1+1=", answer)["labels"] if label != IGNORED]
            for answer in ("7", "9")
        )
    except TemplateError as error:
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        raise UserError(f"The chat template has no form for a question and its answer: {reason}. {remedy}") from None
    if asked == other:
        raise UserError(f"The chat template leaves out what is asked. {remedy}")
    _, after = around(tokenizer)
    missing = [token for token in after if tokenizer.convert_tokens_to_ids(token) not in asked]
    if missing:
        controls = "".join(after)
        raise UserError(f"The chat template leaves out {controls}, which must stand before an answer. {remedy}")
    if learned == learned_other or learned[-1] not in stop_ids(tokenizer):
        tokens = tokenizer.convert_ids_to_tokens(learned)
        raise UserError(f"By the chat template, of the answer '7' is learned {tokens}: no answer and its end. {remedy}")


def learns_every_turn(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template can learn all answers of a conversation in one pass, and not the last alone."""
    if tokenizer.chat_template is None:
        return False
    roles = ("user", "assistant", "user", "assistant")
    messages, _ = with_stand_ins([{"role": role, "content": "."} for role in roles])
    try:
        pieces = conversation(tokenizer, messages, every_turn=True)
    except TemplateError:  # single questions only
        return False
    return any(piece.learned and messages[1]["content"] in piece.text for piece in pieces)


def lead_in(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a template puts before an answer that the model writes itself, e.g. a line for metadata; no part of it."""
    if tokenizer.chat_template is None:
        return ""
    messages, _ = with_stand_ins([{"role": role, "content": "."} for role in ("user", "assistant")])
    learned = "".join(piece.text for piece in conversation(tokenizer, messages) if piece.learned)
    return learned.partition(messages[1]["content"])[0]
