"""LoRA and its relatives: nothing at the start, fp32, beside a frozen base, and in peft's own format at the end."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_variants import base_of, inputs, logits, lora, of_each_kind, trained, weights_of
from peft import AutoPeftModelForCausalLM, PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import glmtune
from glmtune.adapters import attach
from glmtune.config import ModelSettings, load_recipe
from glmtune.execution import Run
from glmtune.exports.merged import merge_adapter
from glmtune.inference.engine import Engine
from glmtune.models import loading, low_rank
from glmtune.models.architecture import Architecture, LinearLayer
from glmtune.models.low_rank import updated_layers
from glmtune.models.quantization import PackedLinear, pack
from glmtune.runtime import UserError


@of_each_kind
def test_starts_as_its_base(tiny_checkpoint: Path, settings: dict[str, Any]) -> None:
    model, tokenizer = base_of(tiny_checkpoint)
    expected = logits(model, tokenizer)
    tolerance = 2e-4 if settings.get("init") == "pissa" else 0  # logits up to 40
    torch.testing.assert_close(logits(lora(**settings).apply(model), tokenizer), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"init": "pissa"}], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_fp32_updates_are_trained(tiny_checkpoint: Path, dtype: str, settings: dict[str, Any]) -> None:
    model = lora(**settings).apply(base_of(tiny_checkpoint, dtype)[0])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
        assert parameter.dtype == (torch.float32 if "lora_" in name else getattr(torch, dtype)), name


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        (["dense"], {"dense"}),
        (["dense", "query_key_value"], {"dense", "query_key_value"}),
        (r".*\.1\.mlp\..*", {"dense_h_to_4h", "dense_4h_to_h"}),
    ],
)
def test_updates_the_layers_that_are_named(tiny_checkpoint: Path, targets: str | list[str], expected: set[str]) -> None:
    model = lora(target_modules=targets).apply(base_of(tiny_checkpoint)[0])
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name, _ in model.named_parameters() if "lora_" in name} == (
        expected
    )


@pytest.mark.parametrize(
    "targets", [["quary_key_value"], ["dense", "quary_key_value"], "quary.*", "dense", "(", ["input_layernorm"], []]
)
def test_a_wrong_name_is_told(tiny_checkpoint: Path, targets: str | list[str]) -> None:
    """Also where another name of the list is right, which is enough for peft."""
    with pytest.raises(UserError, match=r"method\.target_modules") as error:
        lora(target_modules=targets).apply(base_of(tiny_checkpoint)[0])
    if "quary_key_value" in targets:
        assert "Did you mean 'query_key_value'?" in str(error.value)
    else:
        assert "in a list, as in [query_key_value, dense]" in str(error.value)


def test_the_base_is_untouched(tiny: tuple[Any, Any], tiny_checkpoint: Path) -> None:
    base, after = base_of(tiny_checkpoint)[0].state_dict(), weights_of(tiny[0])
    assert after.keys() == base.keys()
    assert all(torch.equal(after[name], base[name]) for name in base)
    moved = [weight for name, weight in tiny[0].named_parameters() if "lora_B" in name]
    assert moved and all(weight.abs().max() > 0 for weight in moved)


@of_each_kind
def test_saved_is_reloaded(tiny_checkpoint: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """On the base as it was, also by peft alone, and whether or not `finish` was called."""
    method = lora(**settings)
    base, tokenizer = base_of(tiny_checkpoint)
    before = logits(base, tokenizer)
    model = trained(method.apply(base), tokenizer)
    expected = logits(model, tokenizer)
    assert (expected - before).abs().max() > 1
    method.save(model, tokenizer, tmp_path, ModelSettings(path=str(tiny_checkpoint)))
    again, _ = glmtune.load(tiny_checkpoint, adapter=tmp_path)
    torch.testing.assert_close(logits(again, tokenizer), expected, rtol=0, atol=2e-4)
    plain = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    original = plain.state_dict()
    assert all(torch.equal(weight, weights_of(again)[name]) for name, weight in original.items())
    by_peft = PeftModel.from_pretrained(plain, tmp_path).eval()
    torch.testing.assert_close(logits(by_peft, tokenizer), expected, rtol=0, atol=2e-4)
    finished = method.finish(model)
    torch.testing.assert_close(logits(finished, tokenizer), logits(again, tokenizer), rtol=0, atol=2e-4)
    for name, weight in weights_of(finished).items():
        torch.testing.assert_close(weight, original[name], rtol=0, atol=2e-6, msg=name)


@pytest.mark.parametrize("settings", [{"init": "pissa"}, {"init": "pissa", "use_rslora": True}], ids=str)
def test_pissa_is_saved_as_plain_lora(tiny_checkpoint: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Of twice the rank: nobody who loads it has to know where it comes from."""
    method = lora(**settings)
    base, tokenizer = base_of(tiny_checkpoint)
    method.save(method.apply(base), tokenizer, tmp_path, ModelSettings(path=str(tiny_checkpoint)))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"], config["init_lora_weights"]) == (8, 8, False, True)


