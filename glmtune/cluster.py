"""A Ray cluster: how many workers it has room for, and questions that they answer, each holding the model.

Who works where, who is started again and what is asked again is Ray's affair; nothing of that is done here. Reading,
checks and writing in order stay with whoever asks, so that the answers are those of one machine.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from glmtune import __version__, distributed, network, registry
from glmtune.config import GenerationSettings, Recipe, code_named, make_recipe
from glmtune.messages import Prompt
from glmtune.resolution import ResolvedModel
from glmtune.runtime import RunFolder, UserError
from glmtune.terminal import counted

if TYPE_CHECKING:
    from glmtune.inference.conversation import Conversation, Exchange

MISSING = "--ray: Ray is not installed. pip install 'glmtune[ray]'"
REACHED_WITHIN = 5.0  # seconds
RETRIES = 5  # of a window whose worker died; a window that ends every worker must not be asked for ever
HALF = 0.5  # of a CPU, for the books: where as many workers are wished as there are CPUs, Ray's own tasks need some


class Asked(NamedTuple):
    """One question.

    Attributes:
        number: by which its answer is known, and sampled.
        prompt: what is asked.
        tools: definitions of the tools that it offers; none where those of the task are.
        input_ids: of the prompt with its tools, where it is encoded already.
    """

    number: int
    prompt: Prompt
    tools: Sequence[dict[str, Any]] = ()
    input_ids: Sequence[int] | None = None


@dataclass(frozen=True)
class Crew:
    """How many workers there are, and how many CPUs and GPUs Ray sets aside for each."""

    workers: int
    cpus: float
    gpus: int = 0


@dataclass(frozen=True)
class Cluster:
    """What a user says of the cluster.

    Attributes:
        address: HOST:PORT of its head; None: as `RAY_ADDRESS` says, else the one that this machine is a node of, else
            one that is started here and ends with the command.
        workers: how many hold the model; None: one on each GPU or, where there is none, on each node.
    """

    address: str | None = None
    workers: int | None = None

    def check(self) -> None:
        """See whether the cluster can be asked at all; it takes no second.

        Raises:
            UserError: Ray is not installed, the number of workers is none, or nobody answers at the address.
        """
        if find_spec("ray") is None:
            raise UserError(MISSING)
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers}: at least 1 has to hold the model.")
        address, name = self.address, "--ray-address"
        if address is None:
            address, name = distributed.told().get("RAY_ADDRESS"), "RAY_ADDRESS"
        if address in (None, "auto", "local"):  # as Ray itself finds or starts one
            return
        host, _, port = str(address).rpartition(":")
        if not host or not port.isdigit() or "/" in host:
            raise UserError(
                f"{name} {address}: is no HOST:PORT, as `ray start --head` prints it. On a node of "
                "the cluster, it may be left out."
            )
        try:
            is_head = speaks_http2(host, int(port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"{name} {address}: cannot be reached: {error}. Start the cluster with `ray start --head`, or leave "
                "the address out to work on this machine."
            ) from None
        if not is_head:  # Ray itself would try for minutes
            raise UserError(f"{name} {address}: is no head of a cluster. Its port is 6379, unless it was told another.")

    @contextmanager
    def join(self) -> Iterator[Workers]:
        """Give the workers; a cluster that was started for them ends with the block.

        Raises:
            UserError: it cannot be joined, or has no room for so many workers.
        """
        self.check()
        network.withhold_telemetry()
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise UserError(f"{MISSING} ({error})") from None
        is_joined = ray.is_initialized()
        if not is_joined:
            try:
                ray.init(
                    address=self.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                where = "a cluster" if self.address is None else f"--ray-address {self.address}"
                raise UserError(
                    f"--ray: {where} cannot be joined: {error}. Start this command on a node of the cluster, with "
                    "RAY_AUTH_MODE=token where that asks for a token (`ray get-auth-token`)."
                ) from error
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            crew = plan_crew(nodes, self.workers)
            free = ray.available_resources().get("GPU" if crew.gpus else "CPU", 0.0)
            if free < crew.workers * (crew.gpus or crew.cpus):
                warnings.warn("--ray: others work on the cluster; workers wait until there is room.", stacklevel=2)
            yield Workers(crew)
        finally:
            if not is_joined:
                ray.shutdown()


def speaks_http2(host: str, port: int) -> bool:
    """Return whether what listens at a port begins as HTTP/2 does (RFC 9113, section 3.4), by which Ray's head talks.

    Raises:
        OSError: nobody listens there.
    """
    with socket.create_connection((host, port), REACHED_WITHIN) as connection:
        connection.settimeout(REACHED_WITHIN)
        settings = b"\0\0\0\x04\0\0\0\0\0"  # length 0, type 4, no flags, stream 0
        with suppress(OSError):
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
            return connection.recv(9)[3:4] == settings[3:4]
    return False


def plan_crew(nodes: Sequence[Mapping[str, float]], wished: int | None = None) -> Crew:
    """Return how many workers there are, and what each takes, so that Ray's own tasks find a CPU beside them.

    Where there are GPUs, a worker has one; else the CPUs of a node are shared out among its workers, a whole number to
    each. With as many workers as CPUs, reading and writing would wait for ever: then each is booked as half a CPU.

    Args:
        nodes: resources of each, as Ray names them: `CPU`, `GPU`.
        wished: how many workers; None: one on each GPU or, where there is none, on each node with a CPU.

    Raises:
        UserError: the cluster has no room for so many.
    """
    gpus, cpus = (sum(int(node.get(kind, 0)) for node in nodes) for kind in ("GPU", "CPU"))
    working = sum(node.get("CPU", 0) >= 1 for node in nodes)
    count = (gpus or working) if wished is None else wished
    has = counted(gpus, "GPU") if gpus else counted(cpus, "CPU")
    if not 0 < count <= (gpus or cpus):
        nodes_told = counted(len(nodes), "node")
        raise UserError(f"--workers {count}: the cluster has {has} on {nodes_told}. Ask for {gpus or cpus} at most.")
    if gpus:
        return Crew(count, 1 if cpus > count else HALF, 1)
    left = sorted((int(node.get("CPU", 0)) for node in nodes), reverse=True)
    left[0] -= 1  # for Ray's own tasks
    fitting = (each for each in range(max(left), 0, -1) if sum(here // each for here in left) >= count)
    return Crew(count, next(fitting, HALF))


@dataclass(frozen=True)
class Assignment:
    """What a worker needs to have the same model as whoever asks, in texts and numbers.

    Attributes:
        recipe: its values, as far as they were set.
        target, run, adapter: as `ResolvedModel` has them.
        code: SHA-256 of the user's own files that the recipe names, by their settings.
        generation: how to decode.
        folder: in which the paths are what they are.
        verb: what may be fetched.
        version: of this package.
    """

    recipe: dict[str, Any]
    target: str | None
    run: str | None
    adapter: str | None
    code: dict[str, str]
    generation: dict[str, Any]
    folder: str
    verb: network.Verb | None
    version: str = __version__

    @classmethod
    def of(cls, resolved: ResolvedModel, generation: GenerationSettings) -> Assignment:
        """Return the assignment by which a worker loads a resolved model."""
        return cls(
            resolved.recipe.model_dump(mode="json", exclude_unset=True),
            resolved.target,
            None if resolved.run is None else str(resolved.run.path),
            None if resolved.adapter is None else str(resolved.adapter),
            code_in(resolved.recipe),
            generation.model_dump(mode="json"),
            os.getcwd(),
            network.present(),
        )

    def resolve(self) -> ResolvedModel:
        """Return the model, on the node of the worker.

        Raises:
            UserError: it is not there, or another version of this package or of the user's code is.
        """
        if __version__ != self.version:
            raise UserError(f"glmtune {__version__} is there, and {self.version} asks. Install the same version.")
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        names = code_named(self.recipe)
        for setting, sha256 in self.code.items():
            source = registry.Source.read(names[setting])
            if source.sha256 != sha256:
                raise UserError(f"{source.path} is another file there (SHA-256 {source.sha256}). Copy it anew.")
            source.run()
        run = None if self.run is None else RunFolder(self.run)
        adapter = None if self.adapter is None else Path(self.adapter)
        resolved = ResolvedModel(make_recipe(self.recipe), self.target, run, adapter)
        resolved.check()
        return resolved


def code_in(recipe: Recipe) -> dict[str, str]:
    """Return the SHA-256 of the user's own files that a recipe names and that were run, by their settings."""
    names = code_named(recipe.model_dump(mode="json"))
    modules = {setting: registry.loaded(Path(os.path.realpath(name))) for setting, name in names.items()}
    loaders = {setting: module.__loader__ for setting, module in modules.items() if module is not None}
    return {setting: loader.sha256 for setting, loader in loaders.items() if isinstance(loader, registry.Source)}


