"""What works with what: each family from its own checkpoint, each method, each storage, each export.

`SUPPORT` is the table of docs/families.md, and `REFUSALS` what the cells say that are no. Every cell is tried here.
Those of families of transformers' own take minutes and are slow tests, but for a few of the most different.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families_of_today
import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import GlmForCausalLM

import glmtune
from glmtune import registry
from glmtune.commands import evaluate, export, train
from glmtune.config import ModelSettings, load_recipe
from glmtune.data.encoding import encode_example, encode_prompt
from glmtune.data.parsing import parse_answer
from glmtune.inference.engine import Engine
from glmtune.messages import make_tool_call
from glmtune.models import loading
from glmtune.models.architecture import Architecture, stored_bits
from glmtune.models.checkpoint import read_json
from glmtune.runtime import UserError

PAGE = Path(__file__).parents[2] / "docs/families.md"
SETTINGS = {
    "lora": "{name: lora, rank: 4}",
    "ptuning_v2": "{name: ptuning_v2, num_virtual_tokens: 4, dropout: 0}",
    "freeze": "{name: freeze, num_layers: 1}",
    "full": "{name: full}",
}
HEAD = ["checkpoint", "loads as", "LoRA", "P-Tuning v2", "Freeze", "Full", "merged", "original", "GGUF"]
PLAIN = {"lora": "16 8 4", "ptuning_v2": "16 8 4", "freeze": "16", "full": "16"}
PACKED = {"lora": "as stored", "ptuning_v2": "as stored", "freeze": "no", "full": "no"}
CHATGLM = {"class": "ChatGLMForCausalLM", "merged": "yes", "original": "yes", "gguf": "no"}
GLM = {"class": "GlmForCausalLM", "merged": "yes", "original": "no", "gguf": "yes"}
OURS = GLM | PLAIN
MIXTURE = {method: bits.replace("8 4", "8* 4*") for method, bits in PLAIN.items()}
SUPPORT: dict[str, dict[str, str]] = {
    "ChatGLM-6B v1.0": CHATGLM | PLAIN,
    "ChatGLM-6B v1.1": CHATGLM | PLAIN,
    "ChatGLM-6B-INT8": CHATGLM | PACKED,
    "ChatGLM-6B-INT4": CHATGLM | PACKED,
    "ChatGLM2-6B": GLM | PLAIN,
    "ChatGLM3-6B": GLM | PLAIN,
    "GLM-4-9B": GLM | PLAIN,
    "GLM-4-0414": GLM | PLAIN | {"class": "Glm4ForCausalLM"},
    "Llama": GLM | PLAIN | {"class": "LlamaForCausalLM"},
    "CodeGen": GLM | PLAIN | {"class": "CodeGenForCausalLM", "gguf": "no"},
    "Llama 3.1": OURS | {"class": "LlamaForCausalLM"},
    "SmolLM2": OURS | {"class": "LlamaForCausalLM"},
    "Mistral": OURS | {"class": "MistralForCausalLM"},
    "Qwen2.5": OURS | {"class": "Qwen2ForCausalLM"},
    "Qwen3": OURS | {"class": "Qwen3ForCausalLM"},
    "Gemma 3": OURS | {"class": "Gemma3ForCausalLM"},
    "Phi-4": OURS | {"class": "Phi3ForCausalLM"},
    "Mixtral": OURS | MIXTURE | {"class": "MixtralForCausalLM"},
    "Qwen3-MoE": OURS | MIXTURE | {"class": "Qwen3MoeForCausalLM"},
    "GLM-4.5": OURS | MIXTURE | {"class": "Glm4MoeForCausalLM"},
}
WRITTEN = "glm, glm4, gemma3_text, glm4_moe, llama, mistral, mixtral, phi3, qwen2, qwen3, qwen3_moe"
REFUSALS = {
    "Freeze or Full at 8 or 4 bits": "method.name=freeze changes the weights of the model itself, and model.bits=4 "
    "stores them as whole numbers, which cannot take small steps. Use method.name=lora or ptuning_v2, or 16 bits.",
    "original": "--to original: the original layout is that of ChatGLM-6B, and this is a llama model, which all tools "
    "read as transformers writes it: --to merged.",
    "GGUF of ChatGLM-6B": "config.json: model_type=chatglm is ChatGLM-6B, and llama.cpp has no such architecture: its "
    "positions have two rows, and it reads a prompt in both directions. Use --to merged or --to original.",
    "GGUF of another": f"config.json: model_type=codegen cannot be written as GGUF here, only {WRITTEN}. Use "
    "--to merged, and llama.cpp's own convert_hf_to_gguf.py on what that gives.",
}
STARRED = (
    "model.bits=4: the experts, 39% of the parameters, stay as they are: those of a block are one parameter, and "
    "linear layers alone are stored at fewer bits."
)
BITS = {"16 8 4": (16, 8, 4), "16 8* 4*": (16, 8, 4), "as stored": (16,)}
QUICK = {("GLM-4.5", "lora", 4), ("Gemma 3", "ptuning_v2", 16), ("Phi-4", "lora", 16)}


def slow(family: str, *cell: Any) -> Any:
    """Return parameters of a test, which is a slow one for the families of `families_of_today`."""
    is_slow = family in families_of_today.WRITERS and (family, *cell) not in QUICK
    return pytest.param(family, *cell, marks=[pytest.mark.slow] if is_slow else [])


CELLS = [
    slow(family, method, bits)
    for family, cells in SUPPORT.items()
    for method in SETTINGS
    for bits in BITS[cells["lora"]]
]
every_family = pytest.mark.parametrize("family", [slow(family) for family in SUPPORT])
CONVERSATION = [
    {"role": "user", "content": "1+2="},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "4+5="},
]

Find = Callable[[str], Path]


def support_table() -> str:
    """The table of docs/families.md, in Markdown."""
    rows = [HEAD, ["---"] * len(HEAD)]
    for family, cells in SUPPORT.items():
        rows.append([family, f"`{cells['class']}`", *(cells[key] for key in (*SETTINGS, "merged", "original", "gguf"))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def refusals() -> str:
    """What docs/families.md says of the cells that are no, or have a star, in Markdown."""
    lines = [f"* {what}: `{message}`" for what, message in REFUSALS.items()]
    return "\n".join([*lines, f"* \\* of GLM-4.5 as it is here: `{STARRED}`"])


def test_the_page_has_this_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert f"<!-- families -->\n{support_table()}\n<!-- /families -->" in page
    assert page.partition("<!-- refusals -->\n")[2].startswith(f"{refusals()}\n<!-- /refusals -->")
    assert page.count("<!-- refusals -->") == 1


def test_experts_that_stay_as_they_are_are_told(checkpoint_of: Find) -> None:
    assert [*Architecture.from_config(read_json(checkpoint_of("GLM-4.5") / "config.json")).remarks(4)] == [STARRED]


@pytest.mark.parametrize("name", ["GLM-4.5", "Gemma 3"])
def test_sizes_are_known_without_loading(name: str, checkpoint_of: Find) -> None:
    model, _ = glmtune.load(checkpoint_of(name))
    sizes = Architecture.from_config(read_json(checkpoint_of(name) / "config.json"))
    assert sizes.parameters == sum(weight.numel() for weight in model.parameters())


def logits(model: Any, tokenizer: Any) -> Tensor:
    ids = torch.tensor([encode_prompt(tokenizer, CONVERSATION)])
    with torch.no_grad():
        return model(input_ids=ids).logits.float()


def load(folder: Path, **settings: Any) -> tuple[Any, Any]:
    return loading.load_model(ModelSettings(path=str(folder), **settings), torch.device("cpu"))


@every_family
def test_loads_without_its_code(family: str, checkpoint_of: Find) -> None:
    folder = checkpoint_of(family)
    before = sorted(folder.rglob("*"))
    model, tokenizer = glmtune.load(folder)
    assert type(model).__name__ == SUPPORT[family]["class"]
    assert type(model).__module__.partition(".")[0] == ("glmtune" if "ChatGLM-6B" in family else "transformers")
    assert type(model) is not type(GlmForCausalLM) and sorted(folder.rglob("*")) == before
    ids = encode_prompt(tokenizer, CONVERSATION)
    assert max(ids) < model.config.vocab_size and tokenizer.unk_token_id not in ids
    assert logits(model, tokenizer).isfinite().all()


@pytest.mark.parametrize(("family", "method", "bits"), CELLS)
def test_every_method_at_every_storage(
    family: str, method: str, bits: int, checkpoint_of: Find, tmp_path: Path
) -> None:
    """A step with it changes the model, and what is saved gives the same model again."""
    cell = SUPPORT[family][method]
    recipe = load_recipe(
        None, [f"model.path={checkpoint_of(family)}", f"model.bits={bits}", f"method={SETTINGS[method]}"]
    )
    learns = registry.find("glmtune.methods", recipe.method.name)(recipe.method)
    if cell == "no" or (cell != "as stored" and str(bits) not in cell.replace("*", "").split()):
        with pytest.raises(UserError) as error:
            learns.check_base(recipe.model, stored_bits(loading.load_config(recipe.model.path)))
        told = REFUSALS["Freeze or Full at 8 or 4 bits"].replace("freeze", method)
        assert str(error.value) in (told, told.replace("=4", "=8"))
        return
    learns.check_base(recipe.model, stored_bits(loading.load_config(recipe.model.path)))
    base, tokenizer = load(checkpoint_of(family), bits=bits)
    before = logits(base, tokenizer)
    torch.manual_seed(0)
    model = learns.apply(base).train()
    example = encode_example(tokenizer, CONVERSATION, "9")
    batch = {key: torch.tensor([example[key]]) for key in ("input_ids", "labels")}
    groups = [{"params": group["params"]} for group in learns.parameter_groups(model)]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    for _ in range(2):  # LoRA's first step moves one of its two matrices alone
        model(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.enable_grad():
        learning = model(**batch, use_cache=False).loss.detach()
    trained = learns.finish(model).eval()
    with torch.no_grad():
        torch.testing.assert_close(trained(**batch, use_cache=False).loss, learning, rtol=1e-3, atol=1e-3)
    after = logits(trained, tokenizer)
    assert not torch.allclose(after, before, atol=1e-3)
    learns.save(trained, tokenizer, tmp_path, recipe.model)
    again = glmtune.load(tmp_path, bits=16 if method == "full" else bits)
    torch.testing.assert_close(logits(*again), after, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def run_of(
    checkpoint_of: Find, tiny_settings: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], train.Run]:
    """`run_of("Llama")`: a few steps of LoRA on a family."""
    done: dict[str, train.Run] = {}

    def run(family: str) -> train.Run:
        if family not in done:
            folder = tmp_path_factory.mktemp("runs") / "run"
            settings = [*tiny_settings, f"model.path={checkpoint_of(family)}", f"training.output_dir={folder}"]
            done[family] = train.run(None, settings, None, Console(file=io.StringIO()))
        return done[family]

    return run


@every_family
def test_equal_at_every_station(family: str, run_of: Any, tmp_path: Path) -> None:
    """Trained, loaded again, merged: the same answers and the same logits."""
    done = run_of(family)
    folder = done.folder.path
    evaluation, _ = evaluate.run(str(folder))
    assert evaluation.completions == done.after.completions
    adapter, tokenizer = glmtune.load(folder)
    expected = logits(adapter, tokenizer)
    assert not torch.allclose(
        expected, logits(*glmtune.load(read_json(folder / "adapter/base.json")["base"])), atol=1e-3
    )
    for layout in ("merged", "original"):
        place = tmp_path / layout
        if SUPPORT[family][layout] == "no":
            with pytest.raises(UserError) as error:
                export.run(str(folder), "original", str(place))
            assert str(error.value) == REFUSALS["original"].replace("a llama", f"a {adapter.config.model_type}")
            continue
        export.run(str(folder), layout, str(place), precision="float32", console=Console(file=io.StringIO()))
        model, saved = glmtune.load(place)
        assert saved.chat_template == tokenizer.chat_template
        torch.testing.assert_close(logits(model, saved), expected, rtol=1e-4, atol=1e-4)


@every_family
def test_gguf(family: str, run_of: Any, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the extra glmtune[gguf] is not installed")
    arguments = (str(run_of(family).folder.path), "gguf", str(tmp_path / "model.gguf"))
    if SUPPORT[family]["gguf"] == "no":
        with pytest.raises(UserError) as error:
            export.run(*arguments)
        assert str(error.value) == REFUSALS["GGUF of another" if family == "CodeGen" else "GGUF of ChatGLM-6B"]
        assert not list(tmp_path.iterdir())
        return
    assert export.run(*arguments, console=Console(file=io.StringIO())).stat().st_size > 10_000
    endings = ("", ".Modelfile", ".json", ".md")
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"model.gguf{ending}" for ending in endings]
    with pytest.raises(UserError, match="q8_0: is a form of numbers in GGUF files"):
        export.run(arguments[0], "merged", str(tmp_path / "merged"), precision="q8_0")
    small = tmp_path / "small.gguf"
    export.run(*arguments[:2], str(small), precision="q8_0", console=Console(file=io.StringIO()))
    assert json.loads(small.with_name("small.gguf.json").read_text())["precision"] == "q8_0"
    assert "Stored in q8_0 it is another model" in small.with_name("small.gguf.md").read_text("utf-8")


OPENED_ALONE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

for folder, messages in json.load(sys.stdin):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    print(json.dumps([type(model).__name__, ids, logits.tolist()]))
assert "glmtune" not in sys.modules
"""


