"""What answers are worth: the task's own score, other rewards, and the user's."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import glmtune
from glmtune.config import GenerationSettings, RecipeError, code_named, load_recipe
from glmtune.data.encoding import encode_prompt
from glmtune.evaluation.evaluator import evaluate_by
from glmtune.examples import Example, Source
from glmtune.inference.completion import Completion, Request
from glmtune.inference.conversation import Exchange, Question, Turn
from glmtune.inference.engine import Engine
from glmtune.inference.rollouts import Rollout, roll_out
from glmtune.messages import make_tool_call
from glmtune.objectives._rewards import Rewards, RewardSettings
from glmtune.runtime import UserError
from glmtune.scoring import Score
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings
from glmtune.trust import UntrustedError

ROOM = GenerationSettings(max_new_tokens=10)


def rollout(text: str = "3", score: Score | None = None, calls: tuple[str, ...] = (), tokens: int = 4) -> Rollout:
    example = Example("1+2=", "3", source=Source("sums.jsonl", 7))
    messages = [
        {"role": "assistant", "content": text, "tool_calls": [make_tool_call("calculate", {"expression": one})]}
        for one in calls
    ]
    turns = [Turn([1], [2] * tokens)]
    exchange = Exchange(messages, Completion(text, [2] * tokens, 1, "stop"), None, turns)
    return Rollout(example, Question("1+2=", Request([1], ROOM), ROOM), exchange, score or Score("exact", text))


def rewards(*chosen: Any) -> Rewards:
    return Rewards([RewardSettings.model_validate(one) for one in chosen])


def test_the_reward_is_what_an_evaluation_counts() -> None:
    """The same answers: their mean reward is the accuracy that is reported of them."""
    model, tokenizer = glmtune.load("nano")
    task = Arithmetic(ArithmeticSettings(name="arithmetic", operators={"+": 1}, kinds=["integer"], maximum=9))
    words = Example("What is 3 plus 4?", "7")
    examples = [words, task.pose(random.Random(0)), Example("How much is 5 plus 1?", "6"), words]
    sampled = GenerationSettings(max_new_tokens=30, do_sample=True, temperature=1.2, top_p=1.0)
    engine = Engine(model, tokenizer)
    groups = roll_out(engine, task, examples, sampled, 4, seed=3)
    judged = evaluate_by(engine, task, [one for one in examples for _ in range(4)], sampled, progress=False, seed=3)
    values = [rewards("correct").values(one)["correct"] for group in groups for one in group]
    assert values == [score.reward for score in judged.scores]
    assert 0 < sum(values) / len(values) == judged.accuracy < 1


def test_shorter_is_better_and_a_weight_counts() -> None:
    short, long = rollout(tokens=2), rollout(tokens=10)
    chosen = rewards({"name": "correct"}, {"name": "length", "weight": 0.5})
    assert chosen.values(short) == {"correct": 1.0, "length": -0.2}
    assert chosen.total(chosen.values(short)) == 0.9
    assert chosen.values(long)["length"] == -1.0


def test_calls_are_faithful_and_needed() -> None:
    faithful, not_faithful = (Score("exact", "3", {"faithful_calls": share}) for share in (1.0, 0.0))
    chosen = rewards("faithful_calls")
    assert chosen.values(rollout(score=faithful, calls=("1+2",))) == {"faithful_calls": 1.0}
    assert chosen.values(rollout(score=faithful, calls=("1+2", "1+2"))) == {"faithful_calls": 0.0}
    assert chosen.values(rollout(score=not_faithful, calls=("1+3",))) == {"faithful_calls": 0.0}
    with pytest.raises(UserError, match=r"faithful_calls fails with ValueError: the task measures no faithful_calls"):
        chosen.values(rollout())


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str], Path]:
    """`own("return 1.0")`: a user's file with a reward."""

    def write(body: str) -> Path:
        file = tmp_path / f"mine_{len(list(tmp_path.iterdir()))}.py"
        file.write_text(f"def reward(rollout):\n    {body}\n")
        return file

    return write


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise KeyError('x')", r"fails with KeyError: 'x'"),
        ("return float('nan')", r"gives nan, which is no finite number"),
        ("return float('inf')", r"gives inf, which is no finite number"),
        ("return '1'", r"gives '1', which is no finite number"),
        ("return None", r"gives None, which is no finite number"),
        ("return -1e30", r"gives -1e\+30, which is beyond 1e\+06"),
    ],
)
def test_a_reward_that_is_none_is_told_with_its_record(own: Callable[[str], Path], body: str, told: str) -> None:
    file = own(body)
    recipe: Any = load_recipe(None, ["objective.name=grpo", f"objective.rewards=[{file}]"])
    where = r", for the answer '3' to the prompt '1\+2=' \(line 7 of sums\.jsonl\)\."
    with pytest.raises(UserError, match=rf"objective\.rewards: {file.stem} {told}{where}"):
        Rewards(recipe.objective.rewards).values(rollout())


@pytest.mark.parametrize("form", ["{}", "[{}]", "[{{name: {}, weight: 2}}]"])
def test_a_file_that_was_typed_is_a_reward(own: Callable[[str], Path], form: str) -> None:
    file = own("return len(rollout.exchange.text) + rollout.score.reward")
    recipe: Any = load_recipe(None, ["objective.name=grpo", f"objective.rewards={form.format(file)}"])
    chosen = Rewards(recipe.objective.rewards)
    assert recipe.objective.rewards[0].name == str(file.resolve())
    assert chosen.values(rollout("345")) == {file.stem: 4.0}
    assert code_named(recipe.model_dump()) == {"objective.rewards[0]": str(file.resolve())}


def test_a_file_that_a_recipe_names_runs_when_it_may(own: Callable[[str], Path], tmp_path: Path) -> None:
    file = own("raise SystemExit('it ran')")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"objective: {{name: grpo, rewards: [correct, {{name: {file}}}]}}\n")
    with pytest.raises(UntrustedError, match=rf"objective\.rewards asks to run {file}.*type objective\.rewards={file}"):
        load_recipe(recipe)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("[corect]", r"no such reward\. Did you mean 'correct'\? Known: correct, length, faithful_calls\."),
        ("[gone.py]", r"no such file: gone\.py"),
        ("[correct, {name: correct, weight: 2}]", r"correct stands there twice"),
        ("[]", r"at least 1 item"),
        ("[{name: correct, weight: 0}]", r"all have weight 0"),
        ("[{name: correct, weight: 1e30}]", r"less than or equal to 1000000"),
    ],
)
def test_what_is_no_reward(settings: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        load_recipe(None, ["objective.name=grpo", f"objective.rewards={settings}"])


def test_a_file_without_the_function(tmp_path: Path) -> None:
    file = tmp_path / "empty.py"
    file.write_text("def worth(rollout):\n    return 1.0\n")
    with pytest.raises(RecipeError, match=r"empty\.py must define a function reward\(rollout\)"):
        load_recipe(None, ["objective.name=grpo", f"objective.rewards={file}"])


def test_prompts_are_encoded_as_everywhere() -> None:
    """What a turn was asked is what the template makes of the prompt."""
    model, tokenizer = glmtune.load("nano")
    task = Arithmetic(ArithmeticSettings(name="arithmetic", style="direct"))
    example = task.pose(random.Random(1))
    [[found]] = roll_out(Engine(model, tokenizer), task, [example], GenerationSettings(max_new_tokens=4), 1)
    [turn] = found.exchange.turns
    assert list(turn.input_ids) == encode_prompt(tokenizer, example.prompt)
    assert turn.token_ids == found.exchange.completion.token_ids
