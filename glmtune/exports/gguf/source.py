"""What a GGUF file is written from: a checkpoint folder in transformers' layout, of a family that llama.cpp has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.models.checkpoint import check_checkpoint, lazy_weights, read_json
from glmtune.models.families import GgufFacts, all_families, family_of
from glmtune.models.gguf.header import load_library
from glmtune.runtime import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

EXPERT = re.compile(r"(\.experts)\.(\d+)(\.\w+\.weight)\Z")  # in the names of a checkpoint's weights


@dataclass(frozen=True)
class Source:
    """What a checkpoint folder in transformers' layout holds.

    Attributes:
        config: `config.json`, with the defaults of transformers' class filled in.
        weights: name -> weight, not read yet, of all that the model needs; a tied head is left out.
        tokenizer: `tokenizer.json`.
        settings: `tokenizer_config.json`, with the chat template.
        ends: ids of tokens that end an answer by `generation_config.json`.
    """

    config: PreTrainedConfig
    weights: dict[str, Any]
    tokenizer: dict[str, Any]
    settings: dict[str, Any]
    ends: list[int]

    @property
    def facts(self) -> GgufFacts:
        """Return how llama.cpp computes its family."""
        facts = family_of(self.config.to_dict()).gguf
        assert facts is not None, "check_config has looked"
        return facts

    @property
    def architecture(self) -> str:
        """Return llama.cpp's name of its architecture."""
        gguf = load_library()
        return str(gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[self.facts.architecture]])

    @property
    def head_dim(self) -> int:
        """Numbers of one attention head."""
        stated = self.config.to_dict().get("head_dim")  # which some configurations do not have
        return int(stated or self.config.hidden_size // self.config.num_attention_heads)


def check_config(config: Mapping[str, Any]) -> None:
    """Check that llama.cpp can compute what a `config.json` describes, from weights as it describes them.

    Raises:
        UserError: it cannot.
    """
    family = family_of(config)
    if family.gguf is None:
        known = ", ".join(name for other in all_families() if other.gguf for name in other.model_types)
        raise UserError(
            family.gguf_remedy
            or f"config.json: model_type={config.get('model_type')} cannot be written as GGUF here, only {known}. "
            "Use --to merged, and llama.cpp's own convert_hf_to_gguf.py on what that gives."
        )
    for key in ("quantization_config", "quantization_bit"):
        if config.get(key):
            raise UserError(
                f"config.json: {key}={config[key]}: GGUF is written from weights of 16 or 32 bits. Export from the "
                "model of 16 bits; --dtype q8_0 makes the file small."
            )
    check_numbers(config, family.gguf)


def check_numbers(config: Mapping[str, Any], facts: GgufFacts) -> None:
    """Check that llama.cpp's graph of a family has a place for the numbers of a `config.json`.

    Raises:
        UserError: it has none.
    """
    activation = config.get("hidden_activation") or config.get("hidden_act", "silu")
    if activation not in (facts.activation, *(["swish"] if facts.activation == "silu" else ())):
        raise UserError(
            f"config.json: hidden_act={activation}: llama.cpp computes {facts.activation}. Use --to merged."
        )
    if misfit := next(iter(facts.misfits(config)), None):
        raise UserError(f"config.json: {misfit}: llama.cpp's {config['model_type']} is another. Use --to merged.")
    heads, head_dim, width = (config.get(key) for key in ("num_attention_heads", "head_dim", "hidden_size"))
    if facts.heads_fill_width and head_dim and head_dim * heads != width:
        raise UserError(
            f"config.json: {heads} heads with head_dim={head_dim} do not make hidden_size={width}, as llama.cpp "
            "asks for. Use --to merged."
        )
    if (rope := rope_type(config)) not in facts.rope_types:
        raise UserError(
            f"config.json: rope_type={rope} of a {config['model_type']} model cannot be written as GGUF here, only "
            f"{', '.join(facts.rope_types)}. Use --to merged."
        )


def rope_type(config: Mapping[str, Any]) -> str:
    """Return how rotary positions are stretched, under transformers' newer or older names."""
    values = config.get("rope_parameters") or config.get("rope_scaling") or {}
    values = values.get("full_attention") or values
    return str(values.get("rope_type") or values.get("type") or "default")


def read_source(folder: Path) -> Source:
    """Return the checkpoint of a folder; its weights stay on the disk.

    Raises:
        UserError: it cannot be written as GGUF, or files are missing, damaged or do not fit each other.
    """
    from transformers import AutoConfig

    check_checkpoint(folder)
    check_config(read_json(folder / "config.json"))
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} has no tokenizer.json, which a GGUF file is written from. Use --to merged first.")
    config = AutoConfig.from_pretrained(folder)
    optional = {name: folder / f"{name}.json" for name in ("tokenizer_config", "generation_config")}
    values = {name: read_json(file) if file.is_file() else {} for name, file in optional.items()}
    template = folder / "chat_template.jinja"
    if template.is_file():
        values["tokenizer_config"]["chat_template"] = template.read_text(encoding="utf-8")
    ends = values["generation_config"].get("eos_token_id", config.eos_token_id)
    return Source(
        config,
        require_weights(config, lazy_weights(folder), folder),
        read_json(folder / "tokenizer.json"),
        values["tokenizer_config"],
        [] if ends is None else ends if isinstance(ends, list) else [ends],
    )


def require_weights(config: PreTrainedConfig, weights: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the weights that a model has by its configuration, in its order; a tied head is left out.

    Those of experts are stacked, and else under the names that they have in files.

    Raises:
        UserError: weights are missing, of another shape, or more than these.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = revert_weight_conversion(model, model.state_dict())
    expected = {name: tuple(weight.shape) for name, weight in names.items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    for name, shape in expected.items():
        if name not in weights:
            raise UserError(f"{folder} lacks the weight {name}, which its config.json asks for. Copy it again.")
        if shape_of(weights[name]) != shape:
            raise UserError(
                f"{folder}: {name} is {list(shape_of(weights[name]))} in the files, {list(shape)} by config.json. "
                "Copy both again."
            )
    unused = [name for name in weights.keys() - expected if not name.endswith(("lm_head.weight", ".inv_freq"))]
    if unused:
        raise UserError(
            f"{folder}: {len(unused)} weights are not of a {config.model_type} model: {min(unused)} ... "
            "Merge adapters first: --to merged."
        )
    return stack_experts({name: weights[name] for name in expected})


@dataclass(frozen=True)
class Stack:
    """A layer of all experts of a block, (experts, rows, columns), none of them read yet."""

    weights: tuple[Any, ...]

    def get_shape(self) -> list[int]:
        """Return the shape, as what is in a safetensors file has it."""
        return [len(self.weights), *shape_of(self.weights[0])]

    def __getitem__(self, index: Any) -> torch.Tensor:
        import torch

        return torch.stack([weight[...] for weight in self.weights])[index]


def stack_experts(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return weights with those of experts, which files hold one by one, put together."""
    experts: dict[str, dict[int, Any]] = {}
    for name, weight in weights.items():
        if match := EXPERT.search(name):
            experts.setdefault(EXPERT.sub(r"\1\3", name), {})[int(match[2])] = weight
    stacks = {name: Stack(tuple(parts[place] for place in sorted(parts))) for name, parts in experts.items()}
    return {name: weight for name, weight in weights.items() if not EXPERT.search(name)} | stacks


def shape_of(weight: Any) -> tuple[int, ...]:
    """Return the shape of a weight, be it a tensor or still in a safetensors file."""
    import torch

    return tuple(weight.shape if isinstance(weight, torch.Tensor) else weight.get_shape())