@pytest.mark.slow
def test_transformers_alone_opens_merged_models(run_of: Any, tmp_path: Path) -> None:
    """In a Python that never imports this package: the same class, the same ids, the same logits."""
    families = [family for family, cells in SUPPORT.items() if cells["class"] != "ChatGLMForCausalLM"]
    expected = []
    for family in families:
        run = str(run_of(family).folder.path)
        export.run(run, "merged", str(tmp_path / family), precision="float32", console=Console(file=io.StringIO()))
        model, tokenizer = glmtune.load(run)
        ids = encode_prompt(tokenizer, CONVERSATION)
        with torch.no_grad():
            expected.append([SUPPORT[family]["class"], ids, model(torch.tensor([ids])).logits[0, -1].tolist()])
    told = json.dumps([[str(tmp_path / family), CONVERSATION] for family in families])
    done = subprocess.run(
        [sys.executable, "-I", "-c", OPENED_ALONE], input=told, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    for line, (name, ids, numbers) in zip(done.stdout.splitlines(), expected, strict=True):
        found_name, found_ids, found_numbers = json.loads(line)
        assert (found_name, found_ids) == (name, ids)
        torch.testing.assert_close(torch.tensor(found_numbers), torch.tensor(numbers), rtol=1e-4, atol=1e-4)


@every_family
def test_rows_come_and_go_in_any_order(
    family: str, checkpoint_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, any_order: Callable[..., None]
) -> None:
    """With many stop tokens, answers end at many lengths."""
    model, tokenizer = glmtune.load(checkpoint_of(family))
    monkeypatch.setattr(model.generation_config, "eos_token_id", [*range(3, model.config.vocab_size, 7)])
    any_order(Engine(model, tokenizer))


@every_family
def test_a_mixed_batch_is_one_by_one(family: str, checkpoint_of: Find, check_mixture: Callable[..., None]) -> None:
    check_mixture(Engine(*glmtune.load(checkpoint_of(family))))


@pytest.mark.parametrize(
    ("family", "written", "message"),
    [
        ("Qwen3", "<think>\nwhy\n</think>\n\n9<|im_end|>", {"content": "9", "reasoning_content": "why"}),
        ("GLM-4.5", "\n<think>why</think>\n9<|user|>", {"content": "9", "reasoning_content": "why"}),
        (
            "GLM-4.5",
            "\n<think></think>\n<tool_call>add\n<arg_key>first</arg_key>\n<arg_value>1</arg_value>\n</tool_call><|user|>",
            {"content": None, "tool_calls": [make_tool_call("add", {"first": "1"})]},
        ),
        ("Gemma 3", "9<end_of_turn>", {"content": "9"}),
        ("Llama 3.1", "9<|eot_id|>", {"content": "9"}),
        ("Phi-4", "9<|im_end|>", {"content": "9"}),
    ],
)
def test_what_they_write_is_read(family: str, written: str, message: dict[str, Any], checkpoint_of: Find) -> None:
    """By the template of the checkpoint, which is used as it is: thoughts and calls are no part of an answer."""
    tokenizer = loading.load_tokenizer(str(checkpoint_of(family)))
    prompt = encode_prompt(tokenizer, CONVERSATION)
    found = parse_answer(tokenizer, prompt, tokenizer.encode(written, add_special_tokens=False))
    assert {key: found.get(key) for key in message} == message
