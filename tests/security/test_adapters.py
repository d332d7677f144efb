"""An adapter says what it is in fields known here; what would import, open, loop or swell is refused by name."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import glmtune
from glmtune import adapters
from glmtune.commands import doctor
from glmtune.execution import Run
from glmtune.models import adapter_config, loading
from glmtune.models.adapter_fields import TYPES
from glmtune.models.patterns import matching
from glmtune.plan import Plan
from glmtune.resolution import resolve
from glmtune.runtime import RunFolder, UserError

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
HANGS = "(a+)+$"


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, num_key_value_heads=2, **SIZES)).eval()


# What peft itself makes of each type, with its defaults but for what it asks for, and as people set it.
LAYERS: dict[str, Any] = {"target_modules": ["q_proj", "down_proj"]}
WRITTEN: list[tuple[type[peft.PeftConfig], dict[str, Any]]] = [
    (peft.LoraConfig, {}),
    (peft.LoraConfig, LAYERS),
    (peft.LoraConfig, {"target_modules": "all-linear", "use_rslora": True, "use_dora": True, "lora_dropout": 0.1}),
    (peft.LoraConfig, {"target_modules": r"model\.layers\.\d+\.self_attn\.(q|v)_proj", "bias": "lora_only"}),
    (peft.LoraConfig, {"target_modules": r".*\.(q_proj|v_proj)", "exclude_modules": ["layers.0.self_attn.q_proj"]}),
    (peft.LoraConfig, {**LAYERS, "exclude_modules": r".*\.0\..*", "modules_to_save": ["lm_head"]}),
    (
        peft.LoraConfig,
        {**LAYERS, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 3}},
    ),
    (peft.LoraConfig, {**LAYERS, "layers_to_transform": [1], "layers_pattern": "layers"}),
    (peft.LoraConfig, {**LAYERS, "init_lora_weights": "gaussian", "trainable_token_indices": [1, 2]}),
    (peft.LoraConfig, {**LAYERS, "lora_bias": True, "task_type": None}),
    (peft.AdaLoraConfig, {**LAYERS, "total_step": 10}),
    (peft.IA3Config, {**LAYERS, "feedforward_modules": ["down_proj"]}),
    (peft.IA3Config, {"target_modules": r".*\.(q|down)_proj", "feedforward_modules": r".*\.down_proj"}),
    (peft.IA3Config, {"target_modules": r".*\.(q|down)_proj", "feedforward_modules": ["down_proj"]}),
    (peft.LoHaConfig, LAYERS),
    (peft.LoKrConfig, LAYERS),
    (peft.PrefixTuningConfig, {"num_virtual_tokens": 3}),
    (peft.PrefixTuningConfig, {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 8}),
    (peft.PromptTuningConfig, {"num_virtual_tokens": 3}),
    (peft.PromptEncoderConfig, {"num_virtual_tokens": 3, "encoder_hidden_size": 8}),
]


def numbers(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(8)[None], attention_mask=torch.ones(1, 8, dtype=torch.long)).logits


@pytest.mark.parametrize(("kind", "settings"), WRITTEN, ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.filterwarnings("ignore")
def test_what_peft_writes_comes_back(kind: type[peft.PeftConfig], settings: dict[str, Any], tmp_path: Path) -> None:
    model = peft.get_peft_model(base(), kind(**{"task_type": "CAUSAL_LM", **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(tmp_path)
    again = adapters.attach(base(), tmp_path).eval()
    assert torch.allclose(numbers(again), numbers(model), atol=1e-6)
    assert not torch.equal(numbers(again), numbers(base()))


def test_each_type_is_tried() -> None:
    assert {
        kind(**({"total_step": 1} if kind is peft.AdaLoraConfig else {})).peft_type.value for kind, _ in WRITTEN
    } == (TYPES.keys())


@pytest.mark.parametrize(
    "fields",
    [
        {"megatron_core": "megatron.core", "megatron_config": None, "corda_config": None, "layer_replication": None},
        {
            "auto_mapping": {
                "base_model_class": "X",
                "parent_library": "transformers_modules.chatglm-6b.modeling_chatglm",
            }
        },
        {"auto_mapping": None, "runtime_config": {"ephemeral_gpu_offload": True}, "revision": "main"},
        {"something_of_the_future": None, "another": False, "more": {}, "most": []},
        {"qalora_group_size": 16, "use_qalora": False, "loftq_config": {}, "eva_config": {"rho": 2.0, "whiten": False}},
        {"peft_version": "0.19.0", "lora_alpha": 2.5, "inference_mode": False},
    ],
    ids=str,
)
def test_what_says_nothing_is_no_fault(fields: dict[str, Any], tiny_run: Run, tmp_path: Path) -> None:
    assert glmtune.load(edited(tiny_run, tmp_path, fields))


def edited(run: Run, tmp_path: Path, fields: dict[str, Any], file: str = "adapter_config.json") -> Path:
    """An adapter as somebody else might have made it."""
    folder = shutil.copytree(run.folder.adapter, tmp_path / "adapter")
    values = json.loads((folder / file).read_text()) | fields
    (folder / file).write_text(json.dumps(values))
    return folder


# What is refused: the fields, and what of it the message names.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"megatron_config": {"hidden_size": 4}, "megatron_core": "evil"}, "megatron_config"),
    ({"megatron_core": "evil"}, "megatron_core"),
    ({"auto_mapping": {"base_model_class": "X", "parent_library": "evil"}}, "auto_mapping.*evil"),
    ({"auto_mapping": {"base_model_class": "X", "parent_library": "os.path"}}, "auto_mapping.*os.path"),
    ({"auto_mapping": "evil"}, "auto_mapping"),
    ({"corda_config": {"cache_file": "evil.pt", "covariance_file": "evil.pt"}}, "corda_config"),
    ({"init_lora_weights": "corda"}, "init_lora_weights.*corda"),
    ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "loftq|init_lora_weights"),
    ({"init_lora_weights": "pissa_niter_999999999"}, "init_lora_weights"),
    ({"lora_ga_config": {"direction": "random"}}, "lora_ga_config"),
    ({"layer_replication": [[0, 10**9]]}, "layer_replication"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ({"arrow_config": {"top_k": 3}}, "arrow_config"),
    ({"unheard_of": "evil"}, "unheard_of"),
    ({"lora_alfa": 8}, "lora_alfa.*Did you mean 'lora_alpha'"),
    ({"peft_type": "XLORA", "adapters": {"1": "../evil"}}, "XLORA"),
    ({"peft_type": "MULTITASK_PROMPT_TUNING", "prompt_tuning_init_state_dict_path": "evil.pt"}, "MULTITASK"),
    ({"peft_type": "LORRA"}, "Did you mean 'LORA'"),
    ({"peft_type": ["LORA"]}, "peft_type"),
    ({"peft_type": None}, "peft_type"),
    ({"task_type": "evil"}, "task_type"),
    ({"r": 10**9}, "r: .*1000000000"),
    ({"r": 60000}, "r is 60000, but no side"),
    ({"r": -4}, "r: .*-4"),
    ({"r": 0}, "r: .*0"),
    ({"r": "4"}, "r: .*'4'"),
    ({"r": True}, "r: .*True"),
    ({"lora_alpha": 1e300}, "lora_alpha"),
    ({"lora_alpha": float("nan")}, "lora_alpha.*nan"),
    ({"lora_dropout": 7}, "lora_dropout"),
    ({"rank_pattern": {HANGS: 4}}, "rank_pattern"),
    ({"rank_pattern": {"dense": 10**9}}, "rank_pattern"),
    ({"rank_pattern": {"dense": 50000}}, "rank_pattern of dense is 50000"),
    ({"alpha_pattern": {HANGS: 4}}, "alpha_pattern"),
    ({"modules_to_save": [HANGS]}, "modules_to_save"),
    ({"modules_to_save": "evil"}, "modules_to_save"),
    ({"target_parameters": ["(a|a)*"]}, "target_parameters"),
    ({"layers_to_transform": [0], "layers_pattern": HANGS}, "layers_pattern"),
    ({"layers_to_transform": [-(10**12)]}, "layers_to_transform"),
    ({"trainable_token_indices": {HANGS: [1]}}, "trainable_token_indices"),
    ({"trainable_token_indices": [10**12]}, "trainable_token_indices"),
    ({"target_modules": [HANGS]}, "target_modules"),
    ({"target_modules": {"a": "b"}}, "target_modules"),
]
# Refused once the base is there, with which patterns are compared.
PATTERNS: list[tuple[dict[str, Any], str]] = [
    ({"target_modules": HANGS}, "target_modules.*none of the base's modules"),
    ({"target_modules": "(" * 1000}, "target_modules"),
    ({"target_modules": "((x{1000}){1000}){1000}"}, "target_modules.*size limit"),
    ({"target_modules": "(?!head).*"}, "target_modules.*look-around.*A list of names"),
    ({"target_modules": r"(.*)\1"}, "target_modules.*backreferences"),
    ({"exclude_modules": "x)|(.*"}, "exclude_modules"),
]


@pytest.mark.parametrize(("fields", "named"), [*REFUSED, *PATTERNS], ids=lambda value: str(value)[:60])
def test_what_is_refused(
    fields: dict[str, Any],
    named: str,
    payload: str,
    tiny_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("evil.py").write_text(payload)
    begun = time.monotonic()
    line = refused("chat", edited(tiny_run, tmp_path, fields), "-q", "1+1=")
    assert time.monotonic() - begun < 20
    assert "adapter_config.json" in line and re.search(named, line), line
    assert len(line) < 700
    remedies = (
        "Take the file",
        "Copy or download",
        "have its maker",
        "Have its maker",
        "A list of names",
        "model.path=",
    )
    assert any(remedy in line for remedy in remedies), line


@pytest.mark.parametrize(("fields", "named"), REFUSED[::6], ids=lambda value: str(value)[:60])
def test_doctor_names_it(fields: dict[str, Any], named: str, tiny_run: Run, tmp_path: Path) -> None:
    found = {diagnosis.name: diagnosis for diagnosis in doctor.run(str(edited(tiny_run, tmp_path, fields)))}
    assert found["adapter"].status == "failure" and "adapter_config.json" in found["adapter"].finding
    assert found["adapter"].remedy


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_virtual_tokens": 10**9}, "num_virtual_tokens"),
        ({"num_virtual_tokens": 60000}, "num_virtual_tokens is 60000"),
        ({"num_virtual_tokens": -1}, "num_virtual_tokens"),
        ({"num_layers": 4000}, "num_layers x 2 x token_dim is 128000"),
        ({"token_dim": 65000}, "token_dim is 65000"),
        ({"num_attention_heads": 10**9}, "num_attention_heads"),
        ({"encoder_hidden_size": 10**9}, "encoder_hidden_size"),
    ],
    ids=str,
)
def test_prompts_have_bounds(fields: dict[str, Any], named: str, tmp_path: Path) -> None:
    model = peft.get_peft_model(base(), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(UserError, match=named):
        adapters.adapter_folder(tmp_path)


def test_a_prompts_tokenizer_is_not_loaded(tmp_path: Path, payload: str, marker: Path) -> None:
    """peft would take options for it from the file, `trust_remote_code` among them."""
    model = peft.get_peft_model(base(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    own = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "x", "tokenizer_name_or_path": str(tmp_path)}
    options = {"tokenizer_kwargs": {"trust_remote_code": True}, "inference_mode": False}
    file.write_text(json.dumps(json.loads(file.read_text()) | own | options))
    (tmp_path / "tokenization.py").write_text(payload)
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["tokenization.X", null]}}')
    config: Any = adapter_config.peft_config(tmp_path, [])
    assert config.tokenizer_kwargs is None and config.prompt_tuning_init == "RANDOM"
    assert adapters.attach(base(), tmp_path)


def test_a_side_of_nothing_counts_for_nothing(tiny_run: Run, tmp_path: Path) -> None:
    folder = edited(tiny_run, tmp_path, {"r": 50000})
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), "empty": torch.empty(50000, 0)}, file, metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="r is 50000"):
        adapters.adapter_folder(folder)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"bits": "4"}, "bits"),
        ({"bits": 7}, "bits is 16, 8 or 4"),
        ({"bits": True}, "bits"),
        ({"quantize_embedding": "yes"}, "quantize_embedding"),
        ({"base": ["evil"]}, "base"),
        ({"base": {"a": 1}}, "base"),
        ({"fingerprint": 5}, "fingerprint"),
        ({"method": ["evil.py"]}, "method"),
    ],
    ids=str,
)
def test_what_training_noted_is_of_its_kinds(
    fields: dict[str, Any], named: str, tiny_run: Run, tmp_path: Path, refused: Callable[..., str]
) -> None:
    line = refused("chat", edited(tiny_run, tmp_path, fields, "base.json"), "-q", "1+1=")
    assert "base.json" in line and named in line and "Copy or download" in line


def test_a_pattern_of_a_recipe_does_not_hang(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"method: {{name: lora, target_modules: '{HANGS}'}}\n")
    begun = time.monotonic()
    found = {diagnosis.name: diagnosis for diagnosis in doctor.run(str(tmp_path / "recipe.yaml"))}
    assert found["method"].status == "failure" and "no layer has such a name" in found["method"].finding
    line = refused("train", tmp_path / "recipe.yaml", f"training.output_dir={tmp_path / 'run'}")
    assert "method.target_modules" in line and time.monotonic() - begun < 60


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (r".*\.(q|v)_proj", ["a.q_proj", "b.c.v_proj"]),
        ("q_proj", []),
        (r"a\.q_proj", ["a.q_proj"]),
        (r"(?:.*?(?:c|d).*?(?:q_proj|v_proj).*?)|(?:\ba\.[\w]{1,}q_proj$)", ["b.c.v_proj"]),
        ("(a+)+$", []),
        (".*", ["a.q_proj", "b.c.v_proj", "lm_head"]),
        ("a|lm_head", ["lm_head"]),
    ],
)
def test_a_pattern_matches_whole_names(pattern: str, names: list[str]) -> None:
    assert matching(pattern, ["a.q_proj", "b.c.v_proj", "lm_head"]) == names


def test_time_grows_with_the_length_alone() -> None:
    begun = time.monotonic()
    assert matching(HANGS, ["a" * 20000 + "b"]) == []
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(("rank", "told"), [(16, 0), (32, 0), (33, 1)])
def test_a_rank_above_the_matrix_is_told(rank: int, told: int, tiny_settings: list[str]) -> None:
    plan = Plan(resolve(None, [*tiny_settings, f"method.rank={rank}"]), RunFolder("unused"))
    assert sum(f"method.rank={rank} is above 32" in remark for remark in plan.remarks) == told


def config_of(folder: Path, fields: dict[str, Any]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def tokenizer_of(folder: Path, fields: dict[str, Any]) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


CODE = {"AutoConfig": "evil.X", "AutoModelForCausalLM": "evil.X", "AutoTokenizer": ["evil.X", None]}
MODELS: list[tuple[Callable[[Path, dict[str, Any]], None], dict[str, Any]]] = [
    (config_of, {"auto_map": CODE}),
    (config_of, {"auto_map": CODE, "model_type": "evil"}),
    (config_of, {"auto_map": CODE, "architectures": ["evil.X"]}),
    (config_of, {"model_type": "os.system"}),
    (config_of, {"model_type": "../evil"}),
    (config_of, {"custom_code": "evil.py", "trust_remote_code": True}),
    (config_of, {"custom_pipelines": {"x": {"impl": "evil.X", "pt": ["evil.X"]}}}),
    (config_of, {"quantization_config": {"quant_method": "evil"}}),
    (config_of, {"quantization_config": {"quant_method": "evil.X", "modules_to_not_convert": ["evil"]}}),
    (config_of, {"quantization_config": {"quant_method": "custom", "module": "evil", "class_path": "evil.X"}}),
    (config_of, {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel"}),
    (config_of, {"transformers_weights": "evil.py", "dtype": "evil"}),
    (tokenizer_of, {"auto_map": {"AutoTokenizer": ["evil.X", "evil.X"]}}),
    (tokenizer_of, {"auto_map": {"AutoTokenizer": ["evil.X", None]}, "tokenizer_class": "X"}),
    (tokenizer_of, {"tokenizer_class": "os.system"}),
    (tokenizer_of, {"tokenizer_class": "evil.X", "trust_remote_code": True}),
    (tokenizer_of, {"processor_class": "evil.X", "fast_tokenizer_files": ["evil.py"]}),
    (tokenizer_of, {"response_schema": {"x": "evil"}, "parser": "evil.X"}),
]


@pytest.mark.parametrize(
    ("change", "fields"), MODELS, ids=lambda value: str(value)[:70] if isinstance(value, dict) else ""
)
@pytest.mark.parametrize("verb", ["load", "doctor"])
def test_a_model_names_code(
    verb: str,
    change: Callable[[Path, dict[str, Any]], None],
    fields: dict[str, Any],
    payload: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is left alone, or the model is refused: the fixture of the payload looks whether it ran."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = shutil.copytree(loading.EMBEDDED["nano"], tmp_path / "model")
    change(folder, fields)
    for place in (folder, tmp_path):
        (place / "evil.py").write_text(payload)
    if verb == "doctor":
        found = doctor.run(str(folder))
        assert all(diagnosis.remedy for diagnosis in found if diagnosis.status == "failure")
        return
    try:
        glmtune.load(folder)
    except UserError as error:
        assert len(str(error).splitlines()) == 1 and str(folder) in str(error)
