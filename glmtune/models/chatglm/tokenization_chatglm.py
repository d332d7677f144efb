"""Tokenizer of ChatGLM-6B: its `ice_text.model` (sentencepiece) without the original's remote code.

Release v1.1 dropped the 20,000 image tokens of v1.0, whose ids are higher by as many. The file of the first weeks holds
text pieces alone; the others were added by the code, in the order in which later files have them.
"""

import os
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

from sentencepiece import SentencePieceProcessor
from transformers import AddedToken, AutoTokenizer, BatchEncoding, PreTrainedTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.models.checkpoint import LFS_MARK, local_folder, parse_sentencepiece, read_json
from glmtune.models.templates import read_pair

VOCAB_FILES_NAMES = {"vocab_file": "ice_text.model"}

# After the text pieces, in the order of their ids.
SPECIAL_PIECES = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
REMEDY = "Get the file of ChatGLM-6B v1.1: `git lfs pull` in a git clone, or `hf download THUDM/chatglm-6b`."


class ChatGLMTokenizer(PreTrainedTokenizer):
    """The tokenizer of ChatGLM-6B: the original's ids, with the padding and masks usual in transformers.

    The sentencepiece model does most of the work: nmt_nfkc (full-width punctuation becomes ASCII), a dummy
    prefix, byte fallback, digits one by one. Newlines, tabs and runs of blanks have pieces of their own
    (quirk 15). The special tokens are control pieces: sentencepiece never makes them from text, and
    decodes them to nothing.

    Words in the text that look like special tokens (quirk 14): `[MASK]`, `<sop>`, `<eop>`, `<pad>` and
    `<unk>` become their ids, as in the original; `[gMASK]`, `</s>` and all others stay plain characters. With
    `split_special_tokens=True`, in a call or here, no text becomes a special token: use it for others' text.

    Unlike the original, the tokenizer pads on either side, returns only `input_ids` and a 0/1
    `attention_mask` (the model derives its positions and its prefix mask), gives masks of the full length
    (quirk 18), decodes ids beyond the vocabulary to nothing (quirk 19) and keeps blanks before
    punctuation in decoding (quirk 16; `clean_up_tokenization_spaces=True` drops them).

    Args:
        vocab_file: path of `ice_text.model`.
        do_lower_case: lower-case the text first.
        remove_space: strip the text and shrink each run of white space to one blank first.
        num_image_tokens: ids before the first text token: 20,000 in v1.0; 0 in v1.1, which removed the image tokens.
            `from_pretrained` takes it from the checkpoint.
        bos_token: starts the answer. eos_token: ends it. end_token: the sentencepiece model's own, unused.
        mask_token: the place of a short blank. gmask_token: the place of an open-ended answer.
        kwargs: as for every transformers tokenizer.

    Raises:
        ValueError: the file is missing, a Git LFS pointer, damaged, or the tokenizer of another model.
    """

    vocab_files_names = VOCAB_FILES_NAMES
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"
    SPECIAL_TOKENS_ATTRIBUTES = [*PreTrainedTokenizer.SPECIAL_TOKENS_ATTRIBUTES, "gmask_token", "end_token"]

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        do_lower_case: bool = False,
        remove_space: bool = False,
        num_image_tokens: int = 0,
        bos_token: str | AddedToken = "<sop>",
        eos_token: str | AddedToken = "<eop>",
        end_token: str | AddedToken = "</s>",
        mask_token: str | AddedToken = "[MASK]",
        gmask_token: str | AddedToken = "[gMASK]",
        pad_token: str | AddedToken = "<pad>",
        unk_token: str | AddedToken = "<unk>",
        **kwargs: Any,
    ) -> None:
        self.do_lower_case = do_lower_case
        self.remove_space = remove_space
        self.num_image_tokens = num_image_tokens
        self._image_tokens = {f"<image_{index}>": index for index in range(num_image_tokens)}
        if vocab_file is None:  # `from_pretrained` found none
            vocab_file = Path(kwargs.get("name_or_path", ""), VOCAB_FILES_NAMES["vocab_file"])
        required = (str(gmask_token), str(bos_token), str(eos_token))
        self.sp_model = _load_sentencepiece(vocab_file, required, complete=num_image_tokens > 0)

        # The words that text is split on, with the blanks around them, which the base class would leave. A
        # token without a piece has the id of `unk_token`, so that one is last; the base class adds the other.
        self._added_tokens_decoder = {
            self._convert_token_to_id(str(token)): AddedToken(
                str(token), lstrip=True, rstrip=True, normalized=False, special=True
            )
            for token in (mask_token, bos_token, eos_token, pad_token, unk_token)
        }
        # It names the original's remote code, which a saved tokenizer neither holds nor needs.
        kwargs.pop("auto_map", None)
        if not kwargs.get("chat_template"):
            kwargs.update(read_pair("chatglm", str(eos_token)))
        super().__init__(
            do_lower_case=do_lower_case,
            remove_space=remove_space,
            num_image_tokens=num_image_tokens,
            bos_token=str(bos_token),
            eos_token=str(eos_token),
            end_token=str(end_token),
            mask_token=str(mask_token),
            gmask_token=str(gmask_token),
            pad_token=str(pad_token),
            unk_token=str(unk_token),
            **kwargs,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the tokenizer of a checkpoint. ChatGLM2-6B and ChatGLM3-6B ask for this class and get their own."""
        folder = Path(pretrained_model_name_or_path)
        if not folder.exists():
            folder = local_folder(str(pretrained_model_name_or_path), False, kwargs.pop("revision", None))
            pretrained_model_name_or_path = str(folder)
        file = folder / VOCAB_FILES_NAMES["vocab_file"]
        if folder.is_dir() and not file.exists():
            from glmtune.models.glm.tokenization_glm import VOCAB_FILE, load_named

            config = folder / "config.json"
            is_other = config.is_file() and "multi_query_attention" in read_json(config)
            if is_other or (folder / VOCAB_FILE).exists():
                return load_named(str(folder), **kwargs)
        if file.exists():
            kwargs = {**settings_of_release(folder, file), **kwargs}
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @property
    def vocab_size(self) -> int:
        """Image and text tokens; the model's embedding may have more rows."""
        return self.num_image_tokens + self.sp_model.get_piece_size()

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens that text may hold: without `[gMASK]` and `</s>` (quirk 14)."""
        plain_in_text = (self.gmask_token, self.end_token)
        return [token for token in super().all_special_tokens if token not in plain_in_text]

    def get_vocab(self) -> dict[str, int]:
        """Return every token and its id, those added later included."""
        pieces = self.sp_model.id_to_piece(list(range(self.sp_model.get_piece_size())))
        text_tokens = {piece: index for index, piece in enumerate(pieces, start=self.num_image_tokens)}
        return self._image_tokens | text_tokens | self.added_tokens_encoder

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Any,
        tools: Any = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        return_tensors: Any = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render as for every tokenizer; a `[gMASK]` of the template becomes its id, one in the messages stays text.

        `assistant_masks`, for which the library wants a fast tokenizer, are worked out here.

        Raises:
            ValueError: truncation cuts off `[gMASK] <sop>`, without which nothing of a conversation can be read.
        """
        render = partial(
            super().apply_chat_template,
            conversation,
            tools,
            documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        if not tokenize:
            return render(chat_template=chat_template, tokenize=False, **kwargs)
        # A character that stands for it while the template is rendered: one that nobody wrote.
        rendered: Any = render(chat_template=chat_template, tokenize=False)  # a text, or one of each conversation
        written = "".join(rendered)
        sign = next(sign for sign in map(chr, range(0x100000, 0x10FFFE)) if sign not in written)
        template = self.get_chat_template(chat_template).replace(str(self.gmask_token), sign)
        if kwargs.get("truncation"):
            whole: Any = render(chat_template=template, tokenize=False, **kwargs)
            self._check_cut([whole] if isinstance(whole, str) else whole, kwargs.get("max_length"), sign)
        masked = return_assistant_tokens_mask and return_dict
        encoded = render(
            chat_template=template,
            tokenize=True,
            return_tensors=None if masked else return_tensors,
            return_dict=return_dict,
            return_assistant_tokens_mask=return_assistant_tokens_mask and not masked,  # the library says why not
            tokenizer_kwargs={**(tokenizer_kwargs or {}), "gmask_sign": sign},
            **kwargs,
        )
        if not masked:
            return encoded
        columns: dict[str, Any] = dict(cast(BatchEncoding, encoded))
        alone = isinstance(rendered, str)
        conversations = [conversation] if alone else conversation
        named = {**self.special_tokens_map, **kwargs, "add_generation_prompt": add_generation_prompt}
        texts, spans = cast(Any, render_jinja_template)(conversations, tools, documents, template, True, **named)
        real = [columns["attention_mask"]] if alone else columns["attention_mask"]
        rows: Any = zip(texts, spans, real, strict=True)
        masks = [self._assistant_mask(text, written, kept, sign) for text, written, kept in rows]
        columns["assistant_masks"] = masks[0] if alone else masks
        return BatchEncoding(columns, tensor_type=return_tensors, prepend_batch_axis=alone)

    def _check_cut(self, texts: Iterable[str], max_length: int | None, sign: str) -> None:
        """See whether truncation leaves each conversation its `<sop>`, before a model meets one without it.

        Args:
            texts: of the conversations.
            max_length: tokens that are kept; None for as many as the model takes.
            sign: that stands for `[gMASK]`.

        Raises:
            ValueError: it does not.
        """
        kept = self.model_max_length if max_length is None else max_length
        for number, text in enumerate(texts):
            tokens = self.tokenize(text, gmask_sign=sign)
            if str(self.gmask_token) not in tokens:
                continue
            last = tokens.index(str(self.gmask_token)) + 1  # of the two
            first_kept = max(0, len(tokens) - kept) if self.truncation_side == "left" else 0
            if not first_kept <= last - 1 < last < first_kept + kept:
                raise ValueError(
                    f"Conversation {number} has {len(tokens)} tokens, of which {kept} are kept from token "
                    f"{first_kept} on: [gMASK] <sop>, tokens {last - 1} and {last}, are cut off, up to which the model "
                    "reads the prompt as a whole. Raise max_length, or leave the conversation out."
                )

    def _assistant_mask(self, text: str, written: Iterable[tuple[int, int]], real: list[int], sign: str) -> list[int]:
        """Return 1 for each token of a row that the assistant has written, and 0 for each other one.

        Args:
            text: of the conversation.
            written: first character of each answer, and the one after its last. Both are at special tokens, at which
                the text is split, so that what stands before them is as many tokens alone.
            real: attention mask of the row: 0 for padding.
            sign: that stands for `[gMASK]`.
        """
        bounds = [[len(self.tokenize(text[:place], gmask_sign=sign)) for place in span] for span in written]
        mask = [
            int(any(start <= place < end for start, end in bounds))
            for place in range(len(self.tokenize(text, gmask_sign=sign)))
        ]
        kept = sum(real)
        left = iter(mask[len(mask) - kept :] if self.truncation_side == "left" else mask[:kept])
        return [next(left) if is_real else 0 for is_real in real]

    def tokenize(self, text: str, *args: Any, gmask_sign: str | None = None, **kwargs: Any) -> list[str]:
        """Return the tokens of a text, in which a sign may stand for `[gMASK]`: the word itself is no special token."""
        tokens: list[str] = []
        for number, part in enumerate(text.split(gmask_sign) if gmask_sign else [text]):
            tokens += [str(self.gmask_token)] if number else []
            tokens += super().tokenize(part, *args, **kwargs)
        return tokens

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        if self.remove_space:
            text = " ".join(text.split())
        if self.do_lower_case:
            text = text.lower()
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        text = re.sub(" {2,80}", lambda blanks: f"<|blank_{len(blanks[0])}|>", text)
        return self.sp_model.encode(text, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return self._image_tokens.get(token, self.num_image_tokens + self.sp_model.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        if index < self.num_image_tokens:
            return f"<image_{index}>" if index >= 0 else ""  # labels hold -100
        try:
            return self.sp_model.id_to_piece(index - self.num_image_tokens)
        except IndexError:  # the model can emit more ids
            return ""

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """Return the text of `tokens`; padding, image tokens and control pieces have none."""
        without_text, images = ("", self.pad_token), self._image_tokens
        text = self.sp_model.decode_pieces(
            [token for token in tokens if token not in without_text and token not in images]
        )
        text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
        return re.sub(r"<\|blank_([2-9]|[1-7]\d|80)\|>", lambda blanks: " " * int(blanks[1]), text)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return `A [gMASK] <sop>` or `A [gMASK] <sop> B <eop>`, also where A holds `[MASK]` (quirk 17)."""
        prompt = [*token_ids_0, self.gmask_token_id, self.bos_token_id]
        return prompt if token_ids_1 is None else [*prompt, *token_ids_1, self.eos_token_id]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Return 1 for each special token and 0 for each other one of the whole sequence (quirk 18)."""
        if already_has_special_tokens:
            special_ids = {*self.all_special_ids, self.gmask_token_id, self.end_token_id}
            return [int(int(index) in special_ids) for index in (*token_ids_0, *(token_ids_1 or ()))]
        mask = [0] * len(token_ids_0) + [1, 1]
        return mask if token_ids_1 is None else mask + [0] * len(token_ids_1) + [1]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write `ice_text.model` into `save_directory`, byte for byte the file that was loaded."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        vocab_file = Path(save_directory, prefix + VOCAB_FILES_NAMES["vocab_file"])
        vocab_file.write_bytes(self.sp_model.serialized_model_proto())
        return (str(vocab_file),)


def settings_of_release(folder: Path, file: Path) -> dict[str, Any]:
    """Return what the files of v1.0 leave to the code: the number of image tokens, and that `<eop>` ends an answer.

    Args:
        folder: of the checkpoint. Its `config.json` says which id `<sop>` has in the model.
        file: `ice_text.model`.
    """
    declared, config = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "config.json")
    )
    settings: dict[str, Any] = {"eos_token": declared["eop_token"]} if "eop_token" in declared else {}
    start = config.get("bos_token_id")
    if "num_image_tokens" not in declared and isinstance(start, int):
        sp_model = _load_sentencepiece(file, (), complete=False)
        piece = sp_model.piece_to_id("<sop>")
        added = sp_model.get_piece_size() + SPECIAL_PIECES.index("<sop>")  # in the file of the first weeks
        settings["num_image_tokens"] = max(0, start - (piece if piece != sp_model.unk_id() else added))
    return settings


def with_added_pieces(content: bytes) -> bytes:
    """Return a sentencepiece model of text pieces with those that the code of the first weeks adds, in its order."""
    proto = parse_sentencepiece(content)
    kinds = proto.SentencePiece
    whitespace = ["<|tab|>", *(f"<|blank_{length}|>" for length in range(2, 81))]
    added = [
        *((piece, kinds.CONTROL) for piece in SPECIAL_PIECES),
        *((piece, kinds.USER_DEFINED) for piece in whitespace),
        *((f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)),
    ]
    for piece, kind in added:
        proto.pieces.add(piece=piece, score=0.0, type=kind)
    proto.trainer_spec.byte_fallback = True
    return bytes(proto.SerializeToString())


def _load_sentencepiece(
    vocab_file: str | os.PathLike[str], required_pieces: Iterable[str], complete: bool
) -> SentencePieceProcessor:
    try:
        content = Path(vocab_file).read_bytes()
    except OSError as error:
        raise ValueError(f"The tokenizer cannot read {vocab_file}: {error.strerror}. {REMEDY}") from error
    if content.startswith(LFS_MARK):
        raise ValueError(f"{vocab_file} is a Git LFS pointer, not the file itself. {REMEDY}")

    sp_model = SentencePieceProcessor()
    try:
        sp_model.LoadFromSerializedProto(content)
        if complete and sp_model.piece_to_id("<sop>") == sp_model.unk_id():
            sp_model.LoadFromSerializedProto(with_added_pieces(content))
    except RuntimeError as error:
        raise ValueError(f"{vocab_file} is damaged or no sentencepiece model. {REMEDY}") from error
    missing = [piece for piece in required_pieces if sp_model.piece_to_id(piece) == sp_model.unk_id()]
    if missing:
        raise ValueError(f"{vocab_file} lacks {', '.join(missing)}: it is of another model. {REMEDY}")
    return sp_model


AutoTokenizer.register(ChatGLMConfig, slow_tokenizer_class=ChatGLMTokenizer, exist_ok=True)
