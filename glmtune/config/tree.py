"""The one settings tree: every setting with its type, default and meaning."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    field_validator,
)
from pydantic_core import CoreSchema, core_schema

from glmtune import registry

# Sections whose fields belong to the file that their `name` points to.
OPEN_SECTIONS = {"task": "glmtune.tasks", "method": "glmtune.methods", "objective": "glmtune.objectives"}

# Lists in open sections whose entries may be paths to code, by themselves or as their `name`.
CODE_LISTS = {"objective": "rewards"}

# Steps where a task draws without end and the recipe names none: the demo.
ENDLESS_STEPS = 2000
SHORT_ANSWER = 64  # tokens
LONG_ANSWER = 1024  # where nobody says how long an answer may be, and the model states no limit or a larger one

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def findable(path: str) -> str:
    """Return a path as any folder finds it, for the recipe of a run; a name of the hub, or of nothing, stays."""
    place, config, split = parts_of(path)
    if not Path(place).exists():
        return path
    return f"{Path(place).resolve()}{f'@{config}' if config else ''}{f':{split}' if split else ''}"


def parts_of(source: str) -> tuple[str, str | None, str | None]:
    """Return a path, and the configuration and split that are named of a folder: `FOLDER@CONFIG:SPLIT`."""
    named = re.fullmatch(r"(.+?)(?:@([\w.-]+))?(?::([\w.-]+))?", source)
    if Path(source).exists() or named is None or not Path(named[1]).is_dir():
        return source, None, None
    return named[1], named[2], named[3]


class Settings(BaseModel):
    """Base of every group of settings: unknown names are faults."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _countable(cls, value: Any) -> Any:
        """What no library below can count to is no number of anything."""
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError("so large a number is none of anything here")
        return value


@dataclass(frozen=True)
class RowOf:
    """Marks a text that names a row of a module's table, which is read when the first value is checked."""

    module: str

    def check(self, value: str) -> str:
        """Return a name that there is.

        Raises:
            ValueError: there is no such row; the nearest right name is offered.
        """
        known = list(registry.table(self.module))
        if value not in known:
            raise ValueError(f"no such name.{registry.suggest(value, known)}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": list(registry.table(self.module))}


class NamedSettings(Settings):
    """Base of the settings of a task, a method or an objective."""

    name: str = Field("", description="a name that `glmtune ls` shows, or a path to your own .py file")


class ModelSettings(Settings):
    """Which model is tuned."""

    path: str = Field("nano", description="checkpoint directory, GGUF file, hub name, or 'nano', the embedded model")
    dtype: Dtype = Field(
        "auto",
        description="precision of the frozen weights; auto: bfloat16 where the GPU has it, and on a CPU that "
        "multiplies it faster, or at 8 and 4 bits, if the files hold 16 bits, else float32",
    )
    bits: Literal[16, 8, 4] = Field(
        16,
        description="storage of the frozen linear layers: 16 leaves them in `dtype`; 8 (int8) and 4: on a CPU whole "
        "numbers in groups of 32, on a GPU nf4 with double quantization, by bitsandbytes",
    )
    quantize_embedding: bool = Field(
        False, description="also store the embedding and the head, at 8 bits (ChatGLM-6B: 0.5 GB less)"
    )
    attention: Literal["sdpa", "eager"] = Field("sdpa", description="attention implementation")
    random_init: bool = Field(False, description="start from fresh weights; `path` needs a config and a tokenizer only")
    adapter: str | None = Field(
        None, description="an adapter, or a run that has one, that training goes on from; `path` is then its base"
    )
    merge_adapter: bool | None = Field(
        None,
        description="make that adapter part of the weights first, and train beside them; default: where the method or "
        "its shape is another, else the adapter itself learns on",
    )

    @field_validator("adapter")
    @classmethod
    def _from_anywhere(cls, value: str | None) -> str | None:
        return findable(value) if value else value


FIELDS = ("prompt", "target", "history", "system")  # of a record, as its file may call them otherwise


