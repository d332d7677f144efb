"""What the tests share: a tiny checkpoint, a run trained on it, and the settings of such runs.

The libraries are imported by the fixtures: the process that only hands tests to workers does without them.
"""

from __future__ import annotations

import gc
import io
import json
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from glmtune.execution import Run
    from glmtune.inference.engine import Engine

    Trains = Callable[..., Run]
    WritesRecords = Callable[..., Path]
    Drawing = Callable[[], AbstractContextManager[None]]

# How long an example takes says nothing on a busy machine.
settings.register_profile("glmtune", deadline=None)
settings.load_profile("glmtune")

SIZES = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "inner_hidden_size": 64}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Take what is imported and collected, a million objects that stay, out of Python's search for garbage.

    Each training searches all that is left.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True, scope="session")
def on_one_core() -> Iterator[None]:
    """The models are too small to gain from more, and their results are to be the same everywhere."""
    import torch

    from glmtune import distributed

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "local_device", lambda: torch.device("cpu"))
        yield


@pytest.fixture(autouse=True, scope="session")
def own_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the user has said yes to is nothing, and what the tests say yes to is forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(autouse=True, scope="session")
def drawing() -> Iterator[Drawing]:
    """Charts are made, but left blank: to draw a run's takes longer than the run. `with drawing():` draws them."""
    from matplotlib.figure import Figure

    draw = Figure.savefig

    def leave_blank(figure: Figure, file: Any, format: str, **options: Any) -> None:
        if format == "svg":
            file.write('<svg viewBox="0 0 1 1"></svg>')
        else:
            Path(file).write_bytes(b"")

    @contextmanager
    def drawn() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Figure, "savefig", draw)
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", leave_blank)
        yield drawn


