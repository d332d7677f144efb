"""A checkpoint as one GGUF file, which llama.cpp and all that is built on it read.

The file holds the weights under ggml's names, the sizes of the model, the tokenizer and its chat template
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). What llama.cpp needs of each architecture was read in its
loader and graphs (src/models/chatglm.cpp, glm4.cpp, llama.cpp) and in its tokenizer (src/llama-vocab.cpp).

What a GGUF file cannot say is told by a warning. llama.cpp puts no control token but one `bos` before a text: the
`[gMASK]<sop>` of the GLM models come from the chat template, or from whoever writes the prompt.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glmtune.models.checkpoint import check_checkpoint, lazy_weights, read_json
from glmtune.runtime import UserError, replacing

if TYPE_CHECKING:
    import torch
    from numpy import ndarray
    from transformers import PreTrainedConfig

Precision = Literal["f32", "f16", "bf16", "q8_0"]

ARCHITECTURES = {"glm": "CHATGLM", "glm4": "GLM4", "llama": "LLAMA"}  # model_type -> a member of gguf.MODEL_ARCH
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
ROPE_TYPES = {"glm": ("default", "linear"), "glm4": ("default", "linear"), "llama": ("default", "linear", "llama3")}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens, in SentencePiece's numbers
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
# How a text is cut before its bytes are merged: the expression of tokenizer.json -> llama.cpp's name for it.
CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {CUT % "{1,3}": "llama-bpe", CUT % "": "qwen2"}
ROLES = ("<|user|>", "<|observation|>")  # who speaks next: such a token ends an answer of the GLM models
GENERATION = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
TEMPLATE = "TemplateProcessing"  # the step of tokenizer.json that puts control tokens around a text
CHUNK = 2**24  # numbers that are compared at a time: 64 MB in fp32


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
    def family(self) -> str:
        """`model_type` of the configuration."""
        return str(self.config.model_type)

    @property
    def head_dim(self) -> int:
        """Numbers of one attention head."""
        return int(self.config.head_dim or self.config.hidden_size // self.config.num_attention_heads)


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file.

    Attributes:
        name: ggml's.
        weight: the checkpoint's, not read yet.
        heads: of a projection whose rows are reordered; 0 where they stay.
    """

    name: str
    weight: Any
    heads: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first; ggml itself counts the other way round."""
        return shape_of(self.weight)

    def read(self) -> ndarray:
        """The numbers in fp32, as the file is to hold them.

        transformers' Llama turns the numbers i and i + D/2 of a head as one pair, llama.cpp 2i and 2i + 1.
        """
        values: ndarray = self.weight[...].float().numpy()
        if not self.heads:
            return values
        return values.reshape(self.heads, 2, -1, *self.shape[1:]).swapaxes(1, 2).reshape(self.shape)

    def kind(self, precision: str) -> str:
        """Its type in a file of some precision, as a member of gguf.GGMLQuantizationType.

        What is no matrix stays in fp32: llama.cpp's kernels add it to numbers in fp32.
        """
        if len(self.shape) < 2:
            return "F32"
        return "F16" if precision == "q8_0" and self.shape[-1] % 32 else precision.upper()


def library() -> Any:
    """The `gguf` package, which is an extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise UserError("A GGUF file needs the package gguf. Install it: pip install 'glmtune[gguf]'") from error
    return gguf


def check(config: Mapping[str, Any]) -> None:
    """See whether llama.cpp can compute what a `config.json` describes, from weights as it describes them.

    Raises:
        UserError: it cannot.
    """
    family = str(config.get("model_type"))
    if family == "chatglm" and "ffn_hidden_size" in config:
        raise UserError(
            "config.json: model_type=chatglm with ffn_hidden_size is the original layout of ChatGLM2-6B, ChatGLM3-6B "
            "or GLM-4-9B. GGUF is written from transformers' layout: export with --to merged first."
        )
    if family == "chatglm":
        raise UserError(
            "config.json: model_type=chatglm is ChatGLM-6B, and llama.cpp has no such architecture: its positions have "
            "two rows, and it reads a prompt in both directions. Use --to merged or --to original."
        )
    if family not in ARCHITECTURES:
        raise UserError(
            f"config.json: model_type={family} cannot be written as GGUF here, only {', '.join(ARCHITECTURES)}. "
            "Use --to merged, and llama.cpp's own convert_hf_to_gguf.py on what that gives."
        )
    for key in ("quantization_config", "quantization_bit"):
        if config.get(key):
            raise UserError(
                f"config.json: {key}={config[key]}: GGUF is written from weights of 16 or 32 bits. Export from the "
                "model of 16 bits; --dtype q8_0 makes the file small."
            )
    check_numbers(config, family)


