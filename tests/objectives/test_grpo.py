"""GRPO: what is learned from answers and their scores, and what is said where nothing can be."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import ends

pytest.importorskip("trl")

import glmtune
from glmtune.config import GenerationSettings, load_recipe, read_log
from glmtune.data.encoding import IGNORED, encode_example
from glmtune.examples import Example
from glmtune.inference.completion import Completion, Request
from glmtune.inference.conversation import Conversation
from glmtune.inference.engine import Engine
from glmtune.messages import make_tool_call
from glmtune.objectives._grpo_answers import GroupSampler, Prompts, Sample
from glmtune.objectives._grpo_trainer import GrpoTrainer, alike, read_draw
from glmtune.objectives.grpo import Grpo
from glmtune.plan import Plan
from glmtune.plan import prepare as plan_of
from glmtune.resolution import ResolvedModel
from glmtune.runtime import RunFolder, UserError, seed_everything
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings
from glmtune.trust import Trust

SUMS = ArithmeticSettings(name="arithmetic", operators={"+": 1}, kinds=["integer"], maximum=9)
TIMES = {"seconds", "rollout_seconds", "duration", "train_runtime", "train_samples_per_second"}


def judge(model: Any) -> dict[str, Any]:
    return {"accuracy": 0.5, "n": 1}


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings by which a model of random weights learns to write even tokens."""
    own = tmp_path_factory.mktemp("rewards") / "even.py"
    own.write_text(
        "def reward(rollout):\n"
        "    written = rollout.exchange.turns[0].token_ids\n"
        "    return sum(token % 2 == 0 for token in written) / len(written)\n"
    )
    return [
        *("objective.name=grpo", f"objective.rewards=[{own}]", "objective.mask_truncated_completions=false"),
        *("objective.num_generations=4", "objective.num_probed=3"),
    ]


@pytest.fixture
def make(tiny_settings: list[str], grpo: list[str], tmp_path: Path) -> Callable[..., Any]:
    """`make("training.steps=2")`: a trainer of tiny settings."""
    made: list[Path] = []

    def trainer(*settings: str) -> Any:
        recipe = load_recipe(None, [*tiny_settings, *grpo, *settings])
        made.append(tmp_path / f"run{len(made)}")
        made[-1].mkdir()
        plan = plan_of(ResolvedModel(recipe), RunFolder(made[-1]))
        seed_everything(recipe.seed)
        base, _ = plan.model.load()
        model = plan.method.apply(base)
        plan.method.initialize(model, [torch.tensor(plan.dataset[0]["input_ids"])])
        found = plan.objective.trainer(plan, model, judge)

        return found

    return trainer


def weights_of(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.trained_weights().items()}


def logged(folder: Path) -> list[dict[str, Any]]:
    """The figures of a log that do not tell the time."""
    records = [record for record in read_log(RunFolder(folder)) if "train_runtime" not in record]
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


# What is learned

METHODS = {
    "lora": ["method={name: lora, rank: 4}"],
    "full": ["method={name: full}"],
    "ptuning_v2": ["method={name: ptuning_v2, num_virtual_tokens: 4}"],
}
FAMILIES = ["ChatGLM-6B v1.1", "GLM-4-9B", "Llama"]
HOW = {
    "bf16": ["model.dtype=bfloat16"],
    "recomputed": ["model.dtype=float32", "training.gradient_checkpointing=true"],
}


@pytest.mark.parametrize(
    ("family", "how"), [*((family, "fp32") for family in FAMILIES), *((FAMILIES[0], how) for how in HOW)]
)
@pytest.mark.parametrize("method", METHODS)
def test_every_family_learns_by_every_method(
    make: Callable[..., Any], checkpoint_of: Callable[[str], Path], family: str, method: str, how: str
) -> None:
    """Answers are drawn from what is trained, it changes, and the model is left as it was but for that."""
    precision = HOW.get(how, ["model.dtype=float32"])
    trainer = make(f"model.path={checkpoint_of(family)}", *METHODS[method], *precision, "training.steps=2")
    before, model = weights_of(trainer), trainer.unwrapped
    trainer.run()
    log = [record for record in logged(trainer.folder.path) if "loss" in record]
    assert len(log) == 2 and all(0 < record["rewards/even"] < 1 and record["entropy"] > 0 for record in log)
    after = weights_of(trainer)
    assert any(not torch.equal(before[name], weight) for name, weight in after.items())
    assert all(weight.isfinite().all() for weight in after.values())
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    assert "forward" not in vars(base) and not model.training


