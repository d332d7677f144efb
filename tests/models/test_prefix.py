"""The prefix learns as peft's own does, under gradient checkpointing as well, whatever the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Glm4Config,
    GlmConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.models.prefix import LearnedPrefix, PrefixModel

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,  # the least that bitsandbytes takes on a CPU
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "chatglm": ChatGLMConfig(**SIZES, mask_token_id=3, gmask_token_id=4),
    "glm": GlmConfig(**SIZES, num_key_value_heads=2, head_dim=16),
    "glm4": Glm4Config(**SIZES, num_key_value_heads=2, head_dim=16),
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=12),
}
PREFIX = 5
# Two rows of a prompt ([gMASK] <sop> is 4, 1) with its answer, the second one padded on the left.
IDS = torch.tensor([[7, 8, 9, 4, 1, 10, 11, 2], [0, 0, 12, 4, 1, 13, 14, 2]])
MASK = IDS.ne(0).long()
LABELS = torch.where(torch.arange(8) > 4, IDS, -100)

every_family = pytest.mark.parametrize("family", list(CONFIGS))


def base(family: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[family], **options)


def prefixed(model: Any, projection: bool = False, dropout: float = 0.0, make: Callable = PrefixModel) -> Any:
    """The same random prefix at every call."""
    torch.manual_seed(1)
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=PREFIX, prefix_projection=projection, encoder_hidden_size=16
    )
    return make(model, config, *([dropout] if make is PrefixModel else []))


def checkpointed(model: Any, reentrant: bool = False) -> Any:
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    model.zero_grad()
    return found


def learn(model: Any, seed: int = 2) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(seed)
    loss = model.train()(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss
    loss.backward()
    return loss.detach(), gradients(model)


def close(found: Any, expected: Any, atol: float = 1e-5, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def logits(model: Any, ids: Tensor = IDS, mask: Tensor | None = MASK) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=mask).logits


@every_family
@pytest.mark.parametrize("projection", [False, True])
def test_it_learns_as_in_peft(family: str, projection: bool) -> None:
    expected = learn(prefixed(base(family), projection, make=get_peft_model))
    assert all(gradient.abs().max() > 1e-5 for gradient in expected[1].values())
    close(learn(prefixed(base(family), projection)), expected)
    close(learn(prefixed(checkpointed(base(family)), projection)), expected)
    model = prefixed(base(family), projection)
    checkpointed(model.base_model)
    close(learn(model), expected)


def decoded(model: Any, rows: slice = slice(None), start: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens (B, 4) and logits (B, 4, V) after the prompts."""
    prompt = {"input_ids": IDS[rows, start:5], "attention_mask": MASK[rows, start:5]}
    config = {"max_new_tokens": 4, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True}
    found = model.generate(**prompt, **config, do_sample=False)
    return found.sequences[:, -4:], torch.stack(found.logits, 1)


@every_family
def test_it_answers_as_in_peft(family: str) -> None:
    own, pefts = prefixed(base(family)), prefixed(base(family), make=get_peft_model)
    close(logits(own), logits(pefts))
    own.train()  # as reinforcement learning decodes
    close(decoded(own), decoded(pefts.eval()))


@every_family
def test_neither_padding_nor_the_cache_matters(family: str) -> None:
    model = prefixed(base(family)).eval()
    tokens, steps = decoded(model)
    close(decoded(model, slice(0, 1)), (tokens[:1], steps[:1]))
    close(decoded(model, slice(1, 2), start=2), (tokens[1:], steps[1:]))
    for row, start in ((0, 0), (1, 2)):
        whole = torch.cat((IDS[[row], start:5], tokens[[row]]), 1)
        close(logits(model, whole, None)[:, -5:-1], steps[[row]])


@pytest.mark.parametrize("projection", [False, True])
def test_dropout_is_redrawn_the_same(projection: bool) -> None:
    """Two forward passes, then both backward: each recomputes what it drew."""
    found = []
    for model in (prefixed(base("llama"), projection, 0.5), prefixed(checkpointed(base("llama")), projection, 0.5)):
        model.train()
        torch.manual_seed(3)
        losses = [
            model(input_ids=IDS[[row]], attention_mask=MASK[[row]], labels=LABELS[[row]]).loss for row in (0, 1, 0)
        ]
        assert losses[0] != losses[2]
        for loss in losses:
            loss.backward()
        found.append(([loss.detach() for loss in losses], gradients(model)))
    close(found[1], found[0])
    assert torch.equal(logits(model), logits(model))


