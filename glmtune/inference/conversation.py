"""Conversations with tools: answers that call one are replied to, and asked on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from glmtune.config import GenerationSettings
from glmtune.data.encoding import encode_prompt
from glmtune.inference.completion import Request
from glmtune.inference.engine import Engine
from glmtune.inference.prompts import encode_prompts, has_room
from glmtune.messages import Prompt, as_messages
from glmtune.tasks import Reply

MOST_ROUNDS = 4  # of calls of tools


def converse(
    engine: Engine,
    prompts: Sequence[Prompt],
    settings: GenerationSettings,
    reply: Callable[[Prompt, str], Reply | None],
) -> Iterator[tuple[int, str]]:
    """Answer prompts, and let tools reply to answers that call them, a few times at most.

    Args:
        engine: answers them.
        prompts: texts, or lists of messages.
        settings: how to decode.
        reply: what a tool says to a prompt and its answer; None ends the conversation. (`Task.reply`)

    Yields:
        (index of the prompt, the model's turns, one a line, with the last word of a tool that ends it), in the order
        of decoding.
    """
    asked = dict(enumerate(prompts))
    said: dict[int, list[str]] = {index: [] for index in asked}
    for _ in range(MOST_ROUNDS):
        numbers = list(asked)
        encoded = encode_prompts(engine.tokenizer, list(asked.values()), engine.limit, settings.longest)
        for place, completion in engine.complete([Request(input_ids, settings) for input_ids in encoded]):
            index, text = numbers[place], completion.text
            said[index].append(text)
            answer = reply(asked[index], text)
            if answer is None or answer.ends:
                said[index] += [answer.text] if answer else []
                del asked[index]
                yield index, "\n".join(said.pop(index))
            else:
                turn = {"role": "assistant", "content": text}
                asked[index] = [*as_messages(asked[index]), turn, {"role": "tool", "content": answer.text}]
        # What has outgrown the model ends with its last call.
        for index, turns in list(asked.items()):
            if not has_room(len(encode_prompt(engine.tokenizer, turns)), engine.limit, settings.longest):
                del asked[index]
                yield index, "\n".join(said.pop(index))
        if not asked:
            return
    yield from ((index, "\n".join(said[index])) for index in asked)