def gradients_after(trainer: Any, samples: Sequence[Any]) -> dict[str, torch.Tensor]:
    """The gradients of all that is learned from samples, as a step adds them up."""
    trainer.batches = trainer.batches_of(trainer.measured(samples))
    model = trainer.unwrapped.eval()
    model.zero_grad()
    for batch in trainer.batches:
        trainer.compute_loss(model, dict(batch)).backward()
    return {name: weight.grad.clone() for name, weight in trainer.trained_weights().items()}


def asked(trainer: Any, count: int) -> list[Any]:
    """The answers to some prompts."""
    groups: list[Any] = trainer.answers.ask(0, 0, trainer.answers.prompts.of(0, 0, count))
    return groups


def some_samples(trainer: Any) -> list[Any]:
    samples, _ = trainer.answers.draw(0)
    assert len(samples) >= 8
    return [one._replace(token_ids=one.token_ids[: 2 + place % 4]) for place, one in enumerate(samples)]


@pytest.mark.parametrize("loss", ["dapo", "dr_grpo", "grpo"])
def test_micro_batches_have_the_gradient_of_one_batch(make: Callable[..., Any], loss: str) -> None:
    whole = make(f"objective.loss_type={loss}", "training.batch_size=16")
    parts = make(f"objective.loss_type={loss}", "training.batch_size=3", "training.gradient_accumulation_steps=8")
    samples = some_samples(whole)[:11]
    first, second = gradients_after(whole, samples), gradients_after(parts, samples)
    assert (len(whole.batches), len(parts.batches)) == (1, 4)
    for name, gradient in first.items():
        assert torch.allclose(gradient, second[name], rtol=1e-4, atol=1e-7), name
    assert any(gradient.abs().max() > 1e-4 for gradient in first.values())


def test_what_is_learned_at_a_time_is_of_like_length() -> None:
    rng = random.Random(0)
    for most in (1, 4, 64):
        lengths = sorted(int(2 ** rng.uniform(0, 11)) for _ in range(100))
        samples = [Sample([0], [0] * (length - 1), 1.0) for length in lengths]
        places = list(alike(samples, most))
        assert [at for part in places for at in range(len(samples))[part]] == list(range(len(samples)))
        for part, after in zip(places, [*places[1:], None], strict=True):
            assert part.stop - part.start <= most and lengths[part.stop - 1] <= 1.5 * lengths[part.start]
            if after is not None and part.stop - part.start < most:  # it ends where the next row is much longer
                assert lengths[after.start] > 1.5 * lengths[part.start]


def test_the_gradient_is_that_of_the_policy(make: Callable[..., Any]) -> None:
    """-A log p(token) over all tokens of the step, by a plain pass over each row alone."""
    trainer = make("training.batch_size=8", "objective.temperature=1.3")
    samples = some_samples(trainer)[:6]
    found = gradients_after(trainer, samples)
    model = trainer.unwrapped
    model.zero_grad()
    tokens = sum(len(sample.token_ids) for sample in samples)
    for ids, answer, advantage, *_ in samples:
        logits = model(input_ids=torch.tensor([[*ids, *answer]]), use_cache=False).logits[0, len(ids) - 1 : -1]
        logps = (logits / 1.3).log_softmax(-1)[range(len(answer)), list(answer)]
        (-advantage * logps.sum() / tokens).backward()
    for name, weight in trainer.trained_weights().items():
        assert torch.allclose(weight.grad, found[name], rtol=1e-3, atol=1e-6), name


def test_positions_are_those_of_rows_alone(
    make: Callable[..., Any], checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Beside a longer prompt, tokens of GPT-2 are as likely as where they were written; nothing of it stays."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer, place = AutoTokenizer.from_pretrained(checkpoint_of("Llama")), tmp_path / "gpt2"
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**sizes, **ends, initializer_range=0.5)).save_pretrained(place)
    tokenizer.save_pretrained(place)
    trainer = make(f"model.path={place}", "model.dtype=float32", "training.batch_size=16", "training.steps=1")
    assert trainer.read_otherwise() > 1
    trainer.check_padding()
    assert trainer.read_otherwise() < 1e-3
    trainer.run()
    assert not trainer.unwrapped.get_base_model()._forward_pre_hooks


