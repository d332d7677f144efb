"""An Ollama Modelfile for a GGUF file: where it is, how turns become a prompt, what ends an answer, how to decode.

Ollama writes templates in Go's language (https://docs.ollama.com/modelfile). A chat template of Jinja is not translated
but asked: what it puts before, between and after turns is read off conversations, and counts only if others come out
the same, letter by letter.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from glmtune.config import GenerationSettings
from glmtune.exports.gguf.file import read_contents
from glmtune.messages import Prompt

Messages = list[dict[str, str]]
Render = Callable[[Messages], str]
USER, ANSWER, SYSTEM = "QX1Q", "AX2A", "SX3S"  # texts that stand in no template
TRIED = ("Hi", "What is 1+2?", "a\nb", "你好")
ENDS = ("eos", "eot", "eom")
LONGEST_CONTEXT = 8192  # whose keys and values a laptop has memory for
UNSAID = "# Its chat template is not one that Go's language was seen to say exactly: Ollama looks for one of its own."


@dataclass(frozen=True)
class Turns:
    """What stands around the texts of a conversation.

    Attributes:
        start: before the first question where there is no system message.
        system: before and after a system message; None where the template has no place for one.
        question: before each question.
        answer: between a question and its answer, where the model begins to write.
        end: after an answer.
    """

    start: str
    system: tuple[str, str] | None
    question: str
    answer: str
    end: str

    def render(self, messages: Messages) -> str:
        """Return the prompt that the template in Go's language makes of messages."""
        system = "".join(message["content"] for message in messages if message["role"] == "system")
        text = self.system[0] + system + self.system[1] if system and self.system else self.start
        for message in messages:
            if message["role"] == "user":
                text += self.question + message["content"] + self.answer
            elif message["role"] == "assistant":
                text += message["content"] + self.end
        return text

    def in_go(self) -> str:
        """Return the template in Go's language."""
        before = self.start
        if self.system:
            first, then = self.system
            otherwise = f"{{{{ else }}}}{self.start}" if self.start else ""
            before = f"{{{{ if .System }}}}{first}{{{{ .System }}}}{then}{otherwise}{{{{ end }}}}"
        question = f'{{{{ if eq .Role "user" }}}}{self.question}{{{{ .Content }}}}{self.answer}'
        answer = f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{self.end}{{{{ end }}}}'
        return f"{before}{{{{ range .Messages }}}}{question}{answer}{{{{ end }}}}"


def turns_of(render: Render) -> Turns | None:
    """Return what a chat template puts around texts; None where it does more than that.

    Args:
        render: messages -> prompt, up to where the model begins to write.
    """
    asked, answered = says("user", USER), says("assistant", ANSWER)
    try:
        start, answer = render([asked]).split(USER)
        _, first, second, last = render([asked, answered, asked]).replace(ANSWER, USER).split(USER)
    except Exception:  # of a template that wants other conversations, or repeats what it is given
        return None
    try:
        around = [text.split(USER)[0] for text in render([says("system", SYSTEM), asked]).split(SYSTEM)]
    except Exception:  # it refuses system messages
        around = []
    question = common_end([start, second, *around[1:]])
    cut = len(question)
    system = (around[0], around[1][: len(around[1]) - cut]) if len(around) == 2 else None
    found = Turns(start[: len(start) - cut], system, question, answer, second[: len(second) - cut])
    literals = (found.start, *(found.system or ()), found.question, found.answer, found.end)
    if first != answer or last != answer or any(mark in text for text in literals for mark in ("{{", "}}", '"""')):
        return None
    return found if all(found.render(messages) == render(messages) for messages in conversations(found)) else None


def says(role: str, content: str) -> dict[str, str]:
    """Return a message."""
    return {"role": role, "content": content}


