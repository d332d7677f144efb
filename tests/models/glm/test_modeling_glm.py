"""ChatGLM2-6B's weights in transformers' `Glm`, against the results of the original code (fp32, one set of weights).

ChatGLM3-6B's code gave bit-identical numbers; the golden data are those of both.
"""

import json
import math
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceTrainer
from torch import Tensor
from transformers import AutoModelForCausalLM, GlmConfig, GlmForCausalLM

import glmtune
from glmtune.models.glm.modeling_glm import UNUSED, Rows, rename_weights
from glmtune.runtime import UserError

GOLDEN = Path(__file__).parents[2] / "golden" / "glm2_glm3"
ATOL = 2e-4  # fp32 noise is about 3e-5 on logits up to 20
GREEDY = ["greedy", "greedy_eos", "greedy_leftpad_batch"]
FUSED = "self_attention.query_key_value"

Case = dict[str, Tensor]


def golden() -> dict[str, Case]:
    """Original results: `CASES[case][array]`."""
    cases: dict[str, Case] = defaultdict(dict)
    with np.load(GOLDEN / "data.npz") as arrays:
        for name in arrays:
            case, _, key = name.partition(".")
            cases[case][key] = torch.from_numpy(np.asarray(arrays[name]))
    return cases


CASES = golden()
CONFIG = GlmConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16, hidden_size=64)


def close(actual: Tensor, expected: Tensor, atol: float = ATOL) -> None:
    torch.testing.assert_close(actual.detach(), expected.detach(), atol=atol, rtol=0, check_dtype=False)


def by_name(path: Path) -> dict[str, Tensor]:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Name -> size and time of change of everything in a folder."""
    stats = {file.relative_to(folder).as_posix(): file.stat() for file in folder.rglob("*")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint with a tokenizer, as ChatGLM2-6B is published. No test may change it."""
    folder = tmp_path_factory.mktemp("release") / "chatglm2-6b"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, folder)
    text = [f"{a}+{b}={a + b} 一加二等于三" for a in range(30) for b in range(9)]
    SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=285,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    declared = {"tokenizer_class": "ChatGLMTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_chatglm.X", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(declared))
    return folder


@pytest.fixture(scope="session", params=["glmtune", "transformers"])
def model(request: pytest.FixtureRequest, release: Path) -> GlmForCausalLM:
    """Loaded by either; in eval mode, in fp32. No test may change it."""
    if request.param == "glmtune":
        return glmtune.load(release, dtype="float32")[0]
    return AutoModelForCausalLM.from_pretrained(release, dtype=torch.float32)


# --------------------------------------------------------------------------- parity with the original


def test_it_is_the_library_class(model: GlmForCausalLM) -> None:
    assert type(model) is GlmForCausalLM and type(model.config) is GlmConfig
    assert {type(module).__module__.partition(".")[0] for module in model.modules()} == {"transformers", "torch"}
    assert not model.training and {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["single", "leftpad_batch"])
def test_forward(model: GlmForCausalLM, name: str, attention: str) -> None:
    case = CASES[name]
    ids, mask = case["input_ids"], case.get("attention_mask")
    real = torch.ones_like(ids).bool() if mask is None else mask.bool()
    model.set_attn_implementation(attention)
    try:
        out = model(ids, attention_mask=mask, output_hidden_states=True)
    finally:
        model.set_attn_implementation("sdpa")
    close(out.logits[real], case["logits"][real])
    states = [case[key] for key in sorted(case) if key.startswith("hidden_states")]
    assert len(states) == (4 if name == "single" else 0)
    if states:  # the library's last one is behind the last norm, the original's before it
        for found, expected in zip(out.hidden_states, [*states[:-1], model.model.norm(states[-1])], strict=True):
            close(found, expected)


def test_cache(model: GlmForCausalLM) -> None:
    """Keys are rotated as the original rotates them."""
    layers = model(CASES["single"]["input_ids"]).past_key_values.layers
    for i, layer in enumerate(layers):
        close(layer.keys, CASES["single"][f"past_key.{i}"].permute(1, 2, 0, 3))
        close(layer.values, CASES["single"][f"past_value.{i}"].permute(1, 2, 0, 3))


@pytest.mark.parametrize("name", GREEDY)
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy(model: GlmForCausalLM, name: str, use_cache: bool) -> None:
    case = CASES[name]
    ids, mask = case["input_ids"], case.get("attention_mask", torch.ones_like(case["input_ids"]))
    length = 24 if name == "greedy_eos" else case["sequences"].shape[1] - ids.shape[1]
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=length,
        do_sample=False,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert torch.equal(out.sequences, case["sequences"])
    logits = torch.stack(out.logits, dim=1)
    expected = case["step_logits"] if "step_logits" in case else case["step_logits_rows01"]
    unfinished = (case["sequences"][: len(expected), ids.shape[1] :] != model.config.pad_token_id)[..., None]
    close(logits[: len(expected)] * unfinished, expected * unfinished)


