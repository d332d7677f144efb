"""Batched and streamed decoding with the key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Event, Thread
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, TextIteratorStreamer

from glmtune.config import GenerationSettings
from glmtune.data.encoding import encode_prompt, stop_ids
from glmtune.data.rendering import lead_in
from glmtune.messages import Prompt, as_messages
from glmtune.methods import Model
from glmtune.models import max_length
from glmtune.runtime import UserError
from glmtune.tasks import Reply

MOST_ROUNDS = 4  # of calls of tools
FEW_ROWS = 8  # are not worth being read again


def generation_config(
    tokenizer: PreTrainedTokenizerBase, settings: GenerationSettings, stops: Sequence[int]
) -> GenerationConfig:
    """transformers' form of the settings: stops at any of `stops`, greedy unless asked to sample.

    What is named here counts; a checkpoint's own `generation_config.json` fills in the rest, so its penalties and
    beams are switched off by name.
    """
    sampling: dict[str, Any] = {"do_sample": False}
    if settings.do_sample:
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=settings.longest,
        eos_token_id=list(stops),
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        num_beams=1,
        min_new_tokens=0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        **sampling,
    )


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    limit: int | None,
    max_new_tokens: int,
    label: str = "Prompt",
) -> list[list[int]]:
    """Token ids of prompts that leave room for an answer.

    Args:
        tokenizer: with the template of the model.
        prompts: texts, or lists of messages.
        limit: longest sequence in tokens that the model takes; None where it states none.
        max_new_tokens: longest answer.
        label: what an error calls a prompt, before its number.

    Raises:
        UserError: a prompt is too long, or its messages do not suit the template; says which.
    """
    encoded = []
    for number, prompt in enumerate(prompts, start=1):
        try:
            ids = encode_prompt(tokenizer, prompt)
        except TemplateError as error:
            raise UserError(f"{label} {number}: the model's chat template does not take it: {error}") from error
        except UserError as error:
            raise UserError(f"{label} {number}: {error}") from error
        if limit is not None and len(ids) + max_new_tokens > limit:
            raise UserError(
                f"{label} {number} has {len(ids)} tokens; with generation.max_new_tokens={max_new_tokens} "
                f"that is more than the {limit} that this model takes. Shorten the prompt or lower that setting."
            )
        encoded.append(ids)
    return encoded


def complete(
    model: Model, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], settings: GenerationSettings
) -> Iterator[tuple[int, str]]:
    """Answer prompts in batches of similar length, the longest first.

    Yields:
        (index of the prompt, answer), in the order of decoding.

    Raises:
        UserError: a prompt is too long for the model; told before any is answered.
    """
    encoded = encode_prompts(tokenizer, prompts, max_length(model.config), settings.longest)
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
    for start in range(0, len(order), settings.batch_size):
        batch = order[start : start + settings.batch_size]
        answers = complete_batch(model, tokenizer, [encoded[i] for i in batch], settings)
        yield from zip(batch, answers, strict=True)


def has_room(model: Model, tokenizer: PreTrainedTokenizerBase, messages: Prompt, settings: GenerationSettings) -> bool:
    """Whether the model can take a conversation and an answer."""
    limit = max_length(model.config)
    return limit is None or len(encode_prompt(tokenizer, messages)) + settings.longest <= limit


def converse(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    settings: GenerationSettings,
    reply: Callable[[Prompt, str], Reply | None],
) -> Iterator[tuple[int, str]]:
    """Answer prompts as `complete` does, and let tools reply to answers that call them, a few times at most.

    Args:
        reply: what a tool says to a prompt and its answer; None ends the conversation. (`Task.reply`)

    Yields:
        (index of the prompt, the model's turns, one a line, with the last word of a tool that ends it), in the order
        of decoding.
    """
    asked = dict(enumerate(prompts))
    said: dict[int, list[str]] = {index: [] for index in asked}
    for _ in range(MOST_ROUNDS):
        numbers = list(asked)
        for place, text in complete(model, tokenizer, list(asked.values()), settings):
            index = numbers[place]
            said[index].append(text)
            answer = reply(asked[index], text)
            if answer is None or answer.ends:
                said[index] += [answer.text] if answer else []
                del asked[index]
                yield index, "\n".join(said.pop(index))
            else:
                turn = {"role": "assistant", "content": text}
                asked[index] = [*as_messages(asked[index]), turn, {"role": "observation", "content": answer.text}]
        # What has outgrown the model ends with its last call.
        for index in [index for index, turns in asked.items() if not has_room(model, tokenizer, turns, settings)]:
            del asked[index]
            yield index, "\n".join(said.pop(index))
        if not asked:
            return
    yield from ((index, "\n".join(said[index])) for index in asked)


@torch.inference_mode()
def complete_batch(
    model: Model, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], settings: GenerationSettings
) -> list[str]:
    """Answer encoded prompts together, padded on the left.

    Answers differ in length. When half of the rows have ended they leave, and the others go on. They are read again
    rather than cut out of the cache, of which models have many kinds; there are few rounds, so that it costs little.
    """
    length = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    stops = stops_of(model, tokenizer)
    stop_tokens = torch.tensor(stops, device=model.device)
    config = generation_config(tokenizer, settings, stops)
    before = lead_in(tokenizer)
    answers = [""] * len(prompts)
    rows = torch.arange(len(prompts), device=model.device)
    while len(rows):
        ids = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            stopping_criteria=[HalfDone(stop_tokens)] if len(rows) > FEW_ROWS else [],
        )
        config.max_new_tokens = length + settings.longest - ids.shape[1]
        done = torch.isin(ids[:, length:], stop_tokens).any(-1) | (config.max_new_tokens <= 0)
        for row, answer in zip(rows[done].tolist(), ids[done, length:].tolist(), strict=True):
            answers[row] = text_of(tokenizer, answer, stops, before)
        rows, ids = rows[~done], ids[~done]
        mask = torch.nn.functional.pad(mask[~done], (0, ids.shape[1] - mask.shape[1]), value=1)
    return answers


class HalfDone(StoppingCriteria):
    """Ends a round of decoding when half of its rows have ended.

    Args:
        stop_tokens: (N,) ids of the tokens that end a row.
    """

    def __init__(self, stop_tokens: torch.Tensor) -> None:
        self.stop_tokens = stop_tokens
        self.done: torch.Tensor | bool = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """(B,) bool, all alike."""
        self.done = torch.isin(input_ids[:, -1], self.stop_tokens) | self.done
        return (2 * self.done.sum() >= len(input_ids)).expand(len(input_ids))


def stops_of(model: Model, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: those of the tokenizer and its template, and those that the checkpoint names."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    return sorted({*stop_ids(tokenizer), *(named if isinstance(named, list) else [] if named is None else [named])})


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int], stops: Sequence[int], before: str = "") -> str:
    """The text of an answer, up to the token that ends it, without what the template puts `before` answers."""
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    text = str(tokenizer.decode(ids[:end], skip_special_tokens=True))
    return "".join(without_lead_in(iter([text]), before))


def stream(
    model: Model, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, settings: GenerationSettings
) -> Iterator[str]:
    """Answer one prompt piece by piece. All tokens arrive, the last one too. Who stops listening stops the model.

    Raises:
        UserError: the prompt is too long for the model.
    """
    [ids] = encode_prompts(tokenizer, [prompt], max_length(model.config), settings.longest)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    input_ids = torch.tensor([ids], device=model.device)
    stop = Stop()
    failures: list[Exception] = []

    def run() -> None:
        try:
            with torch.inference_mode():
                model.generate(  # type: ignore[operator]
                    input_ids=input_ids,
                    attention_mask=torch.ones_like(input_ids),
                    generation_config=generation_config(tokenizer, settings, stops_of(model, tokenizer)),
                    streamer=streamer,
                    stopping_criteria=[stop],
                )
        except Exception as error:
            failures.append(error)
            streamer.end()

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield from without_lead_in(streamer, lead_in(tokenizer))
    finally:
        stop.asked.set()
        thread.join()
    if failures:
        raise failures[0]


def without_lead_in(pieces: Iterator[str], first: str) -> Iterator[str]:
    """Pieces of an answer, without what the template puts before answers."""
    held, passed = "", False
    for piece in pieces:
        if passed:
            yield piece
            continue
        held += piece
        if not first.startswith(held):
            yield held.removeprefix(first) if held.startswith(first) else held.removeprefix(first.rstrip(" "))
            passed = True


class Stop(StoppingCriteria):
    """Ends an answer after the token at hand, once asked to."""

    def __init__(self) -> None:
        self.asked = Event()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """(B,) bool: whether each row is done."""
        return torch.full((len(input_ids),), self.asked.is_set(), device=input_ids.device)