def test_pissa_takes_the_largest_singular_values(tiny_checkpoint: Path) -> None:
    original = base_of(tiny_checkpoint)[0].state_dict()
    model = lora(init="pissa").apply(base_of(tiny_checkpoint)[0])
    for name, layer in updated_layers(model):
        weight = original[f"{name.removeprefix('base_model.model.')}.weight"]
        update = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        values, rest = torch.linalg.svdvals(weight), torch.linalg.svdvals(layer.get_base_layer().weight)
        torch.testing.assert_close(layer.get_base_layer().weight + update, weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.linalg.svdvals(update)[:4], values[:4], rtol=0, atol=1e-4)
        torch.testing.assert_close(rest[:-4], values[4:], rtol=0, atol=1e-4)


def test_pissa_on_16_bits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The base is given back as it was but for a few roundings, so that what was judged is what is loaded."""
    method = lora(init="pissa")
    base, tokenizer = base_of(tiny_checkpoint, "bfloat16")
    expected = logits(base, tokenizer)
    model = method.apply(base)
    scale = expected.abs().max()
    assert (logits(model, tokenizer) - expected).abs().max() < 0.05 * scale
    model = method.finish(trained(model, tokenizer))
    original, given_back = base_of(tiny_checkpoint, "bfloat16")[0].state_dict(), weights_of(model)
    same = torch.cat([(given_back[name] == weight).flatten() for name, weight in original.items()])
    assert same.float().mean() > 0.9
    method.save(model, tokenizer, tmp_path, ModelSettings(path=str(tiny_checkpoint)))
    again, _ = glmtune.load(tiny_checkpoint, adapter=tmp_path, dtype="bfloat16")
    assert (logits(again, tokenizer) - logits(model, tokenizer)).abs().max() < 0.05 * scale


@pytest.mark.parametrize("exact", [True, False])
@of_each_kind
def test_the_same_seed_starts_the_same(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], exact: bool
) -> None:
    """A run that goes on from a checkpoint applies its method anew: base and updates must be what they were."""
    if not exact:
        monkeypatch.setattr(low_rank, "EXACT_UP_TO", 0)
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(lora(**settings).apply(base_of(tiny_checkpoint)[0]).state_dict())
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())


def test_pissa_takes_linear_layers_that_are_large_enough(tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"method\.rank=33.*96 x 32 and has only 32 singular values"):
        lora(init="pissa", rank=33).apply(base_of(tiny_checkpoint)[0])
    with pytest.raises(UserError, match=r"method\.init=pissa: .*word_embeddings is a Embedding, no linear layer"):
        lora(init="pissa", target_modules=["dense", "word_embeddings"]).apply(base_of(tiny_checkpoint)[0])


@pytest.mark.parametrize(
    "targets", [["lm_head"], ["dense", "word_embeddings"], ["transformer.word_embeddings"], ".*head"]
)
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}], ids=str)
def test_a_head_that_is_the_embedding_does_not_learn_alone(
    tiny_checkpoint: Path, settings: dict[str, Any], targets: str | list[str]
) -> None:
    """It could not be exported; also where the embedding is stored at 8 bits."""
    for bits in (16, 8):
        base, _ = loading.load_model(ModelSettings(path=str(tiny_checkpoint), quantize_embedding=bits == 8))
        if bits == 8 and settings.get("use_dora"):
            continue
        with pytest.raises(UserError, match=r"method\.target_modules: .*(lm_head|word_embeddings)|Name linear layers"):
            lora(target_modules=targets, **settings).apply(base)


def test_pissa_of_a_head_that_is_the_embedding(tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"lm_head cannot learn by itself.*tie_word_embeddings.*method\.name=full"):
        lora(init="pissa", target_modules=["dense", "lm_head"]).apply(base_of(tiny_checkpoint)[0])


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens", "q_proj"]])
def test_a_head_of_its_own_learns_and_is_merged(targets: list[str]) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=False)).eval()
    model = lora(target_modules=targets).apply(base)
    ids = torch.tensor([[1, 5, 7]])
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.1)
    expected = model(ids).logits
    torch.testing.assert_close(merge_adapter(model, ids)(ids).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"target_modules": ["dense"]}], ids=str)
def test_lora_plus_groups_as_peft_does(tiny_checkpoint: Path, settings: dict[str, Any]) -> None:
    method = lora(lora_plus_ratio=16, **settings)
    model = method.apply(base_of(tiny_checkpoint)[0])
    groups = method.parameter_groups(model)
    rates = {id(weight): group.get("lr_scale", 1) for group in groups for weight in group["params"]}
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1, loraplus_lr_ratio=16).param_groups
    assert rates == {id(weight): group["lr"] for group in theirs for weight in group["params"]}
    assert rates.keys() == {id(weight) for weight in model.parameters() if weight.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(rates) and {*rates.values()} == {1, 16}


def test_without_lora_plus_all_learn_alike(tiny_checkpoint: Path) -> None:
    method = lora()
    model = method.apply(base_of(tiny_checkpoint)[0])
    (group,) = method.parameter_groups(model)
    assert group.keys() == {"params"}
    assert len(group["params"]) == sum(weight.requires_grad for weight in model.parameters())


def architecture(family: str, *linears: LinearLayer) -> Architecture:
    return Architecture(family, 2, 32, 512, 4, 2, 8, linears, 128, 64, True)


CHATGLM = architecture(
    "chatglm",
    LinearLayer("query_key_value", "attention", 32, 96, True),
    LinearLayer("dense", "attention", 32, 32, True),
    LinearLayer("dense_h_to_4h", "mlp", 32, 64, True),
    LinearLayer("dense_4h_to_h", "mlp", 64, 32, True),
)
ATTENTION = [
    LinearLayer("q_proj", "attention", 32, 32, True),
    LinearLayer("k_proj", "attention", 32, 16, True),
    LinearLayer("v_proj", "attention", 32, 16, True),
    LinearLayer("o_proj", "attention", 32, 32, False),
]
LLAMA = architecture(
    "llama",
    *ATTENTION,
    LinearLayer("gate_proj", "mlp", 32, 64, False),
    LinearLayer("up_proj", "mlp", 32, 64, False),
    LinearLayer("down_proj", "mlp", 64, 32, False),
)
GLM = architecture(
    "glm",
    *ATTENTION,
    LinearLayer("gate_up_proj", "mlp", 32, 128, False),
    LinearLayer("down_proj", "mlp", 64, 32, False),
)
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize(
    ("sizes", "targets"),
    [
        (CHATGLM, "all-linear"),
        (CHATGLM, ["dense"]),
        (CHATGLM, ["dense", "mlp.dense_h_to_4h", "dense_h_to_4h"]),
        (LLAMA, "all-linear"),
        (LLAMA, ["q_proj", "v_proj"]),
        (GLM, "all-linear"),
        (GLM, ["gate_up_proj", "k_proj"]),
    ],
    ids=lambda value: value.family if isinstance(value, Architecture) else str(value),
)
def test_counts_what_is_trained(tiny_checkpoint: Path, sizes: Architecture, targets: Any, use_dora: bool) -> None:
    if sizes is LLAMA:
        base = LlamaForCausalLM(LlamaConfig(**SIZES))
    elif sizes is GLM:
        base = GlmForCausalLM(GlmConfig(**SIZES))
    else:
        base = base_of(tiny_checkpoint)[0]
    method = lora(target_modules=targets, use_dora=use_dora)
    actual = sum(weight.numel() for weight in method.apply(base).parameters() if weight.requires_grad)
    assert method.trainable_spec(sizes).parameters == actual


EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_routed_experts": 4, "first_k_dense_replace": 1}


@pytest.fixture(scope="module")
def mixture() -> Any:
    """A GLM-4.5 of a dense block and one with experts, of which one is shared."""
    torch.manual_seed(0)
    return Glm4MoeForCausalLM(Glm4MoeConfig(**SIZES, **EXPERTS, initializer_range=0.3)).eval()


@pytest.mark.parametrize(
    ("targets", "learn"),
    [
        (
            "all-linear",
            {"o_proj", "gate_proj", "experts.down_proj", "experts.gate_up_proj", "shared_experts.down_proj"},
        ),
        (["q_proj", "down_proj"], {"q_proj", "mlp.down_proj", "shared_experts.down_proj", "experts.down_proj"}),
        (["gate_proj"], {"mlp.gate_proj", "shared_experts.gate_proj"}),
        (["experts.gate_up_proj"], {"experts.gate_up_proj"}),
        (["shared_experts.up_proj"], {"shared_experts.up_proj"}),
    ],
    ids=["all-linear", "q-down", "gate", "experts-gate-up", "shared-up"],
)
def test_a_mixture_of_experts(mixture: Any, targets: Any, learn: set[str], tmp_path: Path) -> None:
    """What is named learns, layer or parameter, and no router; merged and read back it is the same."""
    base, ids = copy.deepcopy(mixture), torch.tensor([[5, 6, 7, 8, 9]])
    base.save_pretrained(tmp_path / "base")
    method = lora(target_modules=targets, rank=4)
    model = method.apply(base)
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    assert method.trainable_spec(Architecture.from_config(base.config.to_dict())).parameters == sum(
        weight.numel() for _, weight in trained
    )
    with torch.no_grad():
        for _, weight in trained:
            weight.normal_(0, 0.1)
        expected = model(ids).logits
    first, merged = mixture.state_dict(), merge_adapter(copy.deepcopy(model), ids).state_dict()
    names = {name.removesuffix(".weight") for name, weight in merged.items() if not torch.equal(weight, first[name])}
    assert all(any(name.endswith(f".{one}") for name in names) for one in learn)
    if targets != "all-linear":
        assert all(any(name.endswith(f".{one}") for one in learn) for name in names)
    assert not any(name.endswith("mlp.gate") for name in names)
    method.save_weights(model, tmp_path / "adapter")
    again = attach(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, expected)


@pytest.mark.parametrize("setting", [{"dropout": 0.1}, {"use_dora": True}, {"init": "pissa"}], ids=str)
def test_experts_take_plain_lora_alone(mixture: Any, setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"experts of a block are one parameter.*target_modules=\[gate_proj, k_proj"):
        lora(**setting).apply(copy.deepcopy(mixture))
    plain = lora(**setting, rank=4, target_modules=["q_proj"]).apply(copy.deepcopy(mixture))
    assert any(weight.requires_grad for weight in plain.parameters())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["dence"], r"'dence' is not counted among the linear layers of chatglm\. Did you mean 'dense'\?"),
        (["dense", "lm_head"], "'lm_head' is not counted"),
        (".*dense.*", r"what the pattern '\.\*dense\.\*' matches is known only once.*A list of names can be counted"),
    ],
)
def test_what_cannot_be_counted_is_told(targets: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        lora(target_modules=targets).trainable_spec(CHATGLM)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
def test_learns_beside_8_and_4_bits(tiny_checkpoint: Path, bits: int, settings: dict[str, Any]) -> None:
    base, tokenizer = base_of(tiny_checkpoint, bits=bits)
    expected = logits(base, tokenizer)
    model = lora(**settings).apply(base)
    start = logits(model, tokenizer)
    assert (start - expected).abs().max() < 0.02 * expected.abs().max()
    assert (logits(trained(model, tokenizer), tokenizer) - start).abs().max() > 1
    with pytest.raises(UserError, match=r"stored at 8 or 4 bits.*bits=16.*then merge"):
        merge_adapter(model, inputs(tokenizer))


@pytest.mark.parametrize("bits", [8, 4])
def test_pissa_needs_16_bits(tiny_checkpoint: Path, bits: int) -> None:
    with pytest.raises(UserError, match=r"method\.init=pissa .*full precision.*model\.bits=16"):
        lora(init="pissa").apply(base_of(tiny_checkpoint, bits=bits)[0])


def with_packed_layers(model: Any) -> Any:
    """The model with the linear layers of its blocks stored as the original int8 checkpoints do."""
    for block in model.transformer.layers:
        for part, name in ((block.attention, "query_key_value"), (block.mlp, "dense_h_to_4h")):
            dense = getattr(part, name)
            packed = PackedLinear(dense.in_features, dense.out_features, bits=8)
            packed.weight.data, packed.weight_scale.data = pack(dense.weight.detach(), 8)
            packed.bias = dense.bias
            setattr(part, name, packed)
    return model


def test_packed_checkpoints_go_with_plain_lora(tiny_checkpoint: Path) -> None:
    base, tokenizer = base_of(tiny_checkpoint)
    model = trained(lora().apply(with_packed_layers(base)), tokenizer)
    with pytest.raises(UserError, match=r"query_key_value is stored at 8 or 4 bits.*of a packed checkpoint the 16-bit"):
        merge_adapter(model, inputs(tokenizer))
    with pytest.raises(UserError, match=r"method\.init=pissa .*full precision"):
        lora(init="pissa").apply(with_packed_layers(base_of(tiny_checkpoint)[0]))


def test_a_run_with_all_at_once(tmp_path: Path, train_tiny: Any) -> None:
    """What the report says of PiSSA with LoRA+ is what the saved adapter answers."""
    run = train_tiny(tmp_path / "run", "method={name: lora, rank: 4, init: pissa, lora_plus_ratio: 4}")
    model, tokenizer = glmtune.load(run.folder.path)
    prompts = [example.prompt for example in run.after.examples]
    answers = Engine(model, tokenizer).answer(prompts, load_recipe(run.folder.recipe).generation)
    assert [answer.text for answer in answers] == run.after.completions


def test_plain_peft_reads_the_adapter(tiny: tuple[Any, Any], tiny_run: Run, tiny_checkpoint: Path) -> None:
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_checkpoint), tiny_run.folder.adapter
    ).eval()
    torch.testing.assert_close(logits(plain, tiny[1]), logits(*tiny), rtol=0, atol=0)


def test_peft_finds_the_base_by_itself(tiny: tuple[Any, Any], tiny_run: Run) -> None:
    """`import glmtune` is all that it needs."""
    found = AutoPeftModelForCausalLM.from_pretrained(tiny_run.folder.adapter).eval()
    assert type(found.get_base_model()).__name__ == "ChatGLMForCausalLM"
    torch.testing.assert_close(logits(found, tiny[1]), logits(*tiny), rtol=0, atol=0)