def test_greedy_stops_at_the_end_token() -> None:
    """Or the test above would say nothing about it."""
    new = CASES["greedy_eos"]["sequences"][0, CASES["greedy_eos"]["input_ids"].shape[1] :]
    assert len(new) < 24 and new[-1] == json.loads((GOLDEN / "config.json").read_text())["eos_token_id"]


def test_training(release: Path) -> None:
    """Loss and gradients; those of q, k and v lie one after another in the original's matrix."""
    case = CASES["train"]
    model = AutoModelForCausalLM.from_pretrained(release, dtype=torch.float32).train()
    out = model(input_ids=case["input_ids"], labels=case["labels"])
    close(out.loss, case["loss"], atol=1e-5)
    mask = (case["input_ids"] != model.config.pad_token_id).long()  # pads are on the right: nothing changes
    close(model(input_ids=case["input_ids"], attention_mask=mask, labels=case["labels"]).loss, case["loss"], atol=1e-5)
    close(out.logits[0][mask[0].bool()], case["logits_row0"][mask[0].bool()])
    out.loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    stored = [key.removeprefix("grad.") for key in case if key.startswith("grad.")]
    assert len(stored) == 5
    for name in stored:
        ours = list(rename_weights({name: case[f"grad.{name}"]}, CONFIG))
        assert len(ours) == (3 if FUSED in name else 1)
        close(torch.cat([gradients[part] for part in ours]), case[f"grad.{name}"])


# --------------------------------------------------------------------------- the files


