"""What an exported model must have in common with what it was made of: rounding passes, error is refused and told."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import glmtune
from glmtune.commands import export
from glmtune.config import GenerationSettings
from glmtune.data.encoding import encode_prompt
from glmtune.examples import Example
from glmtune.execution import Run
from glmtune.exports.computing import Computing
from glmtune.exports.reference import Reference, along, fitting, refer
from glmtune.exports.verification import check_weights, compare, compare_quantized, describe_rounding, digests
from glmtune.inference.completion import Completion
from glmtune.inference.engine import Engine
from glmtune.models.checkpoint import read_json
from glmtune.models.low_rank import updated_layers
from glmtune.registry import find
from glmtune.runtime import UserError

EXAMPLES = [Example(f"{a}+{b}=", str(a + b)) for a in range(5) for b in range(2)]
PROMPTS = [example.prompt for example in EXAMPLES]
SETTINGS = GenerationSettings(max_new_tokens=6, batch_size=4)


class Sums:
    """A task that has no tools, and finds right what it is told to."""

    tools = ()

    def __init__(self, right: Callable[[str], bool] = lambda _: True) -> None:
        self.right = right

    def score(self, example: Example, completion: str, calls: Any = ()) -> Any:
        return type("Score", (), {"correct": self.right(completion)})


TASK: Any = Sums()


def reference_of(tiny: tuple[Any, Any], dtype: torch.dtype = torch.float32, task: Any = TASK) -> Reference:
    return refer(*tiny, EXAMPLES, SETTINGS, task, dtype)


def test_answers_are_those_of_predicting(tiny: tuple[Any, Any]) -> None:
    """Greedy whatever the recipe says; the logits are those at each token of the answers."""
    model, tokenizer = tiny
    sampling = SETTINGS.model_copy(update={"do_sample": True, "temperature": 5.0})
    found = refer(model, tokenizer, EXAMPLES, sampling, TASK, torch.float32)
    assert [one.text for one in found.completions] == [one.text for one in Engine(*tiny).answer(PROMPTS, SETTINGS)]
    assert found.logits.dtype == torch.float32
    assert len(found.logits) == sum(len(one.token_ids) for one in found.completions)
    ids = [*encode_prompt(tokenizer, PROMPTS[0]), *found.completions[0].token_ids]
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([ids])).logits[0]
    answer = found.completions[0].token_ids
    torch.testing.assert_close(found.logits[: len(answer)], whole[-len(answer) - 1 : -1], rtol=1e-4, atol=1e-4)
    assert [row[0].item() for row in found.likely[0]] == list(answer)  # greedy


def test_a_model_is_itself(tiny: tuple[Any, Any]) -> None:
    found = compare(reference_of(tiny), *tiny, EXAMPLES, SETTINGS, TASK, torch.float32)
    assert found["logits_difference"] == 0 and found["equal_answers"] == found["problems"] == len(EXAMPLES)
    assert found["accuracy"] == found["accuracy_as_trained"] == 1
    assert describe_rounding(found).startswith("Rounding to float32 moves the logits by 0.0e+00 of their size")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computing_in_fp32_is_computing_with_a_copy_in_fp32(tiny_checkpoint: Path, dtype: torch.dtype) -> None:
    model, tokenizer = glmtune.load(tiny_checkpoint)
    model.to(dtype)
    ids = torch.tensor([encode_prompt(tokenizer, PROMPTS[0])])
    with torch.no_grad():
        with Computing(torch.float32):
            found = model(input_ids=ids).logits
        expected = copy.deepcopy(model).float()(input_ids=ids).logits
    assert found.dtype == torch.float32 and next(model.parameters()).dtype == dtype
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_batches_have_room_for_their_logits(monkeypatch: pytest.MonkeyPatch, tiny: tuple[Any, Any]) -> None:
    prompts = [encode_prompt(tiny[1], "1" * length + "+1=") for length in (3, 8, 2, 4)]
    paths = [(ids, [16, 17]) for ids in prompts]
    whole = list(along(tiny[0], paths, torch.float32))
    vocabulary = whole[0].shape[-1]
    monkeypatch.setattr("glmtune.exports.reference.NUMBERS", 10 * vocabulary)
    assert [len(fitting(paths[at:], vocabulary)) for at in range(4)] == [1, 1, 1, 1]
    for one, alone in zip(whole, along(tiny[0], paths, torch.float32), strict=True):
        assert len(one) == 2
        torch.testing.assert_close(one, alone, rtol=1e-4, atol=1e-4)


def wrong_scale(model: Any) -> None:
    for _, layer in updated_layers(model):
        layer.scaling["default"] *= 1.1


def one_layer_without(model: Any) -> None:
    next(layer for _, layer in updated_layers(model)).scaling["default"] = 0.0


def transposed(model: Any) -> None:
    layer = next(layer for name, layer in updated_layers(model) if name.endswith("attention.dense"))
    layer.get_base_layer().weight.copy_(layer.get_base_layer().weight.T.clone())


def other_row(model: Any) -> None:
    embedding = model.get_input_embeddings().weight
    embedding[5] = embedding[6]


def last_bit(model: Any) -> None:
    model.get_input_embeddings().weight[3, 3] *= 1 + 2**-7


FAULTS = [wrong_scale, one_layer_without, transposed, other_row]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_planted_fault_shows_in_the_logits(tiny: tuple[Any, Any], fault: Any, dtype: torch.dtype) -> None:
    """Where it was made after all that is compared number by number, on a model of random weights."""
    reference = reference_of(tiny, dtype)
    model = copy.deepcopy(tiny[0])
    with torch.no_grad():
        fault(model)
    with pytest.raises(UserError, match=r"is not the one that was trained: .* explains\. Nothing was published"):
        compare(reference, model, tiny[1], EXAMPLES, SETTINGS, TASK, dtype)


@pytest.mark.parametrize("fault", [transposed, other_row, last_bit])
def test_weights_are_those_that_were_merged_to_the_last_bit(tiny: tuple[Any, Any], fault: Any) -> None:
    expected = digests(tiny[0], torch.bfloat16)
    model = copy.deepcopy(tiny[0])
    check_weights(model, expected, torch.bfloat16)
    with torch.no_grad():
        fault(model)
    with pytest.raises(UserError, match=r"[12] of its \d+ weights are not those that were merged, .* first"):
        check_weights(model, expected, torch.bfloat16)


def test_what_is_no_number_is_no_model(tiny: tuple[Any, Any]) -> None:
    model = copy.deepcopy(tiny[0])
    nn.init.constant_(next(model.parameters()), float("nan"))
    with pytest.raises(UserError, match="its logits differ by nan"):
        compare(reference_of(tiny), model, tiny[1], EXAMPLES, SETTINGS, TASK, torch.float32)


def test_a_tokenizer_that_drops_what_stood_before_prompts_is_told(tiny: tuple[Any, Any]) -> None:
    tokenizer = copy.deepcopy(tiny[1])
    tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    with pytest.raises(UserError, match=r"its tokenizer makes other tokens of '0\+0='"):
        compare(reference_of(tiny), tiny[0], tokenizer, EXAMPLES, SETTINGS, TASK, torch.float32)


def made(margin: float, tie: float, correct: list[bool]) -> Reference:
    """A reference whose first answer has two tokens, the second of which was likelier by some margin."""
    likely, values = torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.tensor([[9.0, 1.0, 0.0], [margin, 0.0, -1.0]])
    one = Completion("36", [3, 6], 1, "length")
    return Reference([[1]], [one], torch.zeros(1, 3), [likely], [values], 0.01, tie, correct)


@pytest.mark.parametrize(
    ("token", "margin", "passes"), [(7, 0.1, True), (7, 0.9, False), (99, 0.1, False), (8, 0.1, False), (6, 0.1, True)]
)
def test_answers_may_part_at_near_ties_alone(monkeypatch: Any, token: int, margin: float, passes: bool) -> None:
    """A token that is none of the likeliest is as far away as the last of these at least."""
    monkeypatch.setattr("glmtune.exports.verification.encode_prompt", lambda *_: [1])
    monkeypatch.setattr("glmtune.exports.verification.along", lambda *_: [torch.zeros(1, 3)])
    monkeypatch.setattr("glmtune.exports.verification.relative_difference", lambda *_: 0.0)
    now = Completion("36" if token == 6 else f"3{token}", [3, token], 1, "length")
    monkeypatch.setattr("glmtune.exports.verification.ask", lambda *_: [now])
    asked: Any = (made(margin, 0.5, [True]), None, None, EXAMPLES[:1], SETTINGS, TASK, torch.bfloat16)
    if not passes:
        with pytest.raises(UserError, match=r"'36', and their logits are .* apart, 0\.5 is what rounding explains"):
            compare(*asked)
        return
    found = compare(*asked)
    assert found["equal_answers"] == int(token == 6)
    assert ("1 of 1 answers part from the run's, all at near ties" in describe_rounding(found)) == (token != 6)


def test_an_export_that_answers_worse_is_refused(tiny: tuple[Any, Any]) -> None:
    """By more than chance: nine of ten, of which none is right any more."""
    reference = reference_of(tiny)
    never: Any = Sums(lambda text: False)
    with pytest.raises(UserError, match="it answers worse: 0 of 10 examples got better and 10 got worse"):
        compare(reference, *tiny, EXAMPLES, SETTINGS, never, torch.float32)
    few = replace(reference, correct=[True, *([False] * 9)])
    assert "this may be chance" in compare(few, *tiny, EXAMPLES, SETTINGS, never, torch.float32)["statement"]
    found = compare_quantized(reference, *tiny, EXAMPLES, SETTINGS, never)  # of which nothing is promised
    assert found["equal_answers"] == 10 and found["accuracy"] == 0


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_merging_in_16_bits_passes(tiny_run: Run, tmp_path: Path, precision: Any) -> None:
    """And is told in one line, which stands in the record, too."""
    told = io.StringIO()
    console = Console(file=told, width=1000)
    place = export.run(tiny_run.folder.path, output=str(tmp_path / "out"), precision=precision, console=console)
    checked = read_json(place / "glmtune.json")["verification"]
    assert checked["dtype"] == precision and 0 < checked["logits_difference"] <= 1.5 * checked["noise"]
    assert describe_rounding(checked) in told.getvalue()


def test_of_answers_that_call_tools_no_accuracy_is_told(tiny: tuple[Any, Any]) -> None:
    task: Any = find("glmtune.tasks", "arithmetic")
    calling = task(task.Settings(style="tool"))
    found = compare(reference_of(tiny, task=calling), *tiny, EXAMPLES, SETTINGS, calling, torch.float32)
    assert "accuracy" not in found
