"""The loop: what must not matter does not, and what was stopped goes on as if it had not been."""

import importlib.util
import json
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainingArguments

from glmtune import registry
from glmtune.config import load_recipe
from glmtune.data import EncodedDraws
from glmtune.data.collation import Collator
from glmtune.data.encoder import Encoder
from glmtune.examples import Example
from glmtune.models import loading
from glmtune.runtime import RunFolder, UserError, seed_everything
from glmtune.training import trainer
from glmtune.training.arguments import make_arguments
from glmtune.training.run_trainer import DivergenceError, RunTrainer
from glmtune.training.trainer import make_trainer

EXAMPLES = [Example(f"{a}+{b}=", f"{a}+{b}={a + b}" + " and so on" * (a % 3)) for a in range(4) for b in (1, 23)]

Weights = dict[str, Tensor]


@dataclass
class Judge:
    """Says that the model is as good as scripted, and keeps the weights that it saw."""

    script: Iterable[float] = ()
    seen: list[Weights] = field(default_factory=list)
    at: dict[int, Callable[[], Any]] = field(default_factory=dict)  # what happens at the nth call

    def __call__(self, model: Any) -> dict[str, Any]:
        assert not model.training
        self.seen.append(weights_of(model))
        self.at.get(len(self.seen), lambda: None)()
        scores = dict(enumerate(self.script, start=1))
        return {"accuracy": scores.get(len(self.seen), 0.0), "accuracy_ci95": [0.0, 1.0], "n": 7}


def weights_of(model: Any) -> Weights:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def same(left: Weights, right: Weights, atol: float = 0.0) -> bool:
    return left.keys() == right.keys() and all(
        torch.allclose(left[name], right[name], rtol=0, atol=atol) for name in left
    )


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    """step -> loss; every step may be logged once."""
    logged = [(record["step"], record["loss"]) for record in log_of(folder) if "loss" in record]
    assert len(dict(logged)) == len(logged)
    return dict(logged)


@pytest.fixture
def learn(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Weights]:
    """`learn("run", "training.batch_size=2", ...)`: the loop alone, on `EXAMPLES`, in `tmp_path / "run"`."""

    def run(name: str, *settings: str, steps: int = 4, judge: Any = None) -> Weights:
        recipe = load_recipe(
            None,
            [
                f"model.path={tiny_checkpoint}",
                "method={name: lora, rank: 4}",
                "training.batch_size=4",
                "training.learning_rate=0.01",
                "training.logging_steps=1",
                *settings,
            ],
        )
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        seed_everything(recipe.seed)
        base, tokenizer = loading.load_model(recipe.model)
        method = registry.find("glmtune.methods", recipe.method.name)(recipe.method)
        model = method.apply(base)
        dataset = EncodedDraws(EXAMPLES, Encoder(tokenizer))
        groups = method.parameter_groups(model)
        make_trainer(model, tokenizer, dataset, recipe, steps, judge or Judge(), RunFolder(folder), groups).run()
        return weights_of(model)

    return run


class WidePadding(Collator):
    """Pads sixteen tokens more than needed."""

    def __call__(self, encodings: list[Any]) -> dict[str, Tensor]:
        longest = max(encodings, key=lambda encoding: len(encoding["input_ids"]))
        extra = {"input_ids": longest["input_ids"] + [3] * 16, "labels": longest["labels"] + [-100] * 16, "record": -1}
        batch = super().__call__([*encodings, extra])
        return {name: rows if name == "logits_to_keep" else rows[:-1] for name, rows in batch.items()}


SPLITS = {"two": (4, 2, Collator), "eight": (1, 8, Collator), "padded": (8, 1, WidePadding)}


