"""Ways of calling `generate()` on a checkpoint of each family: what is certain is as without a cache, the rest runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ecosystem_matrix import FAMILIES, GENERATE, WORKS
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CompileConfig,
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StaticCache,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TextStreamer,
    WatermarkingConfig,
)

TOKENS = 6
GREEDY = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}

Prompt = dict[str, torch.Tensor]
Options = Callable[[Any, Any, Prompt], Mapping[str, Any]]


def embeds(model: Any, prompt: Prompt) -> torch.Tensor:
    found: torch.Tensor = model.get_input_embeddings()(prompt["input_ids"])
    return found


def always(**options: Any) -> Options:
    return lambda model, tokenizer, prompt: options


WAYS: dict[str, Options] = {
    "greedy": always(),
    "`use_cache=False`": always(use_cache=False),
    "`DynamicCache` given": lambda model, *_: {"past_key_values": DynamicCache(config=model.config)},
    "`StaticCache` given": lambda model, *_: {"past_key_values": StaticCache(model.config, max_cache_len=64)},
    '`cache_implementation="static"`': always(cache_implementation="static"),
    "compiled decoding, `fullgraph=True`": always(
        cache_implementation="static", compile_config=CompileConfig(backend="eager", fullgraph=True)
    ),
    "beam search": always(num_beams=3, num_return_sequences=2),
    "beam search with sampling": always(do_sample=True, num_beams=2),
    "sampling: top_k, top_p, temperature": always(do_sample=True, top_k=5, top_p=0.9, temperature=0.7),
    "sampling: min_p": always(do_sample=True, min_p=0.1),
    "sampling: typical_p": always(do_sample=True, typical_p=0.9),
    "sampling: epsilon, eta": always(do_sample=True, epsilon_cutoff=3e-4, eta_cutoff=3e-4),
    "sampling: several answers": always(do_sample=True, num_return_sequences=2),
    "`repetition_penalty`, `no_repeat_ngram_size`": always(repetition_penalty=1.2, no_repeat_ngram_size=2),
    "`bad_words_ids`, `suppress_tokens`": always(
        bad_words_ids=[[20]], suppress_tokens=[21], begin_suppress_tokens=[22]
    ),
    "`sequence_bias`": always(sequence_bias=[[[20], -5.0]]),
    "`exponential_decay_length_penalty`": always(exponential_decay_length_penalty=(2, 1.1)),
    "`forced_eos_token_id`": always(forced_eos_token_id=2),
    "`stop_strings`": lambda model, tokenizer, _: {"stop_strings": ["zzz"], "tokenizer": tokenizer},
    "`logits_processor`": always(logits_processor=LogitsProcessorList([TemperatureLogitsWarper(1.0)])),
    "`stopping_criteria`": lambda model, _, prompt: {
        "stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(prompt["input_ids"].shape[1] + TOKENS)])
    },
    "`max_time`": always(max_time=300.0),
    "`streamer`": lambda model, tokenizer, _: {"streamer": TextStreamer(tokenizer)},
    "scores, logits and hidden states": always(
        return_dict_in_generate=True, output_scores=True, output_logits=True, output_hidden_states=True
    ),
    "`renormalize_logits`": always(renormalize_logits=True, remove_invalid_values=True),
    "`watermarking_config`": always(watermarking_config=WatermarkingConfig()),
    "`prompt_lookup_num_tokens`": always(prompt_lookup_num_tokens=2),
    "`assistant_model`": lambda model, *_: {"assistant_model": copy.deepcopy(model)},
    "`assistant_early_exit`": always(assistant_early_exit=1),
    "`guidance_scale`": always(guidance_scale=1.5),
    "`guidance_scale`, `negative_prompt_ids`": lambda model, tokenizer, _: {
        "guidance_scale": 1.5,
        "negative_prompt_ids": tokenizer("1", return_tensors="pt")["input_ids"],
    },
    "`inputs_embeds`": lambda model, _, prompt: {"input_ids": None, "inputs_embeds": embeds(model, prompt)},
    "`input_ids` and `inputs_embeds`": lambda model, _, prompt: {"inputs_embeds": embeds(model, prompt)},
    "`prefill_chunk_size`": always(prefill_chunk_size=4),
    "`token_healing`": lambda model, tokenizer, _: {"token_healing": True, "tokenizer": tokenizer},
}


@pytest.fixture(scope="module")
def ready(checkpoint_of: Callable[[str], Path]) -> Callable[[str], tuple[Any, Any, Prompt, torch.Tensor]]:
    """`ready("Llama")`: model, tokenizer, a prompt, and the answer without a cache."""
    known: dict[str, tuple[Any, Any, Prompt, torch.Tensor]] = {}

    def make(family: str) -> tuple[Any, Any, Prompt, torch.Tensor]:
        folder = checkpoint_of(FAMILIES[family])
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        prompt = {name: tokenizer(["12+7="], return_tensors="pt")[name] for name in ("input_ids", "attention_mask")}
        return model, tokenizer, prompt, model.generate(**prompt, **GREEDY, use_cache=False)[:, -TOKENS:]

    def find(family: str) -> tuple[Any, Any, Prompt, torch.Tensor]:
        if family not in known:
            known[family] = make(family)
        return known[family]

    return find


# What changes the likeliest tokens, or draws others: there the same with a cache as without is what can be asked.
OTHERS = ("beam", "sampling", "`repetition", "`bad", "`seq", "`exp", "`forced", "`water", "`guidance", "`token_healing")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_every_way(way: str, family: str, ready: Callable[[str], tuple[Any, Any, Prompt, torch.Tensor]]) -> None:
    model, tokenizer, prompt, greedy = ready(family)

    def answer(**changes: Any) -> torch.Tensor:
        torch.manual_seed(0)
        options = {**prompt, **GREEDY, **WAYS[way](model, tokenizer, prompt), **changes}
        found = model.generate(**options)
        return (found if isinstance(found, torch.Tensor) else found.sequences)[:, -TOKENS:]

    cell = GENERATE[way][family]
    if cell != WORKS:
        with pytest.raises((ValueError, TypeError)) as error:
            answer()
        assert cell in str(error.value)
    else:
        found = answer()
        assert torch.equal(found, answer(use_cache=False) if way.startswith(OTHERS) else greedy)
    # Afterwards the model is as before.
    assert torch.equal(model.generate(**prompt, **GREEDY, use_cache=False)[:, -TOKENS:], greedy)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name == "ChatGLM-6B" else pytest.mark.slow) for name in FAMILIES]
)
def test_continuous_batching(family: str, ready: Callable[[str], tuple[Any, Any, Prompt, torch.Tensor]]) -> None:
    model, _, prompt, greedy = ready(family)
    cell, settings = GENERATE["`generate_batch`"][family], GenerationConfig(max_new_tokens=TOKENS, do_sample=False)
    if cell != WORKS:
        with pytest.raises(ValueError) as error:
            model.generate_batch(prompt["input_ids"].tolist(), settings)
        assert cell in str(error.value)
        return
    (found,) = copy.deepcopy(model).generate_batch(prompt["input_ids"].tolist(), settings).values()
    assert found.generated_tokens == greedy[0, : len(found.generated_tokens)].tolist()


def test_every_way_of_the_page_is_tried() -> None:
    assert list(GENERATE) == [*WAYS, "`generate_batch`"]