def test_rows_drop_out_on_their_own() -> None:
    model = prefixed(base("llama"), dropout=0.5).train()
    ids = IDS[[0, 0]]
    rows = model(input_ids=ids).logits
    assert not torch.equal(rows[0], rows[1])


def test_micro_batches_add_up() -> None:
    model = prefixed(checkpointed(base("chatglm")))
    expected = learn(model)
    for row in (0, 1):
        batch = {"input_ids": IDS[[row]], "attention_mask": MASK[[row]], "labels": LABELS[[row]]}
        (model(**batch, num_items_in_batch=6).loss).backward()
    close(gradients(model), expected[1])


def test_reentrant_checkpointing() -> None:
    expected = learn(prefixed(base("llama"), True))
    close(learn(prefixed(checkpointed(base("llama"), reentrant=True), True)), expected)


def test_without_the_prefix_it_is_its_base() -> None:
    """A reference model: the adapter is switched off in the middle of training."""
    model = prefixed(checkpointed(base("llama"))).train()
    expected = logits(base("llama"))
    with torch.no_grad(), model.disable_adapter():
        close(model(input_ids=IDS, attention_mask=MASK).logits, expected)


@pytest.mark.parametrize("projection", [False, True])
def test_saved_as_peft_reads_it(projection: bool, tmp_path: Path) -> None:
    model = prefixed(base("qwen3"), projection, dropout=0.1)
    expected = logits(model)
    model.merge_projection()
    found = logits(model)
    close(found, expected)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base("qwen3"), str(tmp_path))
    assert torch.equal(logits(loaded), found)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(PeftModel.from_pretrained(base("qwen3"), str(tmp_path / "again"))), found)


@pytest.mark.parametrize("family", ["chatglm", "glm"])
@pytest.mark.parametrize("autocast", [False, True])
def test_fp32_beside_16_bits(family: str, autocast: bool) -> None:
    models = [prefixed(base(family, dtype=torch.float32 if autocast else torch.bfloat16), True) for _ in range(2)]
    checkpointed(models[1].base_model)
    found = []
    for model in models:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, grads = learn(model)
        assert {weight.dtype for weight in grads.values()} == {torch.float32}
        found.append(grads)
    close(found[1], found[0], rtol=2**-6, atol=1e-3)  # sums are rounded to bf16 in another order
    exact, exact_grads = learn(prefixed(base(family), True))
    close(loss.float(), exact, atol=0.1)
    for name, gradient in exact_grads.items():
        cosine = torch.nn.functional.cosine_similarity(found[1][name].flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.9, name


@pytest.mark.parametrize("bits", [4, 8])
def test_on_quantized_weights(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base("chatglm").save_pretrained(tmp_path)
    storage = BitsAndBytesConfig(
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["lm_head"]
    )

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=storage, dtype=torch.float32)

    expected = learn(prefixed(load()))
    model = prefixed(checkpointed(load()))
    close(learn(model), expected)
    assert logits(model).isfinite().all()


def test_a_cache_that_keeps_nothing() -> None:
    model = prefixed(base("llama"), True)
    cache = LearnedPrefix(model.prompt_encoder["default"])
    numbers = model.prompt_encoder["default"](torch.arange(PREFIX))  # (P, 2LHD)
    key, value = torch.randn(2, 3, 2, 4, 16)
    for layer in (1, 0, 1):
        for tensor, tokens, place in zip(cache.update(key, value, layer), (key, value), (0, 1), strict=True):
            assert tensor.shape == (3, 2, PREFIX + 4, 16)
            learned = numbers.view(PREFIX, 2, 2, 2, 16)[:, layer, place].transpose(0, 1)  # (H, P, D)
            close(tensor[:, :, :PREFIX], learned.expand(3, -1, -1, -1))
            assert torch.equal(tensor[:, :, PREFIX:], tokens)
    assert cache.get_seq_length() == PREFIX
    assert cache.get_mask_sizes(4, 0) == (PREFIX + 4, 0)
