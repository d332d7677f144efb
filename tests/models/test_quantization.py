"""Weights at 8 and 4 bits: the original's numbers, and the same layer whichever way it is stored."""

import gc
import importlib.util
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import glmtune
from glmtune.config import ModelSettings
from glmtune.methods.lora import Lora, LoraSettings
from glmtune.models import loading, quantization
from glmtune.models.library_layers import bits_config
from glmtune.models.packed_checkpoints import pack_layers, pack_matrix
from glmtune.models.packing import dequantize, in_blocks, pack, pack_groups, unpack
from glmtune.models.quantization import PackedEmbedding, PackedLinear, count_parameters
from glmtune.runtime import UserError

GLM1 = Path(__file__).parents[1] / "golden/glm1"
ORIGINAL = {bits: dict(np.load(GLM1 / f"quant_int{bits}.npz")) for bits in (8, 4)}


def is_quantized(model: Any) -> bool:
    """Whether a model has linear layers at 8 or 4 bits, in whichever form."""
    return any(isinstance(module, nn.Linear) and not module.weight.is_floating_point() for module in model.modules())


Packs = Callable[..., Path]


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packs:
    """`packed(4)`: a checkpoint as `chatglm-6b-int4` has it; with `embedding`, as the one with a packed embedding."""

    def write(bits: int, embedding: bool = False, legacy: bool = False) -> Path:
        folder = tmp_path_factory.mktemp("packed")
        weights = load_file(GLM1 / "model.safetensors") | load_file(GLM1 / f"quant_int{bits}.safetensors")
        if embedding:
            integers, scale = pack(weights["transformer.word_embeddings.weight"], bits)
            for name in ("lm_head", "transformer.word_embeddings"):
                weights |= {f"{name}.weight": integers.clone(), f"{name}.weight_scale": scale.clone()}
        if legacy:
            torch.save(weights, folder / "pytorch_model.bin")
        else:
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((GLM1 / "config.json").read_text())
        config |= {"quantization_bit": bits, "quantization_embeddings": embedding}
        (folder / "config.json").write_text(json.dumps(config))
        shutil.copy(GLM1.parent / "tokenizer/toy.model", folder / "ice_text.model")
        return folder

    return write


def logits(model: Any, bits: int = 8) -> Tensor:
    with torch.no_grad():
        return model(torch.from_numpy(ORIGINAL[bits]["single_gmask.input_ids"])).logits.float()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("edge", ["edge_fp32", "edge_fp16"])
def test_packs_as_the_original(bits: int, edge: str) -> None:
    """But for rows of a subnormal scale, where the original leaves the range and wraps around."""
    case = {name.split(".")[1]: torch.from_numpy(array) for name, array in ORIGINAL[bits].items() if edge in name}
    packed, scale = pack(case["weight"], bits)
    torch.testing.assert_close(scale, case["scale"], rtol=0, atol=0)
    in_range = (case["weight"].abs().amax(1) > 1e-4) | (case["weight"] == 0).all(1)
    assert in_range.sum() >= 9
    assert torch.equal(packed[in_range], case["qweight"][in_range])
    expected = case["dequant_fp32"][in_range]
    torch.testing.assert_close(dequantize(packed, scale, bits, torch.float32)[in_range], expected, rtol=0, atol=0)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_unpacks_as_the_original(bits: int, dtype: torch.dtype) -> None:
    name = "transformer.layers.0.attention.dense"
    stored = load_file(GLM1 / f"quant_int{bits}.safetensors")
    weight, scale = stored[f"{name}.weight"], stored[f"{name}.weight_scale"]
    assert np.array_equal(unpack(weight, bits).numpy(), ORIGINAL[bits][f"{name}.ints"])
    expected = ORIGINAL[bits][f"{name}.dequant_{'fp16' if dtype == torch.float16 else 'fp32'}"]
    assert np.array_equal(dequantize(weight, scale, bits, dtype).numpy(), expected)