@pytest.mark.parametrize("family", ["ChatGLM-6B v1.1", "GLM-4-9B", "Llama"])
def test_prefixes_are_as_far_from_padded_rows(
    make: Callable[..., Any], checkpoint_of: Callable[[str], Path], family: str
) -> None:
    method = "method={name: ptuning_v2, num_virtual_tokens: 4}"
    trainer = make(f"model.path={checkpoint_of(family)}", "model.dtype=float32", method)
    trainer.check_padding()
    assert trainer.read_otherwise() < 1e-3


def test_what_is_better_becomes_likelier(make: Callable[..., Any]) -> None:
    trainer = make("training.steps=8", "training.batch_size=32", "training.warmup_ratio=0")
    trainer.run()
    rewards = [record["reward"] for record in logged(trainer.folder.path) if "reward" in record]
    assert sum(rewards[-2:]) / 2 > rewards[0] + 0.1


def test_answers_that_were_cut_off_teach_nothing(make: Callable[..., Any]) -> None:
    kept, masked = make(), make("objective.mask_truncated_completions=true")
    [group] = asked(kept, 1)
    cut, *others = group.rollouts
    assert cut.exchange.completion.finish_reason == "length"
    whole = [
        replace(one, exchange=replace(one.exchange, completion=replace(one.exchange.completion, finish_reason="stop")))
        for one in others
    ]
    group = replace(group, rollouts=[cut, *whole])
    assert masked.answers.samples_of([group]) == kept.answers.samples_of([group])[1:]
    assert masked.answers.describe([group])["truncated"] == 1 / 4


def test_advantages(make: Callable[..., Any]) -> None:
    """Of each group, they sum up to nothing; they are divided by what the setting says."""
    plain, by_group = make(), make("objective.scale_rewards=group")
    groups = [group for group in asked(plain, 3) if group.varies]
    size = plain.options.num_generations
    for trainer in (plain, by_group):
        found = [sample.advantage for sample in trainer.answers.samples_of(groups)]
        for number, group in enumerate(groups):
            part = torch.tensor(found[number * size : (number + 1) * size], dtype=torch.float64)
            totals = torch.tensor(group.totals, dtype=torch.float64)
            divisor = totals.std() + 1e-4 if trainer is by_group else 1.0
            assert torch.allclose(part, (totals - totals.mean()) / divisor)


def test_the_divergence_is_from_the_model_as_it_was(make: Callable[..., Any]) -> None:
    for method in ("lora", "full"):
        trainer = make(*METHODS[method], "objective.beta=0.1", "training.steps=3", "training.warmup_ratio=0")
        start = weights_of(trainer)
        trainer.run()
        divergences = [record["kl"] for record in logged(trainer.folder.path) if "kl" in record]
        assert divergences[0] == pytest.approx(0, abs=1e-6) and divergences[-1] > 1e-5
        now = weights_of(trainer)
        with trainer.as_it_was():
            assert all(torch.equal(weight, start[name]) for name, weight in weights_of(trainer).items())
        assert all(torch.equal(weight, now[name]) for name, weight in weights_of(trainer).items())


def test_several_steps_by_the_same_answers_are_bounded(make: Callable[..., Any]) -> None:
    trainer = make(
        *("objective.num_iterations=3", "objective.epsilon=0.0001", "objective.epsilon_high=0.0001"),
        *("training.steps=3", "training.warmup_ratio=0"),
    )
    trainer.run()
    log = [record for record in logged(trainer.folder.path) if "loss" in record]
    assert ["reward" in record for record in log] == [True, False, False]
    assert log[0]["clip_ratio"] == 0 < log[2]["clip_ratio"]