@pytest.mark.parametrize("method", ["lora", "full", "freeze, num_layers: 1", "ptuning_v2, dropout: 0"])
def test_one_batch_is_many_micro_batches(
    learn: Callable[..., Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The examples differ in their number of target tokens, so a mean of means would be another loss."""
    common = (f"method={{name: {method}}}", "training.learning_rate=2e-4")
    whole = learn("whole", *common, "training.batch_size=8")
    for name, (batch_size, micro_batches, collator) in SPLITS.items():
        monkeypatch.setattr(trainer, "Collator", collator)
        accumulation = f"training.gradient_accumulation_steps={micro_batches}"
        parts = learn(name, *common, f"training.batch_size={batch_size}", accumulation)
        assert same(whole, parts, atol=1e-5), name
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "whole"), abs=1e-5), name


def test_the_seed_determines_the_run(learn: Callable[..., Weights]) -> None:
    first, again, other = (learn(str(i), "method.dropout=0.2", f"seed={seed}") for i, seed in enumerate((1, 1, 2)))
    assert same(first, again)
    assert not same(first, other, atol=1e-3)


@pytest.mark.parametrize("method", ["{name: lora, rank: 4, dropout: 0.2}", "{name: ptuning_v2, num_virtual_tokens: 3}"])
def test_recomputed_activations_change_nothing(
    learn: Callable[..., Weights], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from glmtune.models.chatglm.modeling_chatglm import ChatGLMMLP

    calls = []
    forward = ChatGLMMLP.forward
    monkeypatch.setattr(ChatGLMMLP, "forward", lambda *args: calls.append(1) or forward(*args))  # type: ignore[func-returns-value]
    # Dropout of a prefix is drawn in another order when it is drawn layer by layer again; none at all is the same.
    dropout = "method.dropout=0" if "ptuning" in method else "method.dropout=0.2"
    plain = learn("plain", f"method={method}", dropout)
    once = len(calls)
    recomputed = learn("recomputed", f"method={method}", dropout, "training.gradient_checkpointing=true")
    assert same(plain, recomputed, atol=1e-6)
    assert len(calls) - once > once


def test_a_bfloat16_base_learns_in_fp32(learn: Callable[..., Weights], tmp_path: Path) -> None:
    weights = learn("run", "model.dtype=bfloat16")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert not same(weights, learn("fp32"))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "fp32"), rel=0.02)


@pytest.mark.parametrize("recompute", [False, True])
def test_updates_take_16_bits_as_they_are(
    learn: Callable[..., Weights], monkeypatch: pytest.MonkeyPatch, recompute: bool
) -> None:
    """Inputs that are not turned to fp32 and back teach the same."""
    settings = "model.dtype=bfloat16", f"training.gradient_checkpointing={recompute}"
    uncast = learn("uncast", *settings)
    monkeypatch.setattr("glmtune.training.trainer.uncast_inputs", lambda model: nullcontext())
    assert same(uncast, learn("cast", *settings), atol=0)


def kill() -> None:
    raise RuntimeError("the power is gone")


STOPS = {
    "killed": ({2: kill}, RuntimeError),
    "Ctrl-C": ({1: lambda: signal.raise_signal(signal.SIGINT)}, KeyboardInterrupt),
}


METHODS = [
    "{name: lora, rank: 4, dropout: 0.2}",
    "{name: lora, rank: 4, init: pissa, lora_plus_ratio: 4}",
    "{name: full}",
    "{name: freeze, num_layers: 1}",
    "{name: ptuning_v2, num_virtual_tokens: 3, prefix_projection: true, encoder_hidden_size: 8}",
]


@pytest.mark.parametrize("method", METHODS)
def test_resumed_is_never_stopped(learn: Callable[..., Weights], tmp_path: Path, method: str) -> None:
    """Eight steps of four are four passes over the examples, so the stop is in the middle of them."""
    settings = (f"method={method}", "training.eval_steps=3")
    script = [0.1, 0.1, 0.3]
    expected = learn("whole", *settings, steps=8, judge=Judge(script))
    for stop, (at, error) in STOPS.items():
        with pytest.raises(error):
            learn(stop, *settings, steps=8, judge=Judge(script, at=at))
        assert max(losses(tmp_path / stop)) < 8
        resumed = learn(stop, *settings, steps=8, judge=Judge(script[1:]))
        assert same(resumed, expected, atol=1e-6), stop
        assert losses(tmp_path / stop) == pytest.approx(losses(tmp_path / "whole"), abs=1e-6), stop
        seconds = [record["seconds"] for record in log_of(tmp_path / stop)]
        assert seconds == sorted(seconds), stop


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """What a shell starts in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_a_second_ctrl_c_ends_at_once(learn: Callable[..., Weights], tmp_path: Path) -> None:
    judge = Judge(at={1: lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)]})
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        learn("run", "training.eval_steps=2", judge=judge)
    assert list(losses(tmp_path / "run")) == [1, 2]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("steps", [4, 5])