def _check_columns(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if name not in FIELDS:
            raise ValueError(f"no such name: '{name}'.{registry.suggest(name, list(FIELDS))} Write it as OURS: YOURS")
    return value


Columns = Annotated[dict[str, str], AfterValidator(_check_columns)]


class Source(Settings):
    """More records, mixed into what is learned."""

    file: str = Field(description="file, folder or data set of the hub, as `task.file` of instructions")
    share: float = Field(gt=0, lt=1, description="share of all examples that are learned")
    columns: Columns | None = Field(None, description="as `data.columns`")
    encoding: str = Field("utf-8", description="as `data.encoding`")

    @field_validator("file")
    @classmethod
    def _from_anywhere(cls, value: str) -> str:
        return findable(value)


class DataSettings(Settings):
    """How records are read, and how examples become batches."""

    columns: Columns | None = Field(
        None,
        description="what prompt, target, history and system are called in files of records; default: a known format",
    )
    encoding: str = Field("utf-8", description="of text files, e.g. gb18030 for GBK")
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="at faulty records: stop and tell all of them, or skip them into FILE.skipped.jsonl"
    )
    deduplicate: Literal["none", "exact", "near"] = Field(
        "none",
        description="leave out records that were there before: exact (but for blanks and case), or near (ROUGE-L of "
        "prompt and target at least 0.7; more than 1000 records need datasketch)",
    )
    turns: Literal["all", "last", "each"] = Field(
        "all",
        description="of a conversation, learn all answers in one pass, as far as the template can (those of ChatGLM-6B "
        "and ChatGLM2-6B: the last alone); the last; or each, as an example of its own",
    )
    join_turns: bool = Field(
        False,
        description="join turns of one role in a row, with a line break between them; else such records are faulty",
    )
    mixture: list[Source] = Field(
        [],
        description="more to learn, e.g. [{file: general.jsonl, share: 0.2}]: general data is the remedy for "
        "forgetting",
    )
    template: str | None = Field(
        None,
        description="chatglm, chatglm2, chatglm3, glm4, alpaca, vicuna, chatml, plain, or a path to a .jinja file; "
        "default: the template of the model's tokenizer. What a run learned with travels with it",
    )
    packing: bool = Field(
        False,
        description="put several examples in a row, without one seeing another: no padding where lengths differ, and "
        "the same loss",
    )
    max_length: int | None = Field(
        None, ge=8, description="longest example in tokens. Default: what the model can take"
    )
    too_long: Literal["stop", "drop", "truncate"] = Field(
        "stop",
        description="at records longer than that: stop and tell all of them; drop them; or truncate them: first the "
        "oldest rounds, then the beginning of the prompt, never the answer. With drop and truncate, held-out ones are "
        "left out",
    )
    train_on_bos: bool = Field(
        False,
        description="the control token before an answer is learned, too, as in the official script of ChatGLM-6B "
        "(`<sop>`)",
    )
    first_draw: int = Field(
        0,
        ge=0,
        description="of a task that draws without end: how many examples were drawn before, so that others are "
        "learned; a run that goes on from a run begins after its draws",
    )
    cache: bool = Field(
        True,
        description="keep the tokens of 1000 records and more in HF_HOME/glmtune for the next run; needs pyarrow",
    )

    @field_validator("template")
    @classmethod
    def _from_anywhere(cls, value: str | None) -> str | None:
        """The recipe of a run names a file so that it is found from any folder."""
        return findable(value) if value else value

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            return codecs.lookup(value).name
        except LookupError:
            raise ValueError("no such encoding; try utf-8, gb18030, big5 or utf-16") from None

    @field_validator("mixture")
    @classmethod
    def _leaves_some(cls, value: list[Source]) -> list[Source]:
        if sum(source.share for source in value) >= 1:
            raise ValueError("the shares leave nothing of the task itself; their sum must be below 1")
        return value