def test_a_draw_without_anything_to_learn_is_not_repeated(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights would give the same answers to the same prompts."""
    trainer = make("objective.num_iterations=3", "training.steps=6", "objective.max_refills=1")
    ask, asked = GroupSampler.ask, []

    def equal(self: GroupSampler, number: int, refill: int, examples: Any) -> list[Any]:
        asked.append((number, refill))
        return [replace(group, totals=[0.0] * len(group.totals)) for group in ask(self, number, refill, examples)]

    monkeypatch.setattr(GroupSampler, "ask", equal)
    trainer.run()
    assert asked == [(0, 0), (0, 1), (1, 0), (1, 1)]


# Which prompts are asked


def test_records_are_passed_through_and_a_step_depends_on_its_number_alone() -> None:
    records = [Example(str(number), "1") for number in range(7)]
    asked = [Prompts(None, records, 5, 3).of(step, 0, 3) for step in range(7)]  # type: ignore[arg-type]
    again = Prompts(None, records, 5, 3)  # type: ignore[arg-type]
    assert [again.of(step, 0, 3) for step in reversed(range(7))] == asked[::-1]
    for first in (0, 7, 14):  # place of a pass, in steps of three
        of_pass = [example.prompt for step in asked[first // 3 : (first + 6) // 3 + 1] for example in step]
        assert set(of_pass) == {one.prompt for one in records}
    assert asked[:2] != asked[2:4] and sum(map(len, asked)) >= 7 * 3 - 2
    refilled = again.of(2, 3, 3)
    assert refilled == again.of(2, 3, 3) and refilled != again.of(3, 3, 3)


@pytest.mark.parametrize("number", [2, 5, 7])
def test_no_record_is_asked_twice_in_a_step(number: int) -> None:
    """Nor where a pass ends in it, or a step asks more than there are; refills end with the records."""
    records = [Example(str(place), "1") for place in range(number)]
    prompts = Prompts(None, records, 5, 3)  # type: ignore[arg-type]
    for step in range(9):
        asked: list[str] = []
        while found := prompts.of(step, len(asked), 3):
            asked += [str(example.prompt) for example in found]
        assert sorted(asked) == [str(example.prompt) for example in records]


def test_drawn_prompts_are_those_of_the_training_split() -> None:
    task = Arithmetic(SUMS)
    drawn = [example for step in range(20) for example in Prompts(task, None, 0, 4).of(step, step % 3, 4)]
    assert not any(task.holds_out(example.prompt) for example in drawn)
    assert len({example.prompt for example in drawn}) > 20


def test_records_that_leave_no_room_are_told_or_left_out(
    tiny_settings: list[str], grpo: list[str], write_records: Any, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{number}+1=", "target": str(number + 1)} for number in range(12)]
    file = write_records(*rows, {"prompt": "1" * 200, "target": "1"})
    given = [one for one in tiny_settings if not one.startswith(("task.", "training.steps"))]
    settings = [*given, *grpo, "task.name=instructions", f"task.file={file}", "task.held_out=0.25", "training.epochs=2"]

    def dataset(*more: str) -> tuple[Any, int]:
        plan = Plan(ResolvedModel(load_recipe(None, [*settings, *more])), RunFolder(tmp_path))
        return plan.objective.dataset(plan.preparation)  # type: ignore[no-any-return]

    with pytest.raises(
        UserError, match=r"line 13 of .*records\.jsonl has 2\d\d tokens; with generation\.max_new_tokens=6"
    ):
        dataset()
    found, steps = dataset("data.too_long=drop", "training.batch_size=8", "objective.num_iterations=3")
    number = len(found.examples)
    assert 6 <= number <= 12 and all(len(example.prompt) < 9 for example in found.examples)
    assert steps == -(-2 * number // 2) * 3


def test_groups_of_equal_answers_are_replaced(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as are missing are asked for, and never more than a step has."""
    trainer = make("training.batch_size=16", "objective.max_refills=2")
    asked: list[tuple[int, int]] = []
    ask = GroupSampler.ask

    def mostly_equal(self: GroupSampler, number: int, refill: int, examples: Any) -> list[Any]:
        asked.append((refill, len(examples)))
        groups = ask(self, number, refill, examples)
        for group in groups[1:]:
            monkeypatch.setattr(type(group), "varies", property(lambda one: one in keep))
        keep.extend(groups[:1])
        return groups

    keep: list[Any] = []
    monkeypatch.setattr(GroupSampler, "ask", mostly_equal)
    samples, figures = trainer.answers.draw(0)
    assert asked == [(0, 4), (1, 4), (2, 4)] and figures["refills"] == 2
    assert figures["frac_reward_zero_std"] == pytest.approx(9 / 12)
    assert 0 < len(samples) <= 12


# A run


@pytest.fixture(scope="module")
def run(train_tiny: Any, grpo: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of four steps. No test may change its folder."""
    folder = tmp_path_factory.mktemp("grpo") / "run"
    return train_tiny(folder, *grpo, "training.eval_steps=2")


def test_a_run_is_reported_listed_and_exported(run: Any, read_page: Any, tmp_path: Path) -> None:
    report = json.loads((run.path / "report.json").read_text())
    probe = report["probe"]
    assert probe["before"]["prompts"] == probe["after"]["prompts"] == 3
    assert {"pass_at_1", "pass_at_4", "frac_reward_zero_std", "rewards/even"} <= probe["after"].keys()
    log = logged(run.path)
    assert log[0] | probe["before"] == log[0] and log[0]["step"] == 0
    steps = [record for record in log if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    figures = {"reward", "rewards/even", "frac_reward_zero_std", "completion_length", "truncated", "entropy"}
    assert all(figures | {"clip_ratio", "refills"} <= record.keys() for record in steps)
    assert [record["step"] for record in log if "accuracy" in record] == [0, 2, 4]
    page = read_page((run.path / "report.html").read_text(encoding="utf-8"))
    assert "Rewards of the answers" in page.text and "pass@4" in page.text
    assert glmtune.export(run.path, output=tmp_path / "whole", trust_code=True).is_dir()
    assert (run.path / "reward.png").is_file()
    saved = load_recipe(run.path / "recipe.yaml", trust=Trust(everything=True))
    assert (saved.training.lr_scheduler_type, saved.training.logging_steps) == ("constant_with_warmup", 1)


def test_a_run_that_was_stopped_goes_on_with_the_same_rewards(
    run: Any, train_tiny: Any, grpo: list[str], tmp_path: Path
) -> None:
    from glmtune.commands import train

    halved = train_tiny(tmp_path / "halved", *grpo, "training.eval_steps=2", "training.steps=2")
    train.run(resume=str(halved.path), overrides=["training.steps=4"], trust=Trust(everything=True))
    whole, resumed = logged(run.path), logged(tmp_path / "halved")
    figures = [[record.get("reward") for record in log] for log in (whole, resumed)]
    assert figures[0] == figures[1] and len({reward for reward in figures[0] if reward is not None}) > 2
    states = [
        torch.load(folder / "checkpoints/checkpoint-4/optimizer.pt", weights_only=True)["state"]
        for folder in (run.path, tmp_path / "halved")
    ]
    for number, state in states[0].items():
        assert torch.equal(state["exp_avg"], states[1][number]["exp_avg"])


# Steps of one answer, steps that share one, and what is logged rarely.
COURSES = {
    "each": ["training.eval_steps=2"],
    "shared": ["objective.num_iterations=3", "objective.beta=0.1", "training.eval_steps=4", "training.logging_steps=3"],
    "as groups": ["objective.num_iterations=3", "objective.loss_type=dr_grpo", "training.batch_size=3"],
}
GROUPED = ["training.gradient_accumulation_steps=4", "training.logging_steps=2", "training.eval_steps=2"]


def killed_in(folder: Path, call: int, settings: Sequence[str], train_tiny: Any) -> None:
    """Train, and be killed by SIGKILL as a backward pass of some batch begins."""
    compute, count = GrpoTrainer.compute_loss, itertools.count(1)

    def fatal(*args: Any, **options: Any) -> Any:
        if next(count) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(*args, **options)

    GrpoTrainer.compute_loss = fatal
    train_tiny(folder, *settings)


@pytest.mark.parametrize("course", COURSES)
def test_killed_in_the_midst_of_a_step_it_ends_with_the_same_bits(
    train_tiny: Any, grpo: list[str], tmp_path: Path, course: str
) -> None:
    """Whether what is learned was drawn before the last checkpoint, or is to be drawn anew; also what is logged."""
    settings = [*grpo, "training.steps=8", "method.dropout=0.2", *COURSES[course]]
    settings += GROUPED if course == "as groups" else []
    per_step = 4 if course == "as groups" else 1
    whole, folder = train_tiny(tmp_path / "whole", *settings), tmp_path / "run"
    for call in (5, 2):  # in the fifth step, and in the second after the checkpoint of the fourth
        code = ends(lambda call=call: killed_in(folder, call * per_step, settings, train_tiny))
        assert code == -signal.SIGKILL
    done = train_tiny(folder, *settings)
    assert logged(done.path) == logged(whole.path)
    weights = [(one.path / "adapter/adapter_model.safetensors").read_bytes() for one in (done, whole)]
    assert weights[0] == weights[1]
    last = [one.path / "checkpoints/checkpoint-8/trainable.safetensors" for one in (done, whole)]
    assert last[0].read_bytes() == last[1].read_bytes()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda draw: draw.update(number=7), r"it is of draw 8, not 2"),
        (lambda draw: draw["samples"][0][1].append(10**6), r"a sample is not whole"),
        (lambda draw: draw["samples"][0].__setitem__(0, [10**6]), r"a token is none of the model's"),
        (lambda draw: draw["samples"][0].__setitem__(2, "much"), r"validation error"),
        (lambda draw: draw.clear(), r"validation errors"),
    ],
)
def test_answers_of_a_checkpoint_that_are_damaged(tmp_path: Path, damage: Callable[[Any], None], told: str) -> None:
    draw: Any = {"number": 1, "samples": [[[1, 2], [3], 0.5, [-0.25], []]]}
    file = tmp_path / "draw.json"
    file.write_text(json.dumps(draw))
    assert read_draw(file, 1, 10) == [Sample([1, 2], [3], 0.5, [-0.25], [])]
    damage(draw)
    file.write_text(json.dumps(draw))
    with pytest.raises(UserError, match=rf"draw\.json is damaged: .*{told}.*Delete this checkpoint"):
        read_draw(file, 1, 10)


def test_defaults_are_the_methods_and_the_recipes_own_count(tiny_settings: list[str], tmp_path: Path) -> None:
    def completed(*settings: str) -> Any:
        given = [one for one in tiny_settings if not one.startswith(("training.learning_rate", "training.steps"))]
        recipe = load_recipe(None, [*given, *settings, "training.devices=1"])
        return Plan(ResolvedModel(recipe), RunFolder(tmp_path)).recipe.training

    named = ["objective.name=grpo", "objective.num_generations=2"]
    sft, lora = completed(), completed(*named)
    assert lora.learning_rate == sft.learning_rate / 2 and lora.steps == 100
    full = [completed("method={name: full}", *more) for more in ([], named)]
    assert full[1].learning_rate == pytest.approx(full[0].learning_rate / 20)
    assert lora.lr_scheduler_type == "constant_with_warmup" and sft.lr_scheduler_type == "cosine"
    assert completed(*named, "training.lr_scheduler_type=cosine").lr_scheduler_type == "cosine"


# Tools


class Scripted(Engine):
    """Writes, in the tokens of the model, a call to begin with and an answer after its result."""

    def __init__(self, tokenizer: Any, turns: Sequence[Sequence[int]]) -> None:
        self.tokenizer, self.turns, self.limit = tokenizer, turns, None

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        place = 0
        while place < len(requests):
            ids = self.turns[0] if place == 0 else self.turns[1]
            text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
            yield place, Completion(text, ids, len(requests[place].input_ids), "stop")
            place += 1


def test_results_of_tools_carry_no_loss(make: Callable[..., Any]) -> None:
    """Each turn of the model is a sample of its own, behind all that came before it."""
    trainer = make(
        *("task.style=tool", "task.echo=true", "objective.rewards=[correct, faithful_calls]", "training.batch_size=8"),
        "generation.max_new_tokens=40",
    )
    task, tokenizer = trainer.plan.task, trainer.plan.tokenizer
    example = task.pose(random.Random(0))
    call = make_tool_call("calculate", {"expression": str(example.prompt).rstrip("=")})
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}

    def written(prompt: Any, answer: Any) -> list[int]:
        labels = encode_example(tokenizer, prompt, answer, tools=example.tools)["labels"]
        return [label for label in labels if label != IGNORED]

    asked = [{"role": "user", "content": example.prompt}]
    turns = [
        written(asked, calling),
        written(
            [*asked, calling, {"role": "tool", "name": "calculate", "content": example.target}],
            {"role": "assistant", "content": example.target},
        ),
    ]
    conversation = Conversation.about(task, Scripted(tokenizer, turns))
    question = conversation.ask(example.prompt, GenerationSettings(max_new_tokens=40), example.tools)
    [(_, exchange)] = conversation.answer([question])
    assert [list(turn.token_ids) for turn in exchange.turns] == turns
    first, second = exchange.turns
    assert tokenizer.decode(second.input_ids).count(example.target) == 1
    assert len(second.input_ids) > len(first.input_ids)

    from glmtune.inference.rollouts import scored
    from glmtune.objectives._grpo_answers import graded

    right = scored(task, example, question, exchange)
    silent = Conversation.about(task, Scripted(tokenizer, [turns[1]]))
    [(_, wrong)] = silent.answer([question])
    group = graded(trainer.answers.rewards, [right, scored(task, example, question, wrong)])
    assert group.values[0] == {"correct": 1.0, "faithful_calls": 1.0} and group.values[1]["faithful_calls"] == 0
    samples = trainer.answers.samples_of([group])
    assert [list(one.token_ids) for one in samples] == [*turns, turns[1]]
    assert samples[0].advantage == samples[1].advantage == -samples[2].advantage > 0
    batches = trainer.batches_of(trainer.measured(samples))
    assert sum(int(batch["completion_mask"].sum()) for batch in batches) == sum(map(len, turns)) + len(turns[1])
    assert all(trainer.compute_loss(trainer.unwrapped, dict(batch)).isfinite() for batch in batches)


# What is said


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["training.devices=2"], r"objective\.name=grpo trains in one process\. Set training\.devices=1"),
        (["model.quantize_embedding=true"], r"quantize_embedding=true: .* must not be packed"),
        (["training.batch_size=6"], r"6 answers a step, .* multiple of objective\.num_generations=4"),
        (["training.batch_size=2"], r"2 answers a step"),
        (
            ["objective.rewards=[correct, faithful_calls]"],
            r"task\.name=arithmetic as it is set measures no faithful_calls",
        ),
        (["data.mixture=[{file: x.jsonl, share: 0.2}]"], r"data\.mixture: objective\.name=grpo asks the prompts"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_loaded(
    tiny_settings: list[str], grpo: list[str], tmp_path: Path, settings: list[str], told: str
) -> None:
    recipe = load_recipe(None, [*tiny_settings, *grpo, *settings])
    plan = Plan(ResolvedModel(recipe), RunFolder(tmp_path))
    preparation = plan.preparation._replace(mixed=()) if "mixture" not in settings[0] else None
    if preparation is None:
        plan = Plan(ResolvedModel(load_recipe(None, [*tiny_settings, *grpo])), RunFolder(tmp_path))
        preparation = plan.preparation._replace(recipe=recipe)
    with pytest.raises(UserError, match=told):
        plan.objective.dataset(preparation)


def test_without_trl(
    tiny_settings: list[str], grpo: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(ResolvedModel(load_recipe(None, [*tiny_settings, *grpo])), RunFolder(tmp_path))
    preparation = plan.preparation
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"trl is not installed, which needs Python 3\.11.*glmtune\[rl\]"):
        plan.objective.dataset(preparation)


def test_a_task_without_a_score(tiny_settings: list[str], grpo: list[str], tmp_path: Path) -> None:
    own = tmp_path / "poems.py"
    own.write_text(
        "from glmtune.examples import Example\nfrom glmtune.tasks import Task\n\n\n"
        "class Poems(Task):\n"
        "    def sample(self, rng, split='train'):\n"
        "        return Example(f'{rng.random()}', 'x')\n\n"
        "    def score(self, example, completion, calls=()):\n"
        "        raise NotImplementedError\n"
    )
    given = [one for one in tiny_settings if not one.startswith("task.")]
    plan = Plan(ResolvedModel(load_recipe(None, [*given, *grpo, f"task.name={own}"])), RunFolder(tmp_path))
    with pytest.raises(UserError, match=r"poems\.py gives none \(Task\.score\)"):
        plan.objective.dataset(plan.preparation)


def advised(once: float, often: float, zero: float, **more: float) -> str | None:
    recipe: Any = load_recipe(None, ["objective.name=grpo", f"objective.force={bool(more.pop('force', 0))}"])
    figures = {"prompts": 64, "pass_at_1": once, "pass_at_8": often, "frac_reward_zero_std": zero}
    return Grpo(recipe.objective).advise({**figures, "rewards/correct": once, **more})


def test_the_word_before_the_training() -> None:
    assert "pass@1 61.0%, pass@8 88.0%. 27 points lie between them" in (advised(0.61, 0.88, 0.5) or "")
    assert "Only 1.0 points lie between them" in (advised(0.9, 0.91, 0.9) or "")
    with pytest.raises(UserError, match=r"None is right, .*objective\.name=sft.*objective\.force=true"):
        advised(0, 0, 1)
    with pytest.raises(UserError, match=r"All are right already: there is nothing to learn"):
        advised(1, 1, 1)
    with pytest.raises(UserError, match=r"equally good, .*temperature"):
        advised(0.5, 0.5, 1)
    assert "None is right" in (advised(0, 0, 1, force=1) or "")
    told = advised(0, 0, 0.5, **{"rewards/correct/constant": 1})
    assert "The reward correct is 0 for all answers: it teaches nothing yet." in (told or "")


def test_nothing_is_trained_where_nothing_can_be_learned(train_tiny: Any, grpo: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pass@4 0\.0%\. None is right"):
        train_tiny(tmp_path / "none", *grpo, "objective.rewards=[correct]")


def test_a_run_that_learns_nothing_ends_and_says_so(
    train_tiny: Any, grpo: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "alike.py"
    own.write_text("def reward(rollout):\n    return 0.5\n")
    settings = [f"objective.rewards=[{own}]", "objective.force=true", "objective.zero_std_patience=2"]
    ended = train_tiny(tmp_path / "dull", *grpo, *settings, "training.steps=9", "objective.max_refills=1")
    log = logged(ended.path)
    [stopped] = [record["stopped"] for record in log if "stopped" in record]
    assert max(record["step"] for record in log) == 2 and stopped in capsys.readouterr().err
    assert "in 2 steps, refilled 1 times each, all answers to each prompt were equally good" in stopped
    assert all(record["loss"] == 0 for record in log if "loss" in record)
    assert (ended.path / "report.json").is_file()


def test_a_head_that_learns_beside_its_weights(make: Callable[..., Any], checkpoint_of: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match=r"an update beside them would learn nothing"):
        make(f"model.path={checkpoint_of('Llama')}", "method.target_modules=[lm_head, q_proj]")


def test_a_run_goes_on_from_another_by_its_score(
    train_tiny: Any, tiny_run: Any, grpo: list[str], tmp_path: Path
) -> None:
    """The adapter of the run before learns on, at this objective's rates; it is compared with what it was then."""
    from glmtune.commands import train

    settings = [*grpo, "objective.beta=0.1", f"training.output_dir={tmp_path / 'next'}", "training.steps=2"]
    found = train.run(str(tiny_run.path), overrides=settings)
    recipe = load_recipe(found.path / "recipe.yaml", trust=Trust(everything=True))
    assert recipe.objective.name == "grpo" and recipe.training.lr_scheduler_type == "constant_with_warmup"
    [first, *_] = [record for record in logged(found.path) if "kl" in record]
    assert first["kl"] == pytest.approx(0, abs=1e-6)


def test_what_a_step_takes_is_told() -> None:
    recipe: Any = load_recipe(None, ["objective.name=grpo", "objective.beta=0.1", "method.name=full"])
    demand = Grpo(recipe.objective).demand(recipe)
    assert demand.rolls_out and demand.reference
    lora: Any = load_recipe(None, ["objective.name=grpo", "objective.beta=0.1"])
    assert not Grpo(lora.objective).demand(lora).reference