def test_a_complete_run_is_resumed_without_a_step(learn: Callable[..., Weights], tmp_path: Path, steps: int) -> None:
    """Also where it ended in the middle of a pass over the examples."""
    script, judge = [0.2, 0.9, 0.4, 0.5], Judge()
    complete = learn("run", "training.eval_steps=1", judge=Judge(script), steps=steps)
    log = log_of(tmp_path / "run")
    assert same(learn("run", "training.eval_steps=1", judge=judge, steps=steps), complete)
    assert judge.seen == []
    assert log_of(tmp_path / "run") == log


def test_resuming_without_a_checkpoint_is_beginning(learn: Callable[..., Weights]) -> None:
    assert same(learn("run"), learn("other"))


def test_a_half_written_checkpoint_is_passed_over(learn: Callable[..., Weights], tmp_path: Path) -> None:
    expected = learn("run", "training.eval_steps=2")
    shutil.copytree(tmp_path / "run/checkpoints/checkpoint-2", tmp_path / "run/checkpoints/checkpoint-3")
    for name in ("checkpoint-3", "checkpoint-4"):
        (tmp_path / "run/checkpoints" / name / "trainer_state.json").unlink()
    assert same(learn("run", "training.eval_steps=2"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "script", "best"),
    [
        pytest.param("{name: lora, rank: 4}", [0.1, 0.9, 0.3, 0.5], 2, id="middle"),
        pytest.param("{name: full}", [0.1, 0.9, 0.3, 0.5], 2, id="middle, full"),
        pytest.param("{name: freeze, num_layers: 1}", [0.1, 0.9, 0.3, 0.5], 2, id="middle, freeze"),
        pytest.param("{name: full}", [0.9, 0.1, 0.1, 0.1], 1, id="first"),
        pytest.param("{name: freeze, num_layers: 1}", [0.1, 0.5, 0.5, 0.2], 3, id="later of equals"),
        pytest.param("{name: lora, rank: 4}", [0.0, 0.0, 0.0, 0.0], 4, id="last of none"),
    ],
)
def test_the_best_remains(
    learn: Callable[..., Weights], tmp_path: Path, method: str, script: list[float], best: int
) -> None:
    judge = Judge(script)
    final = learn("run", f"method={method}", "training.eval_steps=1", "training.save_total_limit=1", judge=judge)
    assert len(judge.seen) == 4
    assert [same(final, seen) for seen in judge.seen].index(True) + 1 == best
    kept = {int(path.name.removeprefix("checkpoint-")) for path in (tmp_path / "run/checkpoints").iterdir()}
    assert kept == {best, 3, 4}


def test_the_best_is_found_in_a_moved_folder(learn: Callable[..., Weights], tmp_path: Path) -> None:
    judge = Judge([0.1, 0.9, 0.3, 0.5])
    learn("run", "training.eval_steps=1", judge=judge)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert same(learn("moved", "training.eval_steps=1"), judge.seen[1])


def test_the_last_step_is_judged_and_logged(learn: Callable[..., Weights], tmp_path: Path) -> None:
    judge = Judge()
    learn("run", "training.eval_steps=3", "training.logging_steps=3", steps=5, judge=judge)
    assert [record["step"] for record in log_of(tmp_path / "run") if "accuracy" in record] == [3, 5]
    assert list(losses(tmp_path / "run")) == [3, 5]