def answer_window(
    conversation: Conversation, generation: GenerationSettings, seed: int, window: Sequence[Asked]
) -> Iterator[tuple[int, Exchange]]:
    """Yield (number of a question, its answer) as they end, of questions that are answered together.

    Args:
        conversation: answers.
        generation: how to decode.
        seed: of question 0.
        window: the questions.
    """
    questions = [
        conversation.ask(
            one.prompt, generation, one.tools, one.input_ids, f"Prompt {one.number + 1}", seed=seed + one.number
        )
        for one in window
    ]
    for index, exchange in conversation.answer(questions):
        yield window[index].number, exchange


class Worker:
    """Holds the model, and answers windows of questions: what Ray Data runs as an actor.

    What a user can mend is told as a `fault` instead of an answer, so that it reaches him in one line.
    """

    def __init__(self, assignment: Assignment) -> None:
        """Load the model."""
        from glmtune.libraries import quiet_libraries

        quiet_libraries()
        self.assignment, self.fault = assignment, ""
        try:
            with network.within(assignment.verb):
                self.conversation, self.seed = self.load()
        except UserError as error:
            self.fault = str(error)

    def load(self) -> tuple[Conversation, int]:
        """Return the conversation that answers, and the seed of question 0."""
        from glmtune.inference.conversation import Conversation
        from glmtune.inference.engine import Engine

        resolved = self.assignment.resolve()
        engine = Engine(*resolved.load(), resolved.limit)
        return Conversation.about(resolved.task, engine), resolved.recipe.seed

    @cached_property
    def generation(self) -> GenerationSettings:
        """How to decode."""
        return GenerationSettings(**self.assignment.generation)

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Answer windows, each as one would be answered here."""
        if self.fault:
            return {"answers": [""], "fault": [f"node {socket.gethostname()}: {self.fault}"]}
        answered = [self.answer([Asked(*values) for values in json.loads(window)]) for window in batch["questions"]]
        return {"answers": answered, "fault": [""] * len(answered)}

    def answer(self, window: Sequence[Asked]) -> str:
        """Return the answers to a window's questions by their numbers, as JSON."""
        answers = answer_window(self.conversation, self.generation, self.seed, window)
        return json.dumps([(number, asdict(replace(exchange, turns=()))) for number, exchange in answers])