def check_numbers(config: Mapping[str, Any], family: str) -> None:
    """See whether llama.cpp's graph of a family has a place for the numbers of a `config.json`.

    Raises:
        UserError: it has none.
    """
    if (activation := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise UserError(f"config.json: hidden_act={activation}: llama.cpp computes silu. Use --to merged.")
    heads, head_dim, width = (config.get(key) for key in ("num_attention_heads", "head_dim", "hidden_size"))
    if family == "glm" and head_dim and head_dim * heads != width:
        raise UserError(
            f"config.json: {heads} heads with head_dim={head_dim} do not make hidden_size={width}, as llama.cpp's "
            "chatglm asks for. Use --to merged."
        )
    if (rope := rope_type(config)) not in ROPE_TYPES[family]:
        raise UserError(
            f"config.json: rope_type={rope} of a {family} model cannot be written as GGUF here, only "
            f"{', '.join(ROPE_TYPES[family])}. Use --to merged."
        )


def rope_type(config: Mapping[str, Any]) -> str:
    """How rotary positions are stretched, under transformers' newer or older names."""
    values = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return str(values.get("rope_type") or values.get("type") or "default")


def write(folder: Path, output: Path, precision: Precision = "f16") -> None:
    """Write a checkpoint as a GGUF file, one weight at a time. It takes its name when it has been read back.

    Args:
        folder: in transformers' layout, with a `tokenizer.json`.
        output: the file; one that is there is replaced.
        precision: of the matrices. q8_0 takes 8.5 bits a number; rows that are no multiple of 32 become f16.

    Raises:
        UserError: a model that cannot be written, a file that is missing or damaged, numbers too large for f16, a full
            disk, or no gguf package.
    """
    gguf = library()
    source = read(Path(folder))
    tensors = list(tensors_of(source))
    with replacing(output) as temporary:
        with closing(gguf.GGUFWriter(temporary, architecture(source))) as writer:
            writer.add_name(Path(output).stem)
            for key, value in fields(source, precision).items():
                kind = gguf.GGUFValueType.get_type(value)
                writer.add_key_value(key, value, gguf.GGUFValueType.UINT32 if kind.name == "INT32" else kind)
            for tensor in tensors:
                kind = gguf.GGMLQuantizationType[tensor.kind(precision)]
                numbers, size = gguf.GGML_QUANT_SIZES[kind]
                writer.add_tensor_info(tensor.name, tensor.shape, None, math.prod(tensor.shape) // numbers * size, kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in tensors:
                writer.write_tensor_data(encode(tensor, tensor.kind(precision)))
        verify(folder, temporary)


def round_numbers(model: torch.nn.Module) -> None:
    """Give a model the numbers that a file of q8_0 holds of it."""
    import torch

    quants = library().quants
    kind = library().GGMLQuantizationType.Q8_0
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2 and weight.shape[1] % 32 == 0:
                values = quants.dequantize(quants.quantize(weight.float().cpu().numpy(), kind), kind)
                weight.copy_(torch.from_numpy(values))
            elif weight.ndim == 2:
                weight.copy_(weight.half())


def verify(folder: Path, output: Path) -> None:
    """Read a GGUF file back and compare all of it with the checkpoint that it was written from.

    Raises:
        UserError: it cannot be read, or something differs.
    """
    file_types = library().LlamaFileType
    source = read(Path(folder))
    found, stored = contents(Path(output))
    file_type = found.get("general.file_type")
    precision = {file_types[name]: precision for precision, name in FILE_TYPES.items()}.get(file_type)
    if precision is None:
        raise UserError(f"{output}: general.file_type={file_type} is none that is written here. Export again.")
    expected = {"general.architecture": architecture(source), **fields(source, precision)}
    for key, value in expected.items():
        if not same(found.get(key), value):
            raise UserError(f"{output}: {key} is {brief(found.get(key))}, not {brief(value)}. Export again.")
    tensors = {tensor.name: tensor for tensor in tensors_of(source)}
    if odd := sorted(tensors.keys() ^ stored.keys()):
        raise UserError(
            f"{output} holds {len(stored)} tensors, {folder} makes {len(tensors)}; {odd[0]} is only in one of them. "
            "Export again."
        )
    for name, tensor in tensors.items():
        compare(tensor, stored[name], tensor.kind(precision), Path(output))


def read(folder: Path) -> Source:
    """The checkpoint of a folder; its weights stay on the disk.

    Raises:
        UserError: it cannot be written as GGUF, or files are missing, damaged or do not fit each other.
    """
    from transformers import AutoConfig

    check_checkpoint(folder)
    check(read_json(folder / "config.json"))
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
        needed(config, lazy_weights(folder), folder),
        read_json(folder / "tokenizer.json"),
        values["tokenizer_config"],
        [] if ends is None else ends if isinstance(ends, list) else [ends],
    )


def needed(config: PreTrainedConfig, weights: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The weights that a model has by its configuration, in its order; a tied head is left out.

    Raises:
        UserError: weights are missing, of another shape, or more than these.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
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
    return {name: weights[name] for name in expected}


def shape_of(weight: Any) -> tuple[int, ...]:
    """The shape of a weight, be it a tensor or still in a safetensors file."""
    import torch

    return tuple(weight.shape if isinstance(weight, torch.Tensor) else weight.get_shape())


def architecture(source: Source) -> str:
    """llama.cpp's name of the model's architecture."""
    gguf = library()
    return str(gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[ARCHITECTURES[source.family]]])


def tensors_of(source: Source) -> Iterator[Tensor]:
    """The tensors of the file. GLM's `gate_up_proj` stays one: llama.cpp's `ffn_up` of these, with the gate first."""
    gguf = library()
    kind, config = gguf.MODEL_ARCH[ARCHITECTURES[source.family]], source.config
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    rotary = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in source.weights.items():
        heads = rotary.get(name.split(".")[-2], 0) if source.family == "llama" else 0  # GLM's pairs are llama.cpp's
        yield Tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), weight, heads)
    if rope_type(config.to_dict()) == "llama3":
        yield Tensor("rope_freqs.weight", llama3_divisors(source))