EARLY = ("training.eval_steps=1", "training.early_stopping_patience=2")


def test_early_stopping_stops(learn: Callable[..., Weights], tmp_path: Path) -> None:
    judge = Judge([0.1, 0.5, 0.3, 0.5])
    final = learn("run", *EARLY, steps=20, judge=judge)
    assert len(judge.seen) == 4
    assert same(final, judge.seen[3])
    again = Judge([0.9] * 20)
    assert same(learn("run", *EARLY, steps=20, judge=again), final)
    assert again.seen == []


def test_patience_goes_on_counting_after_a_stop(learn: Callable[..., Weights]) -> None:
    with pytest.raises(RuntimeError):
        learn("run", *EARLY, steps=20, judge=Judge([0.5, 0.4], at={3: kill}))
    judge = Judge([0.4, 0.9])
    learn("run", *EARLY, steps=20, judge=judge)
    assert len(judge.seen) == 1


def test_the_log(learn: Callable[..., Weights], tmp_path: Path) -> None:
    learn("run", "training.eval_steps=2", judge=Judge([0.25, 0.75]))
    log = log_of(tmp_path / "run")
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4]
    assert all({"loss", "grad_norm", "learning_rate", "epoch", "seconds"} <= record.keys() for record in log[:2])
    judged = [record for record in log if "accuracy" in record]
    assert [(record["step"], record["accuracy"], record["n"]) for record in judged] == [(2, 0.25, 7), (4, 0.75, 7)]
    assert all(record["accuracy_ci95"] == [0.0, 1.0] and record["duration"] >= 0 for record in judged)
    assert log[-1]["train_runtime"] > 0
    assert [record["seconds"] for record in log] == sorted(record["seconds"] for record in log)