@pytest.fixture(scope="module")
def drawn_charts(drawing: Drawing) -> Iterator[None]:
    """The charts of this module are drawn."""
    with drawing():
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ChatGLM-6B of some 30,000 random weights that takes 128 tokens, with nano's tokenizer.

    They are large, so that it has something to say to everything. No test may change it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from glmtune.models import loading

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    config = AutoConfig.from_pretrained(
        loading.EMBEDDED["nano"], **SIZES, max_sequence_length=128, initializer_range=0.6
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(loading.EMBEDDED["nano"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`checkpoint_of("GLM-4-9B")`: the directory of a tiny checkpoint. No test may change it."""
    import family_checkpoints

    written: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in written:
            folder = tmp_path_factory.mktemp("families")
            family_checkpoints.WRITERS[family](folder)
            written[family] = folder
        return written[family]

    return find


@pytest.fixture(scope="session")
def tiny_settings(tiny_checkpoint: Path) -> list[str]:
    """Settings of a run of a second: sums of one digit, four steps of four."""
    return [
        f"model.path={tiny_checkpoint}",
        "task.operators=+",
        "task.kinds=[integer]",
        "task.maximum=5",
        "task.style=direct",
        "task.echo=false",
        "task.held_out=0.3",
        "method.rank=4",
        "training.steps=4",
        "training.batch_size=4",
        "training.logging_steps=1",
        "training.learning_rate=0.01",
        "evaluation.num_examples=6",
        "evaluation.num_examples_during=2",
        "generation.max_new_tokens=6",
    ]


@pytest.fixture(scope="session")
def train_tiny(tiny_settings: list[str]) -> Trains:
    """`train_tiny(folder, "training.steps=8", ...)`: a run by `tiny_settings` and others that replace them."""
    from rich.console import Console

    from glmtune.commands import train

    def run(folder: Path, *settings: str) -> Run:
        return train.run(
            overrides=[*tiny_settings, f"training.output_dir={folder}", *settings], console=Console(file=io.StringIO())
        )

    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, train_tiny: Trains, drawing: Drawing) -> Run:
    """A short LoRA run, with its charts. No test may change its folder."""
    with drawing():
        return train_tiny(tmp_path_factory.mktemp("runs") / "tiny", "training.steps=12")


@pytest.fixture(scope="session")
def tiny(tiny_run: Run) -> tuple[Any, Any]:
    """Model and tokenizer of that run. No test may change them."""
    import glmtune

    return glmtune.load(tiny_run.folder.path)


@pytest.fixture
def check_mixture() -> Callable[[Engine], None]:
    """`check_mixture(engine)`: answers are the same whatever else is in the batch, in whichever order.

    Requests are sampled or not, short or long, stopped by a text, cancelled, or asked for log-probabilities.
    """
    from glmtune.config import GenerationSettings
    from glmtune.data.encoding import encode_prompt
    from glmtune.inference.completion import Request

    def check(engine: Engine) -> None:
        greedy = GenerationSettings(max_new_tokens=12)
        sampled = GenerationSettings(max_new_tokens=10, do_sample=True, temperature=1.5, top_p=0.9)
        prompts = ["1+" * (number % 5) + str(number) for number in range(12)]
        encoded = [encode_prompt(engine.tokenizer, prompt) for prompt in prompts]
        cancelled = Request(encoded[0], greedy)
        cancelled.cancellation.set()
        requests = [Request(ids, greedy, logprobs=place % 2 == 0) for place, ids in enumerate(encoded)]
        first = [completion.text for _, completion in sorted(engine.complete(requests), key=lambda pair: pair[0])]
        requests += [Request(ids, sampled, seed=place, logprobs=place % 3 == 0) for place, ids in enumerate(encoded)]
        requests += [
            Request(ids, greedy.model_copy(update={"max_new_tokens": 1 + place})) for place, ids in enumerate(encoded)
        ]
        middles = [text[len(text) // 2 :][:2] or "x" for text in first]
        requests += [Request(ids, greedy, stop=[middle]) for ids, middle in zip(encoded, middles, strict=True)]
        requests.append(cancelled)
        alone = [dict(engine.complete([request])).get(0) for request in requests]
        for seed in range(2):
            order = random.Random(seed).sample(range(len(requests)), len(requests))
            together = dict(engine.complete([requests[index] for index in order]))
            for place, index in enumerate(order):
                found, expected = together.get(place), alone[index]
                assert (found is None) == (expected is None) == (requests[index] is cancelled)
                if found is not None and expected is not None:
                    assert replace(found, logprobs=None) == replace(expected, logprobs=None)
                    assert (found.logprobs is not None) == requests[index].logprobs
                    assert found.logprobs == (expected.logprobs and pytest.approx(expected.logprobs, abs=1e-3))

    return check


@pytest.fixture
def any_order() -> Callable[[Engine], None]:
    """`any_order(engine)`: rows that come at any step of others, and leave at any, are answered as alone."""
    from glmtune.config import GenerationSettings
    from glmtune.data.encoding import encode_prompt
    from glmtune.inference.completion import Request
    from glmtune.inference.rows import Row

    def check(engine: Engine) -> None:
        settings = GenerationSettings(max_new_tokens=16)
        prompts = ["1+" * (number * number % 13) + str(number) for number in range(12)]
        requests = [Request(encode_prompt(engine.tokenizer, prompt), settings) for prompt in prompts]
        alone = [next(engine.complete([request]))[1] for request in requests]
        assert len({completion.text for completion in alone}) > 1
        for seed in range(3):
            rng = random.Random(seed)
            batch = engine.open(slots=5, most_tokens=rng.choice([None, 150]))
            waiting = [Row(request, engine.reader) for request in rng.sample(requests, len(requests))]
            rows, most = list(waiting), 0
            dropped = rng.sample(rows, 2)
            while waiting or not batch.is_idle:
                for _ in range(rng.randrange(3) if waiting else 0):
                    batch.add(waiting.pop())
                    if not waiting:
                        break
                if rng.random() < 0.2 and dropped:
                    dropped.pop().is_abandoned.set()
                batch.step()
                most = max(most, len(batch.running))
            for row in rows:
                expected = alone[requests.index(row.request)]
                if row.is_cancelled:
                    assert expected.token_ids[: len(row.token_ids)] == row.token_ids
                else:
                    assert row.complete() == expected
            assert 1 < most <= 5

    return check


@pytest.fixture
def write_records(tmp_path: Path) -> WritesRecords:
    """`write_records({...}, {...})`: a JSONL file of records; texts are written as they stand."""

    def write(*records: dict[str, Any] | str, name: str = "records.jsonl") -> Path:
        path = tmp_path / name
        lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


class PageReader(HTMLParser):
    """Tags, ids, links and text of a page; fails where tags do not match."""

    VOID = {"meta", "br", "img", "path", "use"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[Any]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[Any]) -> None:
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id" and tag == "section"]
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="session")
def read_page() -> type[PageReader]:
    """`read_page(text)`: the parts of a well-formed HTML page."""
    return PageReader