def llama3_divisors(source: Source) -> Any:
    """By what Llama 3.1 divides each rotary frequency, [D/2], from transformers' own frequencies."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    divided, _ = ROPE_INIT_FUNCTIONS["llama3"](source.config, torch.device("cpu"))
    exponents = torch.arange(0, source.head_dim, 2).float() / source.head_dim
    return source.config.rope_parameters["rope_theta"] ** -exponents / divided


def encode(tensor: Tensor, kind: str) -> ndarray:
    """The bytes of a tensor, as the file holds them.

    Raises:
        UserError: numbers that have no place in f16.
    """
    import numpy as np

    gguf = library()
    values = tensor.read()
    if kind == "F16" and (largest := np.abs(values).max()) > np.finfo(np.float16).max:
        raise UserError(f"{tensor.name} has numbers up to {largest:.3g}, and f16 ends at 65504. Use precision bf16.")
    encoded: ndarray = gguf.quants.quantize(np.ascontiguousarray(values), gguf.GGMLQuantizationType[kind])
    return encoded


def contents(output: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Key -> value, and name -> tensor, of a GGUF file; the tensors are mapped, not read.

    Raises:
        UserError: it is damaged.
    """
    try:
        reader = library().GGUFReader(output)
        return {key: field.contents() for key, field in reader.fields.items()}, {t.name: t for t in reader.tensors}
    except Exception as error:  # the reader trusts the file: whatever it stumbles over comes out
        raise UserError(f"{output} is no whole GGUF file: {error}. Copy it or export again.") from error


def same(found: Any, expected: Any) -> bool:
    """Whether a value of the file is the one that was written; fractions are stored in fp32."""
    if isinstance(expected, float):
        return isinstance(found, float) and math.isclose(found, expected, rel_tol=1e-6)
    return bool(found == expected)