def test_a_full_disk_loses_no_checkpoint(
    learn: Callable[..., Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("training.eval_steps=2",)
    expected = learn("whole", *settings)
    save, saved = torch.save, []

    def save_while_there_is_room(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        saved.append(str(file))
        save(value, file, *args, **kwargs)
        if "checkpoint-4" in str(file):
            raise RuntimeError("PytorchStreamWriter failed writing file data: file write failed")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_while_there_is_room)
        with pytest.raises(UserError, match=r"checkpoint of step 4 cannot be written \(\d+ MB free") as error:
            learn("run", *settings)
    assert f"glmtune train --resume {tmp_path / 'run'}" in str(error.value)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["checkpoint-2"]
    assert same(learn("run", *settings), expected, atol=1e-6)


def test_a_log_that_cannot_be_written_is_told(learn: Callable[..., Weights], tmp_path: Path) -> None:
    (tmp_path / "run/log.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"log\.jsonl: cannot be written: Is a directory"):
        learn("run")


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_holds_what_is_trained(learn: Callable[..., Weights], tmp_path: Path, method: str) -> None:
    trained = learn("run", f"method={method}")
    kept = load_file(tmp_path / "run/checkpoints/checkpoint-4/trainable.safetensors")
    assert same(kept, trained)
    assert not list((tmp_path / "run/checkpoints/checkpoint-4").glob("*model*"))


def test_a_changed_recipe_is_not_resumed(learn: Callable[..., Weights]) -> None:
    learn("run", "training.eval_steps=2")
    with pytest.raises(UserError, match=r"does not fit the recipe: .*lora_A.* is \(4, 32\) there and \(2, 32\)"):
        learn("run", "method.rank=2", steps=8)


def test_groups_learn_at_their_own_rates(learn: Callable[..., Weights], monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    create = RunTrainer.create_optimizer
    monkeypatch.setattr(RunTrainer, "create_optimizer", lambda *args: made.append(create(*args)) or made[-1])
    learn("run", "method.lora_plus_ratio=4", "training.weight_decay=0.1")
    assert sorted(group["initial_lr"] for group in made[0].param_groups) == [0.01, 0.04]
    assert {group["weight_decay"] for group in made[0].param_groups} == {0.1}


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_small_optimizers_learn_alike(
    learn: Callable[..., Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """Matrices of 4,096 numbers are the smallest that bitsandbytes keeps moments of 8 bits for."""
    pytest.importorskip("bitsandbytes")
    made = []
    create = RunTrainer.create_optimizer
    monkeypatch.setattr(RunTrainer, "create_optimizer", lambda *args: made.append(create(*args)) or made[-1])
    method = "method={name: lora, rank: 128}"
    learn("plain", method, "training.learning_rate=0.001", steps=8)
    learn("small", method, "training.learning_rate=0.001", f"training.optimizer={optimizer}", steps=8)
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "plain"), rel=0.02)
    kinds = {state["state1"].dtype for weight, state in made[1].state.items() if weight.numel() >= 4096}
    assert kinds == {torch.uint8 if "8bit" in optimizer else torch.float32}


def test_small_optimizers_need_their_library(learn: Callable[..., Weights], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(UserError, match=r"training\.optimizer=adamw_8bit needs bitsandbytes.*pip install"):
        learn("run", "training.optimizer=adamw_8bit")


def test_fp16_is_not_trained_without_loss_scaling(learn: Callable[..., Weights]) -> None:
    with pytest.raises(UserError, match=r"model\.dtype=float16: on cpu there is no loss scaling"):
        learn("run", "model.dtype=float16")


@pytest.mark.parametrize("method", ["{name: lora, rank: 4}", "{name: full}"])
def test_logits_keep_the_precision_of_the_computation(
    learn: Callable[..., Weights], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """accelerate would turn all of them to fp32."""
    seen = []
    plain = trainer.target_loss
    monkeypatch.setattr(trainer, "target_loss", lambda *args: seen.append(args[0].dtype) or plain(*args))
    learn("run", f"method={method}", "model.dtype=bfloat16")
    assert set(seen) == {torch.bfloat16}


def test_one_gpu_of_many(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would scatter every batch, and the columns of its targets, over all of them."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 4))
    recipe = load_recipe(None, [f"model.path={tiny_checkpoint}", "training.learning_rate=1"])
    arguments = make_arguments(recipe, 1, tmp_path, torch.device("cpu"))
    assert vars(arguments)["_n_gpu"] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run(
    learn: Callable[..., Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """With the best weights before it; and the next run with a lower rate need not look for the record."""
    judge = Judge([0.9, 0.1])
    plain, count = trainer.target_loss, iter(range(99))
    monkeypatch.setattr(trainer, "target_loss", lambda *args: plain(*args) * (value if next(count) == 5 else 1.0))
    told = r"loss of step 6 is (nan|inf) \(examples \d, \d, \d, \d of those drawn\)"
    with pytest.raises(DivergenceError, match=told) as error:
        learn("run", "training.eval_steps=2", steps=8, judge=judge)
    assert "lower training.learning_rate (it was 0.01" in str(error.value) and error.value.rescued
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4, 5]
    last = load_file(tmp_path / "run/checkpoints/checkpoint-4/trainable.safetensors")
    assert all(weight.isfinite().all() for weight in last.values())


@pytest.mark.parametrize(("at", "kept"), [(1, []), (2, ["checkpoint-2"])])
def test_weights_that_are_no_numbers_are_neither_judged_nor_saved(
    learn: Callable[..., Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, kept: list[str]
) -> None:
    """Nor would they be the best for scoring no worse than those before."""
    judge, evaluations = Judge([0.0, 0.0]), iter(range(1, 9))
    evaluate = RunTrainer.evaluate

    def spoil(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(evaluations) == at:
            next(iter(self.trained_weights().values())).data.fill_(float("nan"))
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(RunTrainer, "evaluate", spoil)
    with pytest.raises(DivergenceError, match=f"After step {2 * at} the weights are not finite") as error:
        learn("run", "training.eval_steps=2", judge=judge)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == kept
    assert error.value.rescued == bool(kept) and len(judge.seen) == at - 1