@dataclass(frozen=True)
class Workers:
    """The workers of a cluster that was joined."""

    crew: Crew

    def answer(
        self, resolved: ResolvedModel, generation: GenerationSettings, questions: Sequence[Asked], window: int
    ) -> Iterator[tuple[int, Exchange]]:
        """Answer questions, each by its number alone: whoever answers it, and after how many tries.

        Args:
            resolved: who is asked; every node has it under the same path, or fetches it by name.
            generation: how to decode.
            questions: in the order of their numbers.
            window: how many numbers are handed to a worker together.

        Yields:
            (number of a question, its answer), window by window in their order.

        Raises:
            UserError: a node lacks the model, or a worker died again and again.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        windows = [list(group) for _, group in groupby(questions, lambda one: one.number // window)]
        if not windows:
            return
        ray.data.DataContext.get_current().enable_progress_bars = False  # whoever asks has one
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is raised
        given = ray.data.from_items(
            [{"questions": json.dumps(questions)} for questions in windows], override_num_blocks=len(windows)
        )
        given.context.execution_options.preserve_order = True
        with warnings.catch_warnings():  # nothing else bounds the retries of a window that ends its worker
            warnings.filterwarnings("ignore", "`ray_remote_args_fn` is deprecated")
            answered = given.map_batches(
                Worker,
                fn_constructor_args=(Assignment.of(resolved, generation),),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(self.crew.workers, len(windows))),
                num_cpus=self.crew.cpus,
                num_gpus=self.crew.gpus,
                ray_remote_args_fn=lambda: {"max_task_retries": RETRIES},
            )
        try:
            for row in answered.iter_rows():
                if row["fault"]:
                    raise UserError(f"--ray: {row['fault']}")
                yield from sorted((number, exchange_of(values)) for number, values in json.loads(row["answers"]))
        except RayTaskError:  # ours to mend
            raise
        except RayError as error:
            raise UserError(f"--ray: a worker died, and so did those in its place: {error}") from error


def exchange_of(values: Mapping[str, Any]) -> Exchange:
    """Return an exchange that a worker sent."""
    from glmtune.inference.completion import Completion
    from glmtune.inference.conversation import Exchange

    return Exchange(values["messages"], Completion(**values["completion"]), values["refusal"])
