"""What is estimated, against what torch allocates and saves on a model that is really there."""

import subprocess
import sys
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, GlmConfig, LlamaConfig

from glmtune import registry
from glmtune.config import load_recipe
from glmtune.data.collation import target_columns
from glmtune.models.architecture import Architecture
from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.models.low_rank import uncast_inputs
from glmtune.training.loss import target_loss
from glmtune.training.memory import GIB, LIBRARIES, Estimate
from glmtune.training.muon import Muon
from glmtune.training.optimizers import keep_embeddings_precise

BATCH, LENGTH, TARGETS = 2, 96, 40
SIZES: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
SPECIAL = {"mask_token_id": 3, "gmask_token_id": 4, "bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 0}
CONFIGS = {
    "chatglm": ChatGLMConfig(vocab_size=500, hidden_size=128, num_layers=3, num_attention_heads=4, **SPECIAL),
    "glm": GlmConfig(**SIZES, head_dim=32),
    "llama": LlamaConfig(**SIZES),
}
METHODS = [
    "{name: lora}",
    "{name: lora, dropout: 0.1}",
    "{name: lora, use_dora: true}",
    "{name: ptuning_v2, num_virtual_tokens: 32, dropout: 0}",
    "{name: ptuning_v2, num_virtual_tokens: 32, dropout: 0.1}",
    "{name: freeze, num_layers: 1}",
    "{name: freeze, num_layers: 2}",
    "{name: full}",
]


def estimate_of(family: str, *settings: str, device: Any = "cpu", **sizes: Any) -> Estimate:
    recipe = load_recipe(None, [f"training.batch_size={BATCH}", *settings])
    architecture = Architecture.from_config(CONFIGS[family].to_dict() | sizes)
    method = registry.find("glmtune.methods", recipe.method.name)(recipe.method)
    return Estimate(recipe, architecture, method.trainable_spec(architecture), device, LENGTH, TARGETS)


def batch_of(family: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and labels of which one row is padded, so that the mask is really used."""
    input_ids = torch.randint(10, 500, (BATCH, LENGTH))
    if family == "chatglm":
        input_ids[:, LENGTH - TARGETS - 2], input_ids[:, LENGTH - TARGETS - 1] = 4, 5
    labels = input_ids.clone()
    labels[:, : LENGTH - TARGETS] = -100
    mask = torch.ones_like(input_ids)
    labels[0, -1], mask[0, -1] = -100, 0
    return input_ids, mask, labels


# DoRA takes seconds in bfloat16, which changes nothing of what it saves but the size of a number.
@pytest.mark.parametrize(
    ("method", "dtype"),
    [(m, dtype) for m in METHODS for dtype in ("float32", "bfloat16") if "dora" not in m or dtype == "float32"],
)
@pytest.mark.parametrize("family", CONFIGS)
def test_saved_for_the_backward_pass(family: str, method: str, dtype: str) -> None:
    """All storage that autograd keeps between the passes, each once, parameters left out."""
    expected = estimate_of(family, f"method={method}", f"model.dtype={dtype}")
    model = AutoModelForCausalLM.from_config(CONFIGS[family], dtype=getattr(torch, dtype))
    recipe = expected.recipe
    model = registry.find("glmtune.methods", recipe.method.name)(recipe.method).apply(model).train()
    parameters = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    input_ids, mask, labels = batch_of(family)
    columns = target_columns(labels)
    saved: dict[int, tuple[int, Any]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes(), tensor  # kept, so that no other takes its address
        return tensor

    mixed = dtype != "float32"
    uncast = uncast_inputs(model) if mixed else nullcontext()
    with torch.autocast("cpu", torch.bfloat16, mixed), uncast, saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False, logits_to_keep=columns).logits
        target_loss(logits, labels, columns).sum()
    found = sum(size for size, _ in saved.values())
    logits_alone = BATCH * TARGETS * 500 * expected.compute
    assert expected.activations + expected.copies + logits_alone == pytest.approx(found, rel=0.12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", CONFIGS)
def test_weights_and_gradients(family: str, method: str) -> None:
    expected = estimate_of(family, f"method={method}", "model.dtype=bfloat16")
    model = AutoModelForCausalLM.from_config(CONFIGS[family], dtype=torch.bfloat16)
    recipe = expected.recipe
    model = registry.find("glmtune.methods", recipe.method.name)(recipe.method).apply(model)
    every = {id(weight): weight.nbytes for weight in model.parameters()}
    assert expected.weights + expected.adapters == sum(every.values())
    assert expected.gradients == 4 * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


@pytest.mark.parametrize("method", ["{name: full}", "{name: freeze}", "{name: lora, rank: 64}", "{name: ptuning_v2}"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adamw_8bit"])
def test_moments(optimizer: str, method: str) -> None:
    """Those of an optimizer that has made a step; bitsandbytes leaves small tensors and embeddings in fp32."""
    family = "llama" if optimizer == "muon" else "chatglm"  # whose head is a matrix of its own
    expected = estimate_of(family, f"method={method}", f"training.optimizer={optimizer}")
    recipe = expected.recipe
    model = registry.find("glmtune.methods", recipe.method.name)(recipe.method).apply(
        AutoModelForCausalLM.from_config(CONFIGS[family])
    )
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    if optimizer == "adamw":
        made: Any = torch.optim.AdamW(learned)
    elif optimizer == "muon":
        made = Muon([{"params": learned, "lr": 1e-3, "weight_decay": 0.0}], model, (0.9, 0.99), 1e-8)
    else:
        made = pytest.importorskip("bitsandbytes").optim.AdamW8bit(learned)
        keep_embeddings_precise(made, model)
    for weight in learned:
        weight.grad = torch.zeros_like(weight)
    made.step()
    states = [state for part in getattr(made, "parts", [made]) for state in part.state.values()]
    moments = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    shared = {value.data_ptr(): value.nbytes for value in moments}  # tables of the 8-bit numbers, used by all
    assert expected.optimizer == pytest.approx(sum(shared.values()), rel=0.05)


@pytest.mark.parametrize(("bits", "quantize_embedding"), [(8, False), (4, False), (4, True)])
def test_weights_of_chatglm_6b(bits: int, quantize_embedding: bool) -> None:
    """5.6 billion in linear layers at 8 or 4 bits, 0.53 billion in the embedding at 16 or 8."""
    settings = [f"model.bits={bits}", f"model.quantize_embedding={quantize_embedding}", "model.dtype=bfloat16"]
    sizes = ChatGLMConfig().to_dict()
    expected = estimate_of("chatglm", *settings, device="cuda", **{k: sizes[k] for k in sizes if k != "model_type"})
    linear, embedding = 28 * 12 * 4096**2, 130528 * 4096
    wanted = linear * (1 if bits == 8 else 0.5 + 1 / 64 + 1 / 4096) + embedding * (1 if quantize_embedding else 2)
    assert expected.weights == pytest.approx(wanted, rel=0.002)


def test_recomputing_and_smaller_batches_take_less() -> None:
    plain = estimate_of("chatglm")
    recomputed = estimate_of("chatglm", "training.gradient_checkpointing=true")
    assert recomputed.step < plain.step and recomputed.resident == plain.resident
    accumulated = estimate_of("chatglm", "training.gradient_accumulation_steps=2")
    assert accumulated.step >= plain.step


def test_answers_grow_with_the_batch() -> None:
    few, many = (estimate_of("chatglm", f"generation.batch_size={size}") for size in (1, 64))
    assert few.judging < many.judging and few.step == many.step
    assert many.peak == max(many.judging, many.step)


def test_prompts_are_read_at_once_and_answers_are_not() -> None:
    """While all of a sequence has room in the cache, the blocks see the prompts alone."""
    expected = estimate_of("llama")
    a, batch = expected.architecture, 64
    inner = 3 * a.mlp_width + 2 * a.hidden_size  # gate, up, their product, and the stream twice
    difference = expected.answers(batch, 100, 100) - expected.answers(batch, 100, 20)
    assert difference == batch * 80 * inner * expected.compute


def test_paged_moments_are_not_counted_on_a_gpu() -> None:
    settings = ["model.dtype=bfloat16", "method={name: full}"]
    plain = estimate_of("llama", *settings, device="cuda")
    paged = estimate_of("llama", *settings, "training.optimizer=paged_adamw", device="cuda")
    assert plain.resident - paged.resident == plain.optimizer
    on_cpu = estimate_of("llama", *settings, "training.optimizer=paged_adamw")
    assert on_cpu.resident == LIBRARIES["cpu"] + on_cpu.weights + on_cpu.optimizer


def test_a_gib_is_two_to_the_thirty() -> None:
    assert GIB == 1024**3


def test_needs_no_torch() -> None:
    code = "import sys, glmtune.training.memory; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_what_an_objective_demands() -> None:
    """Pairs are two rows of an example; a reference is the base once more; rollouts are as long as they may be."""
    from glmtune.config import load_recipe
    from glmtune.resolution import ResolvedModel
    from glmtune.training.memory import Demand
    from glmtune.training.placement import estimate

    recipe = load_recipe(None, ["generation.max_new_tokens=200", "training.batch_size=8"])
    architecture = ResolvedModel(recipe).architecture

    def of(demand: Demand, **settings: int) -> Any:
        training = recipe.training.model_copy(update=settings)
        changed = recipe.model_copy(update={"training": training})
        return estimate(changed, architecture, "cpu", 128, 64, demand=demand)

    plain = of(Demand())
    pairs, twice = of(Demand(sequences=2)), of(Demand(), batch_size=16)
    assert (pairs.batch, pairs.activations, pairs.logits) == (16, twice.activations, twice.logits)
    assert pairs.judging == plain.judging
    compared = of(Demand(reference=True))
    assert compared.reference == compared.base and compared.resident - plain.resident == compared.base
    sampled = of(Demand(rolls_out=True))
    assert (sampled.learned, sampled.longest) == (200, min(264, architecture.max_length or 264))
    assert sampled.logits > plain.logits and sampled.activations > plain.activations