def common_end(texts: Sequence[str]) -> str:
    """Return what all texts end with."""
    backwards = zip(*(reversed(text) for text in texts), strict=False)
    return "".join(letters[0] for letters in itertools.takewhile(lambda letters: len({*letters}) == 1, backwards))[::-1]


def conversations(turns: Turns) -> Iterable[Messages]:
    """Yield conversations of up to three questions, with a system message and without."""
    for system, count in itertools.product((None, *TRIED) if turns.system else (None,), (1, 2, 3)):
        texts = itertools.cycle(TRIED)
        messages = [says("system", system)] if system else []
        for _ in range(count - 1):
            messages += [says("user", next(texts)), says("assistant", next(texts))]
        yield [*messages, says("user", next(texts))]


def modelfile_of(
    file: Path, tokenizer: PreTrainedTokenizerBase, settings: GenerationSettings, prompts: Sequence[Prompt]
) -> str:
    """Return a Modelfile.

    Args:
        file: the GGUF file, beside which it is to lie.
        tokenizer: of the checkpoint that the file was written from.
        settings: how the run decodes.
        prompts: of examples. A system message that all of them begin with becomes that of the model.
    """
    values, _ = read_contents(file)
    name, template = file.name, values.get("tokenizer.chat_template")
    lines = [f"# ollama create {file.stem.lower()} -f {name}.Modelfile", f"FROM ./{name}"]
    if template is None:
        lines.append('TEMPLATE "{{ .Prompt }}"')
    elif turns := turns_of(partial(rendered, tokenizer, template)):
        lines.append(f'TEMPLATE """{without_bos(turns, values).in_go()}"""')
    else:
        lines.append(UNSAID)
    systems = {prompt if isinstance(prompt, str) else prompt[0]["content"] for prompt in prompts if has_system(prompt)}
    if len(systems) == 1 and all(map(has_system, prompts)):
        lines.append(f'SYSTEM """{systems.pop()}"""')
    tokens = values["tokenizer.ggml.tokens"]
    ends = [values.get(f"tokenizer.ggml.{end}_token_id") for end in ENDS]
    lines += [f"PARAMETER stop {json.dumps(tokens[index], ensure_ascii=False)}" for index in ends if index is not None]
    # Ollama has defaults of its own: it forgets what is beyond 4,096 tokens, goes on without end, makes repeated digits
    # less likely, and samples from the 40 likeliest.
    limit = values.get(f"{values['general.architecture']}.context_length")
    chosen: dict[str, Any] = {"num_ctx": min(limit, LONGEST_CONTEXT)} if limit else {}
    chosen |= {"num_predict": settings.max_new_tokens} if settings.max_new_tokens else {}
    chosen |= {"repeat_penalty": 1}
    if settings.do_sample:
        chosen |= {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0, "min_p": 0}
    else:
        chosen |= {"temperature": 0}
    lines += [f"PARAMETER {name} {value}" for name, value in chosen.items()]
    return "\n".join(lines) + "\n"


def rendered(tokenizer: PreTrainedTokenizerBase, template: str, messages: Messages) -> str:
    """Return the prompt that a chat template makes of messages."""
    return str(
        tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    )


def has_system(prompt: Prompt) -> bool:
    """Return whether a prompt begins with a system message that a Modelfile can hold."""
    if isinstance(prompt, str) or prompt[0]["role"] != "system":
        return False
    return isinstance(prompt[0]["content"], str) and '"""' not in prompt[0]["content"]


def without_bos(turns: Turns, values: Mapping[str, Any]) -> Turns:
    """Return turns without the control token that llama.cpp itself puts before a prompt."""
    if not values.get("tokenizer.ggml.add_bos_token"):
        return turns
    bos = values["tokenizer.ggml.tokens"][values["tokenizer.ggml.bos_token_id"]]
    system = (turns.system[0].removeprefix(bos), turns.system[1]) if turns.system else None
    return Turns(turns.start.removeprefix(bos), system, turns.question, turns.answer, turns.end)