def test_names_cover_the_checkpoint_and_nothing_is_lost(model: GlmForCausalLM) -> None:
    weights = load_file(GOLDEN / "model.safetensors")
    ours = rename_weights(weights, CONFIG)
    assert ours.keys() == model.state_dict().keys()
    count = sum(weight.numel() for name, weight in weights.items() if name != UNUSED)
    assert model.num_parameters() == count
    for name, weight in ours.items():
        assert torch.equal(model.state_dict()[name], weight[...].float()), name
    # In the order of rows: queries of all heads, keys and values of both groups.
    fused = weights[f"transformer.encoder.layers.1.{FUSED}.weight"].float()
    attention = model.model.layers[1].self_attn
    parts = [layer.weight for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    assert [len(part) for part in parts] == [64, 32, 32] and torch.equal(torch.cat(parts), fused)


def sharded(save: Callable[[dict[str, Tensor], Path], None], suffix: str, index: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        weights = load_file(GOLDEN / "model.safetensors")
        stem = suffix.partition(".")[0]
        files = [f"{stem}-0000{number}-of-00003.{suffix.partition('.')[2]}" for number in (1, 2, 3)]
        names = sorted(weights)
        for number, file in enumerate(files):
            save({name: weights[name] for name in names[number::3]}, folder / file)
        weight_map = {name: files[place % 3] for place, name in enumerate(names)}
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return write


def save_safely(weights: dict[str, Tensor], file: Path) -> None:
    save_file(weights, file, {"format": "pt"})


def save_as_pickle(folder: Path) -> None:
    torch.save(load_file(GOLDEN / "model.safetensors"), folder / "pytorch_model.bin")


def save_in_the_old_format(folder: Path) -> None:
    weights = load_file(GOLDEN / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(sharded(save_safely, "model.safetensors", "model.safetensors.index.json"), id="shards"),
        pytest.param(sharded(torch.save, "pytorch_model.bin", "pytorch_model.bin.index.json"), id="pickled shards"),
        pytest.param(
            lambda f: torch.save(load_file(GOLDEN / "model.safetensors"), f / "pytorch_model.bin"), id="pickle"
        ),
        pytest.param(save_in_the_old_format, id="old pickle"),
    ],
)
def test_every_form_of_the_files_holds_the_same(tmp_path: Path, write: Callable[[Path], None]) -> None:
    shutil.copy(GOLDEN / "config.json", tmp_path)
    write(tmp_path)
    before, expected = files_of(tmp_path), by_name(GOLDEN)
    found = by_name(tmp_path)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert files_of(tmp_path) == before


def test_nothing_is_written_beside_an_original(release: Path) -> None:
    before = files_of(release)
    glmtune.load(release)
    AutoModelForCausalLM.from_pretrained(release)
    assert files_of(release) == before


def test_weights_are_the_mapped_files(release: Path, tmp_path: Path) -> None:
    """Nothing is copied; q, k and v are parts of one weight, next to each other, and are saved as three."""
    shutil.copytree(release, tmp_path / "as-stored")
    model = glmtune.load(tmp_path / "as-stored", dtype="float16")[0]
    attention = model.model.layers[0].self_attn
    parts = [layer.weight for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    ends = [part.data_ptr() + part.nbytes for part in parts]
    assert [part.data_ptr() for part in parts[1:]] == ends[:-1]
    model.save_pretrained(tmp_path / "saved")
    weights = load_file(tmp_path / "saved/model.safetensors")
    for name, part in zip("qkv", parts, strict=True):
        assert torch.equal(weights[f"model.layers.0.self_attn.{name}_proj.weight"], part)


def test_rows_of_a_weight() -> None:
    whole = torch.arange(12.0).reshape(4, 3)
    assert torch.equal(Rows(whole, slice(1, 3))[...], whole[1:3])


def test_precision_of_the_files_and_as_asked_for(release: Path, tmp_path: Path) -> None:
    shutil.copytree(release, tmp_path / "half")
    values = json.loads((release / "config.json").read_text()) | {"torch_dtype": "float16"}
    (tmp_path / "half/config.json").write_text(json.dumps(values))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.float16
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_config_in_the_folder_says_how_to_generate(release: Path, tmp_path: Path) -> None:
    shutil.copytree(release, tmp_path / "copy")
    (tmp_path / "copy/generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9], "top_p": 0.8}))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "copy").generation_config
    assert (found.eos_token_id, found.top_p) == ([2, 9], 0.8)


def test_the_model_knows_where_it_comes_from(release: Path) -> None:
    assert glmtune.load(release)[0].name_or_path == str(release)


def test_the_model_knows_so_without_glmtune_load(release: Path) -> None:
    assert AutoModelForCausalLM.from_pretrained(release).name_or_path == str(release)


def test_a_missing_weight_is_told(release: Path, tmp_path: Path) -> None:
    shutil.copytree(release, tmp_path / "copy")
    weights = load_file(release / "model.safetensors")
    del weights["transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"]
    save_safely(weights, tmp_path / "copy/model.safetensors")
    with pytest.raises(UserError, match=r"lacks 1 weights.*model\.layers\.1\.mlp\.down_proj\.weight"):
        glmtune.load(tmp_path / "copy")


def test_fresh_weights(release: Path) -> None:
    config = AutoModelForCausalLM.from_pretrained(release).config
    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_config(config)
    assert type(fresh) is GlmForCausalLM
    loss = fresh(CASES["single"]["input_ids"], labels=CASES["single"]["input_ids"]).loss
    assert loss.item() == pytest.approx(math.log(512), abs=0.3)


# --------------------------------------------------------------------------- storage, and leaving the package


@pytest.mark.parametrize(("bits", "likeness", "share"), [(8, 0.999, 0.5), (4, 0.8, 0.4)])
def test_fewer_bits(release: Path, bits: int, likeness: float, share: float) -> None:
    """Quantized while it is read: nearly the same logits, of linear layers of a fraction of the size."""
    pytest.importorskip("bitsandbytes")
    model, _ = glmtune.load(release, dtype="bfloat16", bits=bits)
    assert type(model) is GlmForCausalLM
    layers = [layer for name, layer in model.named_modules() if name.endswith("_proj")]
    assert len(layers) == 3 * 6 and not any(layer.weight.is_floating_point() for layer in layers)
    floats = AutoModelForCausalLM.from_pretrained(release, dtype=torch.bfloat16)
    linear = sum(layer.weight.nbytes for name, layer in floats.named_modules() if name.endswith("_proj"))
    assert sum(layer.weight.untyped_storage().nbytes() for layer in layers) <= share * linear
    with torch.no_grad():
        found = model(CASES["single"]["input_ids"]).logits.float()
    pair = torch.stack((found.flatten(), CASES["single"]["logits"].flatten()))
    assert torch.corrcoef(pair)[0, 1] > likeness


OPENED_ALONE = """
import sys
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
ids = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save([type(model).__name__, model(ids).logits], sys.argv[3])
assert not any(name.partition(".")[0] == "glmtune" for name in sys.modules)
"""


def test_transformers_alone_opens_what_is_saved(release: Path, tmp_path: Path) -> None:
    """In a Python that never imports this package."""
    model, _ = glmtune.load(release, dtype="float32")
    model.save_pretrained(tmp_path / "saved")
    torch.save(CASES["single"]["input_ids"], tmp_path / "ids.pt")
    places = [str(tmp_path / name) for name in ("saved", "ids.pt", "logits.pt")]
    done = subprocess.run([sys.executable, "-I", "-c", OPENED_ALONE, *places], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, logits = torch.load(tmp_path / "logits.pt")
    assert name == "GlmForCausalLM"
    torch.testing.assert_close(logits, model(CASES["single"]["input_ids"]).logits.detach(), rtol=0, atol=1e-5)
