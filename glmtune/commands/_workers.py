"""The same training by the workers of a Ray cluster: who dies is started again, and all go on from the last checkpoint.

Ray Train starts them, tells each who it is as torchrun does, and has them meet. The checkpoints are those of any run.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal

from glmtune import distributed, network
from glmtune.cluster import Assignment, Cluster, Crew
from glmtune.resolution import ResolvedModel
from glmtune.runtime import RunFolder, UserError
from glmtune.terminal import relay

if TYPE_CHECKING:
    from glmtune.config import Recipe

RESTARTS = 3  # of all workers, after one has died or failed
LOOK = 0.2  # seconds between two looks at what the workers say
PATIENCE = 30.0  # seconds for an answer to one

Train = Callable[["Recipe", "str | None"], None]  # by a recipe; goes on with a run folder, if one is named
Kind = Literal["stdout", "stderr", "fault"]


class Said:
    """What workers say, until it is taken away: an actor of its own, as they are asked nothing while they work."""

    def __init__(self) -> None:
        self.parts: list[tuple[Kind, str]] = []

    def add(self, kind: Kind, text: str) -> None:
        """Keep a text."""
        self.parts.append((kind, text))

    def take(self) -> list[tuple[Kind, str]]:
        """Return the texts since the last time."""
        parts, self.parts = self.parts, []
        return parts


class Channel(io.TextIOBase):
    """A file of which all is said where the command was typed: a progress bar stays one.

    Args:
        said: an actor of `Said`.
        kind: where it is written there.
    """

    def __init__(self, said: Any, kind: Kind):
        self.said, self.kind = said, kind

    def write(self, text: str) -> int:
        """Send a text, and wait for nobody."""
        self.said.add.remote(self.kind, text)
        return len(text)


@dataclass(frozen=True)
class Worker:
    """What a worker does.

    Attributes:
        assignment: by which it has the recipe, and the same files.
        resume: the run folder to go on with; None: that of the recipe, which is new or was begun by those that died.
        train: carries it out.
        said: takes what the main process writes, and what the user can mend.
    """

    assignment: Assignment
    resume: str | None
    train: Train
    said: Any

    def __call__(self) -> None:
        """Train; where the user can mend something, tell what, and end without being started again."""
        import ray

        from glmtune.libraries import quiet_libraries

        fault = ""
        with ExitStack() as stack:
            if distributed.is_main():
                stack.enter_context(redirect_stdout(Channel(self.said, "stdout")))
                stack.enter_context(redirect_stderr(Channel(self.said, "stderr")))
            stack.enter_context(network.within(self.assignment.verb))
            quiet_libraries()
            try:
                self.train(distributed.together(lambda: self.assignment.resolve().recipe), self.resume)
            except UserError as error:
                fault = str(error)
        ray.get(self.said.add.remote("fault", fault))  # after all the rest


def start_workers(cluster: Cluster, recipe: Recipe, resume: str | os.PathLike[str] | None, train: Train) -> None:
    """Let the workers of a cluster train by a recipe, and wait for them.

    Args:
        cluster: who they are; how many, `training.devices` says where nobody else does.
        recipe: as it was read here.
        resume: the run folder to go on with; default: a new one.
        train: carried out by each.

    Raises:
        UserError: Ray cannot be asked, something about the recipe is wrong, or the workers died again and again.
        KeyboardInterrupt: Ctrl-C or SIGTERM (`Terminated`), which end the workers at once.
    """
    cluster.check()
    ResolvedModel(recipe).check()
    devices = recipe.training.devices
    if cluster.workers is None and devices != "all":
        cluster = replace(cluster, workers=devices)
    with cluster.join() as workers:
        recipe, folder = (recipe, Path(resume)) if resume is not None else place_of(recipe)
        assignment = Assignment.of(ResolvedModel(recipe), recipe.generation)
        goes_on = f"Go on with: glmtune train --resume {folder} --ray"
        try:
            fit(assignment, None if resume is None else str(folder.absolute()), train, workers.crew)
        except UserError:
            raise
        except KeyboardInterrupt as interrupt:
            raise type(interrupt)(goes_on) from None
        except Exception as error:
            raise UserError(f"--ray: {why(error)} {goes_on}") from error
        finally:
            with suppress(OSError):  # where nothing was begun
                folder.rmdir()


def place_of(recipe: Recipe) -> tuple[Recipe, Path]:
    """Return a recipe that names its run folder as every worker finds it, and the folder."""
    from glmtune.plan import run_name

    given = recipe.training.output_dir
    folder = Path(given) if given is not None else RunFolder.create(None, run_name(recipe)).path
    training = recipe.training.model_copy(update={"output_dir": str(folder.absolute())})
    return recipe.model_copy(update={"training": training}), folder


def fit(assignment: Assignment, resume: str | None, train: Train, crew: Crew) -> None:
    """Let a crew train, and write here what its main process says.

    Raises:
        UserError: what the user can mend, as a worker told it.
        TrainingFailedError: workers failed more often than they are started again.
    """
    import ray
    from ray.exceptions import GetTimeoutError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # what fails is raised
    said: Any = ray.remote(num_cpus=0)(Said).remote()
    failed: list[BaseException] = []

    def act() -> None:
        with tempfile.TemporaryDirectory() as own:  # for Ray's own records, which stay where this process is
            trainer = TorchTrainer(
                Worker(assignment, resume, train, said).__call__,
                torch_config=TorchConfig(
                    distributed.BACKENDS if crew.gpus else "gloo", timeout_s=int(distributed.WAIT.total_seconds())
                ),
                scaling_config=ScalingConfig(
                    num_workers=crew.workers,
                    use_gpu=crew.gpus > 0,
                    resources_per_worker={"CPU": crew.cpus, **({"GPU": crew.gpus} if crew.gpus else {})},
                ),
                run_config=RunConfig(storage_path=own, failure_config=FailureConfig(max_failures=RESTARTS)),
            )
            try:
                trainer.fit()
            except BaseException as error:
                failed.append(error)

    waiting = Thread(target=act, name="ray", daemon=True)  # in the main thread, Ray would take Ctrl-C for itself
    waiting.start()
    faults: list[str] = []
    is_last = False
    while not is_last:
        waiting.join(LOOK)
        is_last = not waiting.is_alive()
        with suppress(GetTimeoutError):
            for kind, text in ray.get(said.take.remote(), timeout=PATIENCE):
                if kind == "fault":
                    faults.extend(filter(None, [text]))
                else:
                    relay(text, error=kind != "stdout")
    if faults:
        raise UserError(faults[0])
    if failed:
        raise failed[0]


def why(error: Exception) -> str:
    """Return in a line why a training failed for good."""
    from ray.train import WorkerGroupError

    if not isinstance(error, WorkerGroupError):
        return str(error).strip().splitlines()[-1]
    number, failure = min(error.worker_failures.items())
    text = (str(failure) or repr(failure)).strip().splitlines()[-1]
    return f"a worker died or failed, and so did those in its place, {RESTARTS} times: worker {number}: {text}."