class TrainingSettings(Settings):
    """How long and how fast to learn. A step is one update of the weights."""

    output_dir: str | None = Field(None, description="run folder; default: the next free runs/TASK-METHOD-N")
    steps: int | None = Field(
        None,
        ge=1,
        description=f"optimizer steps; default: from `epochs`, or {ENDLESS_STEPS} where a task draws without end",
    )
    epochs: float = Field(
        3, gt=0, description="passes over the records, where a task has records and `steps` is not set"
    )
    devices: Literal["all"] | Annotated[int, Field(ge=1)] = Field(
        "all",
        description="processes of `glmtune train`, each on a GPU of its own; all: every visible GPU, or one process "
        "where there is none. On a CPU, a number starts so many. Where torchrun or another launcher started them, they "
        "count",
    )
    sharding: Literal["none", "full"] = Field(
        "none",
        description="full: several processes divide the weights, their gradients and what the optimizer gathers "
        "(FSDP2), and a layer is whole only while it computes; with optimizer=adamw",
    )
    cpu_offload: bool = Field(
        False,
        description="keep each process's share of these in the machine's memory, where the optimizer works, too: less "
        "memory of the GPU, and slower; with sharding=full, there also by one process alone",
    )
    batch_size: int = Field(32, ge=1, description="examples per micro-batch: the most that a device holds at a time")
    gradient_accumulation_steps: int = Field(
        1,
        ge=1,
        description="micro-batches per step, on one device; several devices divide the examples of a step, which are "
        "`batch_size` times this, however many devices there are",
    )
    learning_rate: float | None = Field(None, gt=0, description="peak learning rate of AdamW; default: the method's")
    optimizer: Annotated[str, RowOf("glmtune.training.optimizers")] = Field(
        "adamw", description="how the weights are updated; `glmtune ls` shows the optimizers", validate_default=False
    )
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup"] = Field(
        "cosine", description="course of the learning rate after the warm-up"
    )
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the rate rises")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    adam_beta2: float = Field(0.999, gt=0, lt=1, description="AdamW beta 2")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third more time")
    logging_steps: int | None = Field(
        None, ge=1, description="steps between two records of the loss; default: a fiftieth of all steps, 20 at most"
    )
    eval_steps: int | None = Field(None, ge=1, description="steps between two evaluations; default: a tenth of all")
    early_stopping_patience: int | None = Field(
        None, ge=1, description="stop after so many evaluations without a better one; default: never"
    )
    trackers: list[Annotated[str, RowOf("glmtune.training.trackers")]] = Field(
        [],
        description="where the run is shown beside its own log; `glmtune ls` shows the trackers. They stay offline, "
        "in the run folder, unless their own variables (WANDB_MODE, ...) say otherwise",
    )
    save_total_limit: int = Field(
        2, ge=1, description="checkpoints kept beside the best one; the last two always, as the last may be damaged"
    )
    save_seconds: float = Field(
        600, gt=0, description="time after which a checkpoint is written though no evaluation is due"
    )
    grace_seconds: float = Field(
        30,
        gt=0,
        description="time from SIGTERM to the end of the machine: the step at hand is finished if that takes less than "
        "half of it, or is given up, and a checkpoint is written",
    )

    @property
    def checkpoints_kept(self) -> int:
        """Last checkpoints that are kept, beside the best one."""
        return max(2, self.save_total_limit)

    @property
    def examples_per_step(self) -> int:
        """Examples of one update of the weights."""
        return self.batch_size * self.gradient_accumulation_steps

    def logged_every(self, steps: int) -> int:
        """Return the steps between two records of a run of so many: those of a short one make a curve, too."""
        return self.logging_steps or max(1, min(20, steps // 50))

    def evaluated_every(self, steps: int) -> int:
        """Return the steps between two evaluations of a run of so many."""
        return self.eval_steps or max(1, -(-steps // 10))


class EvaluationSettings(Settings):
    """How the held-out examples are judged."""

    num_examples: int = Field(500, ge=1, description="held-out examples before and after training")
    num_examples_during: int = Field(
        200, ge=1, description="held-out examples at each evaluation during training; never more than `num_examples`"
    )
    max_seconds: float = Field(
        600,
        gt=0,
        description="time to answer the held-out examples before a training, again after it, and at all evaluations "
        "during it together: fewer are asked where more would take longer, as a few timed ones tell",
    )
    text_metrics: bool = Field(True, description="report rouge and BLEU-4 as the official ChatGLM evaluation does")
    forgetting: bool = Field(
        False,
        description="ask general questions before and after, too: what did it forget? A run that has ended is judged "
        "anew by `glmtune train --resume RUN evaluation.forgetting=true`",
    )
    general_file: str | None = Field(
        None, description="general questions, a file as `task.file` of instructions; default: 200 built-in ones"
    )

    @field_validator("general_file")
    @classmethod
    def _from_anywhere(cls, value: str | None) -> str | None:
        return findable(value) if value else value


class GenerationSettings(Settings):
    """How answers are decoded."""

    max_new_tokens: int | None = Field(
        None,
        ge=1,
        description=f"longest answer in tokens; default: the longest held-out answer and a quarter more, at least "
        f"{SHORT_ANSWER}; where there are none, what the prompt leaves of the model's limit, up to {LONG_ANSWER}",
    )
    batch_size: int = Field(64, ge=1, description="prompts decoded together")
    do_sample: bool = Field(False, description="sample instead of taking the likeliest token")
    temperature: float = Field(0.95, gt=0, description="sampling temperature")
    top_p: float = Field(0.7, gt=0, le=1, description="sample from the likeliest tokens of this total probability")
    top_k: int | None = Field(None, ge=1, description="sample from so many of the likeliest tokens; default: all")
    repetition_penalty: float = Field(
        1.0, ge=0.01, description="divide the scores of tokens that prompt or answer hold by this; 1: as they are"
    )
    num_samples: int = Field(
        1,
        ge=1,
        le=1000,
        description="sample so many answers to each prompt, of which `glmtune predict` takes one; `glmtune evaluate` "
        "shows that beside one answer alone. Nothing else asks more than once",
    )
    choose: Literal["majority", "checked"] = Field(
        "majority",
        description="which of `num_samples` answers is taken: one that says what most of them say; or, of those whose "
        "working holds, one that says what most of these say (of all, where none holds)",
    )
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="taken from the scores of tokens of the answer")
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="taken from the scores of tokens of the answer, once for each time"
    )

    @property
    def sampled(self) -> GenerationSettings:
        """These settings as each of `num_samples` answers is decoded: sampled, where there are several."""
        return self.model_copy(update={"do_sample": self.do_sample or self.num_samples > 1})

    @property
    def longest(self) -> int:
        """`max_new_tokens`, or what short answers need where nothing is known of them."""
        return self.max_new_tokens or SHORT_ANSWER


class Recipe(Settings):
    """Everything that determines a run."""

    format: Literal[2] = Field(2, description="version of this format")
    seed: int = Field(42, ge=0, description="seed of data, weights and dropout")
    model: ModelSettings = ModelSettings()
    task: NamedSettings = NamedSettings(name="arithmetic")
    method: NamedSettings = NamedSettings(name="lora")
    objective: NamedSettings = NamedSettings(name="sft")
    data: DataSettings = DataSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    generation: GenerationSettings = GenerationSettings()