def brief(value: Any) -> str:
    """A value for a message: of a list its length."""
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:100]


def compare(tensor: Tensor, stored: Any, kind: str, output: Path) -> None:
    """Compare a tensor of the file with the checkpoint's.

    Raises:
        UserError: it has another type or shape, or numbers that rounding does not explain.
    """
    import numpy as np

    gguf = library()
    where = f"{output}: {tensor.name}"
    shape = tuple(int(length) for length in reversed(stored.shape))
    if (stored.tensor_type.name, shape) != (kind, tensor.shape):
        raise UserError(f"{where} is {stored.tensor_type.name} {shape}, not {kind} {tensor.shape}. Export again.")
    expected = tensor.read()
    rows = max(1, CHUNK // tensor.shape[-1])
    for start in range(0, tensor.shape[0], rows):
        numbers = gguf.quants.dequantize(stored.data[start : start + rows], stored.tensor_type)
        wanted = expected[start : start + rows]
        if not np.all(np.abs(numbers - wanted) <= rounding(wanted, kind)):  # not all: also where one is no number
            raise UserError(f"{where} holds other numbers than the checkpoint. Export again.")


def rounding(values: ndarray, kind: str) -> Any:
    """How far numbers may be off, each or all, by being stored in a type: half a step, and no more.

    A block of q8_0 counts in steps of its largest number / 127; the step itself is rounded to f16.
    """
    import numpy as np

    if kind == "F32":
        return 0.0
    if kind == "Q8_0":
        largest = np.abs(values).reshape(*values.shape[:-1], -1, 32).max(-1).repeat(32, -1)
        return largest * (0.5 / 127 + 2.0**-10) + 127 * 2.0**-24
    return np.abs(values) * 2.0 ** (-11 if kind == "F16" else -8) + 2.0**-25


def fields(source: Source, precision: str) -> dict[str, Any]:
    """All that the file says beside its weights, by GGUF's keys; its architecture and name are the writer's."""
    gguf = library()
    return {
        "general.type": "model",
        "general.file_type": int(gguf.LlamaFileType[FILE_TYPES[precision]]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **sizes(source),
        **vocabulary(source),
    }


def sizes(source: Source) -> dict[str, Any]:
    """The numbers of the architecture. C width, H heads, D head size: keys of D = C/H are left to llama.cpp."""
    config, head_dim = source.config, source.head_dim
    rope = config.rope_parameters
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
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
    prefix = architecture(source)
    return {f"{prefix}.{key}": value for key, value in values.items()}


def vocabulary(source: Source) -> dict[str, Any]:
    """Tokens, how texts become tokens, control tokens and chat template.

    Raises:
        UserError: a kind of tokenizer that llama.cpp does not have, or one that does not fit the embedding.
    """
    model, tokenizer = source.tokenizer["model"], source.tokenizer
    tokens, kinds = table(source)
    values: dict[str, Any] = {"tokens": tokens, "token_type": kinds, **specials(source)}
    if model.get("type", "BPE") != "BPE" or not (is_byte_level(tokenizer) or model.get("byte_fallback")):
        raise UserError(f"tokenizer.json: llama.cpp has no {model.get('type')} without bytes. Use --to merged.")
    if is_byte_level(tokenizer):
        values |= {"model": "gpt2", "pre": cut_name(source), "merges": [" ".join(pair) for pair in merges(model)]}
    else:
        values |= {"model": "llama", "pre": "default", "scores": scores(tokens, kinds, merges(model))}
        values |= {"add_space_prefix": adds_blank(tokenizer)}
        if values["add_space_prefix"] and (whole := cut_out(tokenizer)):
            warn(f"cuts {min(whole)!r} out of texts, after which llama.cpp puts a blank")
    named = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    template = chat_template(source)
    return {**named, "tokenizer.chat_template": template} if template else named


def steps(tokenizer: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    """The steps of a part of tokenizer.json, which is one step, a sequence of them, or nothing."""
    found = tokenizer.get(part)
    inside = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors"}[part]
    return [] if found is None else found.get(inside) or [found]


def merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs that a BPE merges, first things first; older files write a pair as one text."""
    pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"])
    return [(left, right) for left, right in pairs]


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether texts are taken as bytes from the start, as GPT-2 does."""
    return any(step["type"] == "ByteLevel" for step in steps(tokenizer, "pre_tokenizer"))


def table(source: Source) -> tuple[list[str], list[int]]:
    """Text and type of every token, one for each row of the embedding.

    Raises:
        UserError: more tokens than rows, or two of the same text.
    """
    model, rows, names = source.tokenizer["model"], source.config.vocab_size, bracketed(source.tokenizer)
    whole = cut_out(source.tokenizer)
    texts = {index: piece.replace("▁", " ") if piece in whole else piece for piece, index in model["vocab"].items()}
    kinds = {index: piece_kind(piece, model, whole) for piece, index in model["vocab"].items()}
    for token in added(source.tokenizer):
        texts[token["id"]] = names.get(token["content"], token["content"])
        if kinds.get(token["id"]) != UNKNOWN:
            kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if max(texts) >= rows:
        raise UserError(f"tokenizer.json has token {max(texts)}, config.json says vocab_size={rows}. Copy both again.")
    tokens = [texts.get(index, f"[PAD{index}]") for index in range(rows)]
    text, times = Counter(tokens).most_common(1)[0]
    if times > 1:
        raise UserError(f"tokenizer.json: {times} tokens are {text!r} in a GGUF file, which llama.cpp refuses.")
    return tokens, [kinds.get(index, UNUSED) for index in range(rows)]


def cut_out(tokenizer: Mapping[str, Any]) -> set[str]:
    """Pieces that a SentencePiece-like tokenizer finds in a text before it merges anything: no merge makes them."""
    model = tokenizer["model"]
    if not (model.get("byte_fallback") and model.get("ignore_merges")):
        return set()
    others = {left + right for left, right in merges(model)} | {token["content"] for token in added(tokenizer)}
    pieces = model["vocab"].keys() - others - {model.get("unk_token")}
    return {piece for piece in pieces if len(piece) > 1 and not BYTE_PIECE.fullmatch(piece)}


def piece_kind(piece: str, model: Mapping[str, Any], whole: Collection[str]) -> int:
    """The type of a piece that is no added token."""
    if not model.get("byte_fallback"):
        return NORMAL
    if piece == model.get("unk_token"):
        return UNKNOWN
    return BYTE if BYTE_PIECE.fullmatch(piece) else USER_DEFINED if piece in whole else NORMAL


def bracketed(tokenizer: Mapping[str, Any]) -> dict[str, str]:
    """Control tokens that are plain words -> what the file calls them, in its tokens and its template.

    transformers finds ChatGLM2-6B's `eop` only where it stands alone. llama.cpp finds a control token anywhere in a
    prompt, and would cut every `people` into three.
    """
    words = [token["content"] for token in added(tokenizer) if token["single_word"] and token["content"].isalnum()]
    return {word: f"<{word}>" for word in words if f"<{word}>" not in token_ids(tokenizer)}


def cut_name(source: Source) -> str:
    """llama.cpp's name for the way in which a byte-level tokenizer cuts a text into words."""
    parts, name = steps(source.tokenizer, "pre_tokenizer"), None
    if [part["type"] for part in parts] == ["Split", "ByteLevel"]:
        name = CUTS.get(parts[0]["pattern"].get("Regex"))
    elif len(parts) == 1 and parts[0].get("use_regex", True):
        name = "gpt-2"
    if name is None or parts[-1].get("add_prefix_space") or source.tokenizer.get("normalizer"):
        warn("prepares texts in a way that llama.cpp has no name for")
    if name == "llama-bpe" and source.family != "llama":
        return "glm4"  # the same, but for a `bos` that llama.cpp would put first
    return name or "default"


def adds_blank(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a SentencePiece-like tokenizer puts a blank before a text."""
    known = ({"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
    normalizer = steps(tokenizer, "normalizer")
    if any(step not in known for step in normalizer):
        warn("changes characters of a text, which llama.cpp does not")
    metaspaces = [step for step in steps(tokenizer, "pre_tokenizer") if step["type"] == "Metaspace"]
    return known[0] in normalizer or any(step.get("prepend_scheme", "always") != "never" for step in metaspaces)


def scores(tokens: list[str], kinds: list[int], pairs: list[tuple[str, str]]) -> list[float]:
    """How early llama.cpp is to make a piece: of all neighbours that form pieces, those of the highest score go first.

    tokenizer.json ranks pairs instead. The order is the same if all pairs of a piece are there, one after the other.
    """
    ranks: dict[str, list[int]] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, []).append(rank)
    normal = {token for token, kind in zip(tokens, kinds, strict=True) if kind == NORMAL}
    last = [len(pairs)]  # of a piece that no pair makes
    values = {piece: -float(ranks.get(piece, last)[0]) if len(piece) > 1 else 0.0 for piece in normal}
    for piece in normal:
        cuts = sum(piece[:cut] in normal and piece[cut:] in normal for cut in range(1, len(piece)))
        made = ranks.get(piece, [])
        if len(made) != cuts or (made and made[-1] - made[0] >= cuts):
            warn(f"merges in an order ({piece!r}) that llama.cpp cannot follow")
            break
    return [values.get(token, 0.0) if kind == NORMAL else 0.0 for token, kind in zip(tokens, kinds, strict=True)]


def warn(what: str) -> None:
    """Tell that the file's tokenizer may give other tokens than the checkpoint's."""
    warnings.warn(
        f"tokenizer.json {what}: some texts may become other tokens. Compare them with llama.cpp's llama-tokenize.",
        stacklevel=2,
    )


def specials(source: Source) -> dict[str, Any]:
    """Ids of the control tokens, and whether they are put around a text."""
    ids, settings = token_ids(source.tokenizer), source.settings
    bos, unknown, pad, eos = (text_of(settings.get(f"{name}_token")) for name in ("bos", "unk", "pad", "eos"))
    values: dict[str, Any] = {f"{place}_token_id": index for place, index in ends(source, ids.get(eos)).items()}
    for name, text in (("bos", bos), ("unknown", unknown), ("padding", pad)):
        if text in ids:
            values[f"{name}_token_id"] = ids[text]
    around = [step["single"] for step in steps(source.tokenizer, "post_processor") if step["type"] == TEMPLATE]
    first, last = (around[0][index].get("SpecialToken", {}).get("id") for index in (0, -1)) if around else (None, None)
    adds_bos = first == bos if around else bool(settings.get("add_bos_token"))
    return {
        **values,
        "add_bos_token": bos in ids and adds_bos,
        "add_eos_token": eos in ids and last == eos,
    }


def ends(source: Source, eos: int | None) -> dict[str, int]:
    """The tokens that end an answer, in the three places that llama.cpp has for them.

    Raises:
        UserError: there is none.
    """
    ids = token_ids(source.tokenizer)
    roles = [ids.get(role) for role in ROLES] if source.family != "llama" else []
    found = dict.fromkeys(index for index in (eos, *source.ends, *roles) if index is not None)
    within = [index for index in found if index < source.config.vocab_size]
    if not within:
        raise UserError("tokenizer_config.json: no eos_token, so that no answer would end. Name the token there.")
    return dict(zip(("eos", "eot", "eom"), within, strict=False))


def added(tokenizer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tokens of tokenizer.json that are found in a text before the model sees it."""
    tokens: list[dict[str, Any]] = tokenizer.get("added_tokens", [])
    return tokens


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str | None, int]:
    """Text -> id of every token, by tokenizer.json."""
    return {**tokenizer["model"]["vocab"], **{token["content"]: token["id"] for token in added(tokenizer)}}


def text_of(token: Any) -> str | None:
    """A token of tokenizer_config.json, which is a text, or something that has one, or nothing."""
    return token.get("content") if isinstance(token, dict) else token


def chat_template(source: Source) -> str | None:
    """The chat template, of several the default one, without the marks that only training needs."""
    template = source.settings.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if template is None:
        return None
    for word, name in bracketed(source.tokenizer).items():
        template = re.sub(rf"(?<!\w){word}(?!\w)", name, template)
    return GENERATION.sub(r"{#\1 \2#}", template)  # a comment takes the same blanks away