@given(bits=st.sampled_from([8, 4]), seed=st.integers(0, 1000), size=st.floats(1e-3, 1e3))
def test_is_half_a_step_from_the_weight(bits: int, seed: int, size: float) -> None:
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)) * size
    packed, scale = pack(weight, bits)
    assert packed.shape == (5, 6 * bits // 8)
    error = (dequantize(packed, scale, bits, torch.float32) - weight).abs()
    assert (error <= scale.float()[:, None] * 0.51 + 1e-6).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("layout", [{}, {"legacy": True}])
def test_original_checkpoints_give_the_original_logits(packed: Packs, bits: int, layout: dict[str, bool]) -> None:
    model, _ = glmtune.load(packed(bits, **layout))
    expected = torch.from_numpy(ORIGINAL[bits]["single_gmask.logits"])
    torch.testing.assert_close(logits(model, bits), expected, rtol=0, atol=2e-4)
    assert is_quantized(model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_scales_keep_their_digits_in_every_precision(packed: Packs, dtype: Any) -> None:
    folder = packed(8)
    model, _ = glmtune.load(folder, dtype=dtype)
    layer = model.transformer.layers[0].mlp.dense_h_to_4h
    stored = load_file(folder / "model.safetensors")["transformer.layers.0.mlp.dense_h_to_4h.weight_scale"]
    for changed in (model, model.bfloat16(), model.half(), model.float()):
        assert torch.equal(layer.weight_scale, stored.float())
        assert changed.dtype == changed.transformer.word_embeddings(torch.tensor([1])).dtype
    torch.testing.assert_close(logits(model), torch.from_numpy(ORIGINAL[8]["single_gmask.logits"]), rtol=0, atol=0.5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", ["ChatGLM-6B v1.1", "ChatGLM3-6B", "Llama"])
def test_a_packed_copy_is_read_as_it_was(
    family: str, bits: int, dtype: Any, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """With the scales that its layers compute by; and what learns beside it learns the same."""
    model, tokenizer = glmtune.load(checkpoint_of(family), bits=bits, dtype=dtype)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    copy, _ = glmtune.load(tmp_path, dtype=dtype)
    for part in copy.parameters():  # where a file is mapped to decides by which kernel it is read, and how that rounds
        part.data = part.data.clone()
    ids = torch.tensor([tokenizer("1+2=", "3" if "6B v1" in family else None)["input_ids"]])
    scales = [{name: part.dtype for name, part in one.named_parameters() if "scale" in name} for one in (model, copy)]
    assert scales[0] == scales[1] and scales[0]
    gradients = []
    for one in (model, copy):
        one.requires_grad_(False)
        inputs = one.get_input_embeddings()(ids).requires_grad_()
        logits = (
            one(input_ids=ids, inputs_embeds=inputs).logits if "6B v1" in family else one(inputs_embeds=inputs).logits
        )
        logits.float().square().mean().backward()
        gradients += [logits, inputs.grad]
    assert torch.equal(gradients[0], gradients[2]) and torch.equal(gradients[1], gradients[3])


@pytest.mark.parametrize("rows", [1, 2, 5, 32])
@pytest.mark.parametrize("start", [0, 8])
def test_a_matrix_may_begin_anywhere(rows: int, start: int) -> None:
    """One that is mapped from a file does; torch's kernel would end the process."""
    torch.manual_seed(0)
    store = torch.empty(64 * 64 + 16, dtype=torch.int8)
    offset = -store.data_ptr() % 16 + start
    weight = store[offset : offset + 64 * 64].view(64, 64).random_(-127, 128)
    inputs, scale = torch.randn(rows, 64).bfloat16(), torch.full((64,), 0.01)
    expected = inputs.float() @ (weight.float() * 0.01).T
    found = quantization.multiply(inputs, weight, scale, 8)
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_packed_embedding_is_the_head_as_well(packed: Packs, bits: int) -> None:
    model, _ = glmtune.load(packed(bits, embedding=True))
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    assert model.lm_head.weight_scale is model.transformer.word_embeddings.weight_scale
    plain, _ = glmtune.load(packed(bits))
    weight = dequantize(*pack(plain.lm_head.weight.half(), bits), bits, torch.float32)
    plain.lm_head.weight = plain.transformer.word_embeddings.weight = nn.Parameter(weight)
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=2e-4)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("chunk", [2**24, 40])
def test_gradients_go_through(bits: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As through an ordinary layer with the same weights; however many rows are dequantized at a time."""
    monkeypatch.setattr(quantization, "CHUNK", chunk)
    torch.manual_seed(0)
    plain = nn.Linear(12, 7)
    layer = PackedLinear(12, 7, bits=bits)
    quantization.fill(layer, plain.weight.detach())
    layer.bias = plain.bias
    plain.weight = nn.Parameter(dequantize(layer.weight, layer.weight_scale, bits, torch.float32))
    inputs = torch.randn(2, 3, 12, requires_grad=True)
    gradients = []
    for module in (plain, layer):
        module(inputs).square().sum().backward()
        gradients.append(inputs.grad)
        inputs.grad = None
    torch.testing.assert_close(gradients[1], gradients[0])
    assert layer.weight.grad is None


def test_computes_in_the_precision_of_autocast() -> None:
    layer = PackedLinear(8, 4)
    quantization.fill(layer, torch.randn(4, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 8)).dtype == torch.bfloat16
    assert layer(torch.randn(2, 8)).dtype == torch.float32


@pytest.mark.parametrize("bits", [8, 4])
def test_adapters_learn_on_packed_weights(packed: Packs, bits: int) -> None:
    base, _ = loading.load_model(ModelSettings(path=str(packed(bits))))
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    model = Lora(LoraSettings(name="lora", rank=2)).apply(base).train()
    ids = torch.from_numpy(ORIGINAL[8]["single_gmask.input_ids"])
    labels = ids.masked_fill(ids.eq(base.config.bos_token_id).cumsum(-1) == 0, -100)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(ids, labels=labels).loss
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] * 0.9
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in model.state_dict().items()
    }
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantizes_while_reading(tiny_checkpoint: Path, bits: int) -> None:
    plain, tokenizer = glmtune.load(tiny_checkpoint)
    model, _ = glmtune.load(tiny_checkpoint, bits=bits)
    assert is_quantized(model) and not is_quantized(plain)
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    assert model.generation_config.eos_token_id == plain.generation_config.eos_token_id
    ids = torch.tensor([tokenizer("1+2=")["input_ids"]])
    with torch.no_grad():
        expected, found = plain(ids).logits, model(ids).logits
    assert torch.corrcoef(torch.stack((expected.flatten(), found.flatten())))[0, 1] > (0.99 if bits == 8 else 0.7)


def test_gradients_pass_after_an_evaluation(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """bitsandbytes repacks 4-bit weights on some CPUs at the first answer; no gradient would pass from then on."""
    pytest.importorskip("bitsandbytes")
    stored = Path(shutil.copytree(tiny_checkpoint, tmp_path / "stored"))
    config = bits_config(4, torch.float32)
    AutoModelForCausalLM.from_pretrained(tiny_checkpoint, quantization_config=config).save_pretrained(stored)
    model, tokenizer = glmtune.load(stored)
    ids = torch.tensor([tokenizer("1+2=", "3")["input_ids"]])
    labels = ids.masked_fill(ids.eq(model.config.bos_token_id).cumsum(-1) == 0, -100)
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    gradients = []
    for _ in range(2):
        model.train()(input_ids=ids, inputs_embeds=embeds, labels=labels).loss.backward()
        gradients.append(embeds.grad)
        embeds.grad = None
        with torch.no_grad():
            model.eval()(ids)
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)


def test_shards_are_read_one_by_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, tokenizer = glmtune.load(tiny_checkpoint)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    ids = torch.tensor([tokenizer("1+2=")["input_ids"]])
    whole, _ = glmtune.load(tiny_checkpoint, bits=4)
    sharded, _ = glmtune.load(tmp_path / "sharded", bits=4)
    assert torch.equal(sharded(ids).logits, whole(ids).logits)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_the_embedding_at_8_bits(tiny_checkpoint: Path, bits: int) -> None:
    model, tokenizer = glmtune.load(tiny_checkpoint, bits=bits, quantize_embedding=True)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, PackedEmbedding) and isinstance(head, PackedLinear)
    assert head.weight is embedding.weight and head.weight.dtype == torch.int8
    plain, _ = glmtune.load(tiny_checkpoint, bits=bits)
    ids = torch.tensor([tokenizer("1+2=")["input_ids"]])
    with torch.no_grad():
        expected, found = plain(ids).logits, model(ids).logits
    assert torch.corrcoef(torch.stack((expected.flatten(), found.flatten())))[0, 1] > 0.98
    assert model.generate(ids, max_new_tokens=3).shape[1] <= ids.shape[1] + 3


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_faults_of_packed_checkpoints_are_told(packed: Packs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stored at 4 bits already"):
        glmtune.load(packed(4), bits=8)
    glmtune.load(packed(4), bits=4)

    folder = Path(shutil.copytree(packed(8), tmp_path / "unsaid"))
    change_config(folder, quantization_bit=0)
    with pytest.raises(UserError, match="no quantization_bit"):
        glmtune.load(folder)
    change_config(folder, quantization_bit=5)
    with pytest.raises(UserError, match="quantization_bit=5"):
        glmtune.load(folder)
    change_config(folder, quantization_bit=4)
    with pytest.raises(UserError, match=r"do not fit its config\.json"):
        glmtune.load(folder)
    change_config(folder, quantization_bit=8)
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.endswith("weight_scale")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 12 weights .*weight_scale"):
        glmtune.load(folder)


@pytest.mark.parametrize("bits", [8, 4])
def test_plain_weights_that_are_said_to_be_packed(tiny_checkpoint: Path, tmp_path: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "said"))
    change_config(folder, quantization_config={"quant_method": "bitsandbytes", f"load_in_{bits}bit": True})
    with pytest.raises(UserError, match=r"are not packed \(transformer\.layers\.0.*weight is torch\.float32\)"):
        glmtune.load(folder)
    stored = Path(shutil.copytree(tiny_checkpoint, tmp_path / "stored"))
    config = bits_config(bits, torch.float32)
    AutoModelForCausalLM.from_pretrained(tiny_checkpoint, quantization_config=config).save_pretrained(stored)
    assert is_quantized(glmtune.load(stored)[0])


@pytest.mark.parametrize("bits", [0, 3, 32, "4"])
def test_other_bits_are_refused(tiny_checkpoint: Path, bits: Any) -> None:
    with pytest.raises(UserError, match="16, 8 or 4"):
        glmtune.load(tiny_checkpoint, bits=bits)


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(UserError, match=r"pip install 'glmtune\[quantization\]'"):
        bits_config(4, torch.bfloat16)


def test_fresh_weights_are_not_quantized(tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match="random_init"):
        loading.load_model(ModelSettings(path=str(tiny_checkpoint), bits=4, random_init=True))


@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_parameters_are_counted_whatever_their_storage(tiny_checkpoint: Path, bits: Any, embedding: bool) -> None:
    pytest.importorskip("bitsandbytes")
    plain, _ = glmtune.load(tiny_checkpoint)
    model, _ = glmtune.load(tiny_checkpoint, bits=bits, quantize_embedding=embedding)
    assert count_parameters(model) == plain.num_parameters()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("embedding", [False, True])
def test_parameters_of_packed_releases(packed: Packs, bits: int, embedding: bool) -> None:
    plain, _ = glmtune.load(packed(8))
    model, _ = glmtune.load(packed(bits, embedding))
    assert count_parameters(model) == count_parameters(plain)


@pytest.mark.parametrize("layer", ["packed", "by bitsandbytes"])
def test_what_a_layer_got_is_not_kept(tiny_checkpoint: Path, packed: Packs, layer: str) -> None:
    """The backward pass does not need it, and gradient checkpointing could not free what autograd does not know of."""
    if layer == "packed":
        model, _ = glmtune.load(packed(8))
    else:
        pytest.importorskip("bitsandbytes")
        model, _ = glmtune.load(tiny_checkpoint, bits=8)
    linear = model.transformer.layers[0].attention.dense.train()
    inputs = torch.randn(1, 3, linear.in_features, requires_grad=True) * 1
    seen = weakref.ref(inputs)
    output = linear(inputs)
    assert output.requires_grad
    del inputs
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_8_bits_of_the_library_are_ours(tiny_checkpoint: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """The same integers with scales row by row; what comes in is not rounded to 8 bits."""
    pytest.importorskip("bitsandbytes")
    stored = Path(shutil.copytree(tiny_checkpoint, tmp_path / "stored"))
    config = bits_config(8, dtype)
    AutoModelForCausalLM.from_pretrained(tiny_checkpoint, quantization_config=config).save_pretrained(stored)
    model, _ = glmtune.load(stored, dtype=str(dtype).removeprefix("torch."))
    linear = model.transformer.layers[0].mlp.dense_h_to_4h
    inputs = torch.randn(5, linear.in_features, dtype=dtype)
    weight = linear.weight.data.float() * linear.weight.SCB[:, None] / 127
    expected = nn.functional.linear(inputs.float(), weight, linear.bias.float())
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2 * expected.abs().max().item()
    torch.testing.assert_close(linear(inputs).float(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(64, 64), (80, 32), (208, 96), (16, 256), (12, 20)])
@pytest.mark.parametrize("form", ["rows of 8", "rows of 4", "groups of 4"])
@pytest.mark.parametrize("count", [1, 5, quantization.FEW_ROWS, quantization.FEW_ROWS + 1])
def test_products_are_those_of_the_numbers(shape: tuple[int, int], form: str, count: int) -> None:
    """Of few inputs by torch's kernels, of many as floats, of shapes that kernels do not take: up to rounding."""
    generator = torch.Generator().manual_seed(0)
    weight, bits = torch.randn(shape, generator=generator), 8 if form == "rows of 8" else 4
    if form == "groups of 4" and shape == (12, 20):
        bits = 8  # which has no groups
    packed, scale = pack_matrix(weight, bits) if form == "groups of 4" else pack(weight, bits)
    if form == "rows of 4" and shape != (12, 20):
        blocks = in_blocks(packed)
        assert torch.equal(unpack(blocks, 4), unpack(packed, 4))
        packed = blocks
    scale = scale if scale.ndim == 3 else scale.float()
    inputs = torch.randn(count, shape[1], generator=generator).bfloat16()
    expected = inputs.float() @ dequantize(packed, scale, bits, torch.float32).T
    found = quantization.multiply(inputs, packed, scale, bits)
    torch.testing.assert_close(found.float(), expected, rtol=2**-6, atol=2**-7 * float(expected.abs().max()))
    exact = quantization.multiply(inputs.float(), packed, scale, bits)
    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=1e-4)


def test_groups_are_half_a_step_from_the_weight() -> None:
    weight = torch.randn(80, 192, generator=torch.Generator().manual_seed(0))
    packed, scale = pack_groups(weight)
    step = scale[..., 0].T.float().repeat_interleave(32, dim=1)
    assert ((dequantize(packed, scale, 4, torch.float32) - weight).abs() <= 0.6 * step).all()
    assert torch.equal(dequantize(*pack_groups(torch.zeros(16, 32)), 4, torch.float32), torch.zeros(16, 32))


def test_gradients_go_through_groups() -> None:
    layer = PackedLinear(64, 32, bits=4, grouped=True)
    packed, scale = pack_groups(torch.randn(32, 64))
    layer.weight.data, layer.weight_scale.data = packed, scale
    plain = nn.Linear(64, 32)
    plain.weight.data, plain.bias = layer.dequantize(), layer.bias
    inputs = torch.randn(3, 64, requires_grad=True)
    gradients = [torch.autograd.grad(module(inputs).square().sum(), inputs)[0] for module in (plain, layer)]
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_files_are_what_was_packed(tiny_checkpoint: Path, tmp_path: Path, bits: int) -> None:
    """Packed while read, packed where it is, or read packed: one model. It is told where other bits are asked for."""
    model, tokenizer = glmtune.load(tiny_checkpoint, bits=bits)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"] == {
        "quant_method": "glmtune",
        "bits": bits,
    }
    ids = torch.tensor([tokenizer("1+2=")["input_ids"]])
    again, _ = glmtune.load(tmp_path)
    packed, _ = glmtune.load(tiny_checkpoint)
    pack_layers(packed, bits)
    for other in (again, packed, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert torch.equal(other(ids).logits, model(ids).logits)
        assert is_quantized(other)
    with pytest.raises(UserError, match=f"stored at {bits} bits already"):
        glmtune.load(tmp_path, bits=12 - bits)
