"""A GGUF file as a whole: written, and read back and compared with the checkpoint before it takes its name."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from glmtune.exports.gguf.precisions import PRECISIONS, GgufPrecision
from glmtune.exports.gguf.source import Source, read_source, rope_type
from glmtune.exports.gguf.tensors import check_tensor, encode_tensor, kinds_of, tensors_of
from glmtune.exports.gguf.tokenizer import vocabulary_of
from glmtune.files import replacing
from glmtune.models.gguf.header import load_library
from glmtune.runtime import UserError

if TYPE_CHECKING:
    import torch


def write_gguf(folder: Path, output: Path, precision: GgufPrecision = "f16") -> None:
    """Write a checkpoint as a GGUF file, one weight at a time. It takes its name when it has been read back.

    Args:
        folder: in transformers' layout, with a `tokenizer.json`.
        output: the file; one that is there is replaced.
        precision: of the matrices, by `precisions.py`.

    Raises:
        UserError: a model that cannot be written, a file that is missing or damaged, numbers too large for f16, a full
            disk, or no gguf package.
    """
    gguf = load_library()
    source = read_source(Path(folder))
    tensors = list(tensors_of(source))
    kinds = kinds_of(tensors, precision, source.config.num_hidden_layers)
    with replacing(output) as temporary:
        with closing(gguf.GGUFWriter(temporary, source.architecture)) as writer:
            writer.add_name(Path(output).stem)
            for key, value in fields_of(source, precision).items():
                kind = gguf.GGUFValueType.get_type(value)
                writer.add_key_value(key, value, gguf.GGUFValueType.UINT32 if kind.name == "INT32" else kind)
            for tensor in tensors:
                kind = gguf.GGMLQuantizationType[kinds[tensor.name]]
                numbers, size = gguf.GGML_QUANT_SIZES[kind]
                writer.add_tensor_info(tensor.name, tensor.shape, None, math.prod(tensor.shape) // numbers * size, kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            total = sum(math.prod(tensor.shape) for tensor in tensors)
            with tqdm(total=total, desc=f"writing {precision}", unit="number", unit_scale=True, delay=1) as bar:
                for tensor in tensors:
                    writer.write_tensor_data(encode_tensor(tensor, kinds[tensor.name]))
                    bar.update(math.prod(tensor.shape))
        verify_gguf(folder, temporary)


def verify_gguf(folder: Path, output: Path) -> None:
    """Read a GGUF file back and compare all of it with the checkpoint that it was written from.

    Raises:
        UserError: it cannot be read, or something differs.
    """
    file_types = load_library().LlamaFileType
    source = read_source(Path(folder))
    found, stored = read_contents(Path(output))
    file_type = found.get("general.file_type")
    by_type = {int(file_types[known.file_type]): precision for precision, known in PRECISIONS.items()}
    precision = by_type.get(file_type)  # type: ignore[arg-type]
    if precision is None:
        raise UserError(f"{output}: general.file_type={file_type} is none that is written here. Export again.")
    expected = {"general.architecture": source.architecture, **fields_of(source, precision)}
    for key, value in expected.items():
        if not is_same(found.get(key), value):
            raise UserError(f"{output}: {key} is {shorten(found.get(key))}, not {shorten(value)}. Export again.")
    tensors = {tensor.name: tensor for tensor in tensors_of(source)}
    if odd := sorted(tensors.keys() ^ stored.keys()):
        raise UserError(
            f"{output} holds {len(stored)} tensors, {folder} makes {len(tensors)}; {odd[0]} is only in one of them. "
            "Export again."
        )
    kinds = kinds_of(list(tensors.values()), precision, source.config.num_hidden_layers)
    for name, tensor in tensors.items():
        check_tensor(tensor, stored[name], kinds[name], Path(output))


def read_numbers(folder: Path, output: Path, model: torch.nn.Module) -> bool:
    """Give a model the numbers that a GGUF file holds of it; return whether it has a place for each of them.

    Args:
        folder: the checkpoint that the file was written from.
        output: the file.
        model: loaded from the folder.
    """
    import torch

    dequantize = load_library().quants.dequantize
    _, stored = read_contents(output)
    weights = model.state_dict()
    tensors = [tensor for tensor in tensors_of(read_source(folder)) if tensor.origin]
    if any(tensor.origin not in weights for tensor in tensors):
        return False
    with torch.no_grad():
        for tensor in tensors:
            found = stored[tensor.name]
            values = dequantize(found.data, found.tensor_type).reshape(tensor.shape)
            weights[tensor.origin].copy_(torch.tensor(tensor.back(values)))
    return True


def kinds_in(output: Path) -> list[str]:
    """Return the type of each tensor of a file, as a member of gguf.GGMLQuantizationType."""
    return [tensor.tensor_type.name for tensor in read_contents(output)[1].values()]


def read_contents(output: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return key -> value, and name -> tensor, of a GGUF file; the tensors are mapped, not read.

    Raises:
        UserError: it is damaged.
    """
    try:
        reader = load_library().GGUFReader(output)
        return {key: field.contents() for key, field in reader.fields.items()}, {t.name: t for t in reader.tensors}
    except Exception as error:  # the reader trusts the file: whatever it stumbles over comes out
        raise UserError(f"{output} is no whole GGUF file: {error}. Copy it or export again.") from error


def is_same(found: Any, expected: Any) -> bool:
    """Return whether a value of the file is the one that was written; fractions are stored in fp32."""
    if isinstance(expected, float):
        return isinstance(found, float) and math.isclose(found, expected, rel_tol=1e-6)
    return bool(found == expected)


def shorten(value: Any) -> str:
    """Return a value for a message: of a list its length."""
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:100]


def fields_of(source: Source, precision: GgufPrecision) -> dict[str, Any]:
    """Return all that the file says beside its weights, by GGUF's keys; its architecture and name are the writer's."""
    gguf = load_library()
    return {
        "general.type": "model",
        "general.file_type": int(gguf.LlamaFileType[PRECISIONS[precision].file_type]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **sizes_of(source),
        **vocabulary_of(source),
    }


def sizes_of(source: Source) -> dict[str, Any]:
    """Return the numbers of the architecture. C width, H heads, D head size: keys of D = C/H are left to llama.cpp."""
    config, head_dim = source.config, source.head_dim
    rope = config.rope_parameters.get("full_attention") or config.rope_parameters
    window = None if source.facts.has_windows else config.to_dict().get("sliding_window")
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": min(config.max_position_embeddings, window or config.max_position_embeddings),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads or config.num_attention_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1)),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if head_dim * config.num_attention_heads != config.hidden_size:
        values |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if rope_type(config.to_dict()) == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    values |= source.facts.fields(config.to_dict())
    prefix = source.architecture
    return {f"{prefix}.{key}": value for key, value in values.items()}
