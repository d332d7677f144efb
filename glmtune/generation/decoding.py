"""Batched and streamed decoding with the key-value cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Thread
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextIteratorStreamer

from glmtune.config import GenerationSettings
from glmtune.data.encoding import Message, encode_prompt
from glmtune.methods import Model
from glmtune.models import max_length
from glmtune.runtime import UserError

Prompt = str | list[Message]


def generation_config(tokenizer: PreTrainedTokenizerBase, settings: GenerationSettings) -> GenerationConfig:
    """transformers' form of the settings: stops at the end token, greedy unless asked to sample."""
    sampling: dict[str, Any] = {"do_sample": False}
    if settings.do_sample:
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )


def check_lengths(model: Model, prompts: Sequence[list[int]], max_new_tokens: int) -> None:
    """Refuse prompts that leave no room for an answer.

    Raises:
        UserError: names the prompt and both lengths.
    """
    limit = max_length(model.config)
    for number, prompt in enumerate(prompts, start=1):
        if limit is not None and len(prompt) + max_new_tokens > limit:
            raise UserError(
                f"Prompt {number} has {len(prompt)} tokens; with generation.max_new_tokens={max_new_tokens} "
                f"that is more than the {limit} that this model takes. Shorten the prompt or lower that setting."
            )


def complete(
    model: Model, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], settings: GenerationSettings
) -> Iterator[tuple[int, str]]:
    """Answer prompts in batches of similar length, the longest first.

    Yields:
        (index of the prompt, answer), in the order of decoding.

    Raises:
        UserError: a prompt is too long for the model; told before any is answered.
    """
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    check_lengths(model, encoded, settings.max_new_tokens)
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
    for start in range(0, len(order), settings.batch_size):
        batch = order[start : start + settings.batch_size]
        answers = complete_batch(model, tokenizer, [encoded[i] for i in batch], settings)
        yield from zip(batch, answers, strict=True)


@torch.inference_mode()
def complete_batch(
    model: Model, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], settings: GenerationSettings
) -> list[str]:
    """Answer encoded prompts together, padded on the left."""
    length = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    input_ids = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    sequences = model.generate(  # type: ignore[operator]
        input_ids=input_ids,
        attention_mask=mask,
        generation_config=generation_config(tokenizer, settings),
        use_cache=True,
    )
    return [text_of(tokenizer, row) for row in sequences[:, length:].tolist()]


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of an answer, up to its end token."""
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def stream(
    model: Model, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, settings: GenerationSettings
) -> Iterator[str]:
    """Answer one prompt piece by piece. All tokens arrive, the last one too.

    Raises:
        UserError: the prompt is too long for the model.
    """
    ids = encode_prompt(tokenizer, prompt)
    check_lengths(model, [ids], settings.max_new_tokens)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    input_ids = torch.tensor([ids], device=model.device)
    failures: list[Exception] = []

    def run() -> None:
        try:
            with torch.inference_mode():
                model.generate(  # type: ignore[operator]
                    input_ids=input_ids,
                    attention_mask=torch.ones_like(input_ids),
                    generation_config=generation_config(tokenizer, settings),
                    streamer=streamer,
                    use_cache=True,
                )
        except Exception as error:
            failures.append(error)
            streamer.end()

    thread = Thread(target=run, daemon=True)
    thread.start()
    yield from streamer
    thread.join()
    if failures:
        raise failures[0]
