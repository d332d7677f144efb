"""A whole model in transformers' own layout, which transformers alone opens where it has the model's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from glmtune.data.encoding import encode_prompt
from glmtune.exports.reference import TOLERANCE, relative_difference
from glmtune.files import write_json
from glmtune.inference.reading import stops_of
from glmtune.messages import Prompt
from glmtune.methods import Model
from glmtune.models.architecture import stored_bits
from glmtune.models.checkpoint import read_json
from glmtune.models.families import family_of
from glmtune.models.low_rank import base_weight, tied_updates, updated_layers
from glmtune.models.quantization import unpack_layers
from glmtune.runtime import UserError

PROBES = 8  # inputs on which a layer is compared with itself merged


def unpack_and_merge(model: Model, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> PreTrainedModel:
    """Return base and adapter as one ordinary model; `model` itself if it has no adapter beside it.

    Raises:
        UserError: the adapter cannot be merged, or the merged model answers otherwise.
    """
    if stored_bits(model.config) < 16:  # a packed release: the same numbers, as floats
        unpack_layers(model, model.dtype)
        model.config.quantization_bit, model.config.quantization_embeddings = 0, False
    if not isinstance(model, PeftModel):
        return model
    return merge_adapter(model, torch.tensor([encode_prompt(tokenizer, prompt)]))


def merge_adapter(model: PeftModel, input_ids: Tensor) -> PreTrainedModel:
    """Make an adapter part of the weights of its base: an ordinary model, of the base's class and precision.

    Args:
        model: base and adapter, as `glmtune.load` gives them; used up, the adapter is taken off it.
        input_ids: (B, T) a prompt on which the merged model must give the logits that it gave unmerged, up to
            `TOLERANCE` times their size.

    Each layer is merged in fp32 and rounded once, one at a time, so that no second copy of the base is held; what it
    makes of random inputs must be what it made of them unmerged, by fp32.

    Returns:
        The merged model, in evaluation mode.

    Raises:
        UserError: the adapter is no change of weights, the base is stored at 8 or 4 bits, or the merged model answers
            otherwise. `model` then is unmerged as before, up to rounding.
    """
    check_mergeable(model)
    model.eval()
    tuner: Any = model.base_model  # peft's, which knows how to merge
    input_ids = input_ids.to(model.device)
    with torch.no_grad():
        expected = model(input_ids=input_ids).logits.float()
    try:
        with torch.no_grad():
            for name, layer in updated_layers(model):
                merge_layer(name, layer)
            found = model(input_ids=input_ids).logits.float()
        difference = relative_difference(found, expected)
        tolerance = TOLERANCE.get(model.dtype, TOLERANCE[torch.float32])
        if not difference <= tolerance:  # nor if it is no number
            raise UserError(
                f"The merged model answers otherwise than base and adapter: logits differ by {difference:.1e} of "
                f"their size, {tolerance:.0e} is what rounding to {model.dtype} explains. Nothing was merged. Load "
                "the base in float32 (dtype='float32'), and look whether the adapter holds very large weights."
            )
    except BaseException as error:
        for _, layer in updated_layers(model):
            if layer.merged:
                layer.unmerge()
        if type(error) is ValueError:  # peft's, on weights that are no finite numbers
            raise UserError(f"The adapter cannot be merged: {error}. Nothing was merged.") from error
        raise
    return tuner.unload().eval()


def merge_layer(name: str, layer: Any) -> None:
    """Make the update beside a layer part of it, in fp32, rounded once to the layer's own precision.

    Raises:
        UserError: of random inputs the merged layer makes something else.
        ValueError: weights that are no finite numbers.
    """
    base = layer.get_base_layer()
    held = {key: weight.dtype for key, weight in base.named_parameters(recurse=False) if weight.is_floating_point()}
    try:
        for key in held:
            weight = base.get_parameter(key)
            weight.data = weight.data.float()
        inputs = random_inputs(base)
        expected = layer(inputs) if inputs is not None else None
        layer.merge(safe_merge=True)
        off = relative_difference(layer(inputs), expected) if expected is not None else 0.0
        if not off <= TOLERANCE[torch.float32]:
            raise UserError(
                f"{name} answers otherwise once it is merged: it differs by {off:.1e} of its size in fp32. Nothing was "
                "merged. Look whether the adapter holds very large weights."
            )
    finally:
        for key, dtype in held.items():
            weight = base.get_parameter(key)
            weight.data = weight.data.to(dtype)


def random_inputs(base: nn.Module) -> Tensor | None:
    """Return something that a layer can be given alone; None where it is of a kind that needs more."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(base, nn.Embedding):
        return torch.randint(base.num_embeddings, (1, PROBES), generator=generator).to(base.weight.device)
    if isinstance(base, nn.Linear | Conv1D):
        width = base.in_features if isinstance(base, nn.Linear) else base.weight.shape[0]
        return torch.randn(1, PROBES, width, generator=generator).to(base.weight.device)
    return None


def check_mergeable(model: Any) -> None:
    """Check that an adapter can be merged.

    Raises:
        UserError: there is none, it is a prefix, its base is stored at 8 or 4 bits, or it updates a head that is the
            embedding.
    """
    if not isinstance(model, PeftModel):
        raise UserError(f"This {type(model).__name__} has no adapter to merge: it can be used and saved as it is.")
    if model.active_peft_config.is_prompt_learning:
        raise UserError(
            "A prefix is no change of weights, so that it cannot be merged into them. Keep the adapter beside its base."
        )
    if tied := tied_updates(model):
        raise UserError(
            f"{tied[0]} has an update, and head and embedding are one matrix in this model (tie_word_embeddings), of "
            "which the other would change, too. Keep the adapter beside its base, or train one without that layer."
        )
    for name, layer in updated_layers(model):
        if not base_weight(layer).is_floating_point():
            raise UserError(
                f"{name} is stored at 8 or 4 bits, and an update merged into it would be rounded away. Load the base "
                "at 16 bits (bits=16, of a packed checkpoint the 16-bit release) with this adapter, then merge."
            )


def save_merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype) -> None:
    """Write a model and its tokenizer, which holds the template.

    What ends an answer is written down, so that `generate` stops without knowing the template.
    """
    stops = stops_of(model, tokenizer)
    model.generation_config = type(model.generation_config)(
        eos_token_id=stops if len(stops) > 1 else stops[0], pad_token_id=tokenizer.pad_token_id
    )
    model.to(dtype).save_pretrained(str(folder))  # type: ignore[arg-type]
    tokenizer.save_pretrained(str(folder))
    if extra := family_of(model.config.to_dict()).extra_config:
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", config | extra(config))
