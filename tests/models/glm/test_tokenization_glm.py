"""Tokenizers of ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B against the libraries that the originals use.

The releases' own files may not be here. A SentencePiece BPE with the settings of ChatGLM2-6B's and ChatGLM3-6B's is
trained on the texts below, and a BPE over bytes, written as tiktoken writes it; sentencepiece and tiktoken then say
what is right.
"""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Regex, Tokenizer, pre_tokenizers, trainers
from tokenizers import models as token_models
from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerFast as Fast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from glmtune.data.encoding import encode_example, encode_prompt
from glmtune.models import loading
from glmtune.models.glm.tokenization_glm import (
    CONTROL_TOKENS,
    GLM4_CONTROL_TOKENS,
    GLM4_PATTERN,
    ROLE_TOKENS,
    from_sentencepiece,
    from_tiktoken,
    wrap_tokenizer,
)
from glmtune.models.templates import read_preset
from glmtune.runtime import UserError

GOLDEN = Path(__file__).parents[2] / "golden"
CHAT = GOLDEN / "chat"
SIZE = 600  # pieces of the SentencePiece model
START = [SIZE + 1, SIZE + 3]  # [gMASK] sop
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"

CORPUS = [
    *(f"{a}+{b}={a + b} {a}.5*{b}={a * b + 0.5 * b}" for a in range(0, 60, 7) for b in range(0, 60, 11)),
    *(f"What is the sum of {a} and {a + 3}? The answer is {2 * a + 3}." for a in range(40)),
    *(f"请计算：{a}加{a}等于多少？答：等于{2 * a}。" for a in range(40)),
    "Fine-tuning a language model on one task  changes  little else; he said that this is what the weather was.",
    "Whether that holds for other models is what later chapters measure; most of them were written by hand.",
    "今天天气很好，我们去公园散步吧。你好！很高兴见到你。晚上睡不着怎么办？空问题也要回答。",
    "语言模型把文字切成词元，再一个一个地预测下一个词元；训练以后，它能做算术。",
]
NASTY = [
    "",
    " ",
    "  leading and trailing  ",
    "\n",
    "\n\n a\n\tb\r\n",
    "１２＋３４＝４６，Ａ（全角）",
    "😀👋🏽👨‍👩‍👧 naïve ½ Ⅳ ﬁ e\u0301",
    "\u00a0\u3000\u200b\ufeff\x00\x1f\x85\u2028",
    "▁a▁▁b",
    "</s><unk><s><0x0A><0x41>",
    "[gMASK]sop[MASK] sop eop <|user|>\n<|assistant|><|endoftext|>",
    "soph sop你 eop.",
    "1234567890.50+07=",
    "龘䶮𠮷",
]
WORDS = [
    "the",
    "1+2=",
    "57",
    " ",
    "  ",
    "\n",
    "\t",
    "请计算",
    "答",
    "▁",
    *CONTROL_TOKENS,
    *ROLE_TOKENS,
    "</s>",
    "<unk>",
]
# Characters that every library knows: which ones are letters changes with the version of Unicode.
ANY = st.text(st.characters(exclude_categories=("Cs", "Cn")))
TEXT = st.lists(st.one_of(ANY, st.sampled_from([*WORDS, *NASTY]))).map("".join)


# --------------------------------------------------------------------------- SentencePiece


def sentencepiece(vocab_size: int = SIZE, **options: Any) -> bytes:
    """A `tokenizer.model` with the settings of ChatGLM2-6B's, or others."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=True,
        minloglevel=2,
        **{
            "model_type": "bpe",
            "byte_fallback": True,
            "split_digits": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            **options,
        },
    )
    return model.getvalue()


@cache
def content() -> bytes:
    """The file that most tests here are about."""
    return sentencepiece()


@pytest.fixture(scope="module")
def original() -> SentencePieceProcessor:
    """The same file, read by sentencepiece."""
    return SentencePieceProcessor(model_proto=content())


def write_release(folder: Path, content: bytes, tokenizer_class: str = "ChatGLMTokenizer", **declared: Any) -> Path:
    """The files of a release that its tokenizer is made of, and the configuration that tells its family."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(content)
    (folder / "config.json").write_bytes((GOLDEN / "glm2_glm3/config.json").read_bytes())
    code = {"auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}}
    values = {"tokenizer_class": tokenizer_class, **code, **declared}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


def write_chatglm3(folder: Path) -> Path:
    """The only difference of ChatGLM3-6B's files: their code, which nobody runs, names the roles."""
    write_release(folder, content())
    (folder / "tokenization_chatglm.py").write_text('raise SystemExit("run")  # "<|system|>", "<|user|>"')
    return folder


@pytest.fixture(scope="module")
def chatglm2(tmp_path_factory: pytest.TempPathFactory) -> Fast:
    return AutoTokenizer.from_pretrained(write_release(tmp_path_factory.mktemp("chatglm2"), content()))


@pytest.fixture(scope="module")
def chatglm3(tmp_path_factory: pytest.TempPathFactory) -> Fast:
    return AutoTokenizer.from_pretrained(write_chatglm3(tmp_path_factory.mktemp("chatglm3")))


def plain(tokenizer: Fast, text: str) -> list[int]:
    """Ids of a text in which nothing is a control token."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_ids_are_those_of_sentencepiece(chatglm2: Fast, original: SentencePieceProcessor, text: str) -> None:
    assert plain(chatglm2, text) == original.encode(text)
    assert chatglm2.decode(original.encode(text)) == original.decode(original.encode(text))


@settings(max_examples=300)
@given(text=TEXT)
def test_ids_of_any_text(chatglm2: Fast, original: SentencePieceProcessor, text: str) -> None:
    ids = original.encode(text)
    assert plain(chatglm2, text) == ids
    assert chatglm2.decode(ids) == original.decode(ids) == text.replace("▁", " ")


@settings(max_examples=100)
@given(ids=st.lists(st.integers(3 + 256, SIZE - 1)))
def test_decoding_of_ids_that_no_text_has(chatglm2: Fast, original: SentencePieceProcessor, ids: list[int]) -> None:
    """What a model says need not be what the tokenizer would make of it."""
    assert chatglm2.decode(ids) == original.decode(ids)


def test_a_newline_before_a_broken_character(chatglm2: Fast, original: SentencePieceProcessor) -> None:
    """As an answer ends that is cut at its longest length. A newline is a byte."""
    ids = original.encode("a\n😀")[:-1]
    assert chatglm2.decode(ids) == original.decode(ids) and "\n" in original.decode(ids)


@pytest.mark.parametrize("alphabet", ["a", "ab", "aab ", "abc"])
def test_merges_are_those_of_sentencepiece(alphabet: str) -> None:
    """Pieces of periodic texts can be made in many ways, and overlap: the order of merging is all that decides."""
    letters = st.lists(st.sampled_from(alphabet), max_size=40).map("".join)
    periodic = [(alphabet * 17)[start :: 1 + start % 3][:16] for start in range(12)]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(periodic * 2),
        model_writer=model,
        model_type="bpe",
        vocab_size=266,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    original = SentencePieceProcessor(model_proto=model.getvalue())
    tokenizer = from_sentencepiece(model.getvalue(), Path("tokenizer.model"))

    @settings(max_examples=60)
    @given(text=letters)
    def check(text: str) -> None:
        assert tokenizer.encode(text).ids == original.encode(text)

    check()


def test_control_tokens_follow_the_pieces(chatglm2: Fast, chatglm3: Fast, original: SentencePieceProcessor) -> None:
    names = [*CONTROL_TOKENS, *ROLE_TOKENS]
    for tokenizer in (chatglm2, chatglm3):
        assert type(tokenizer) is Fast and len(tokenizer) == SIZE + 9
        assert tokenizer.convert_tokens_to_ids(names) == list(range(SIZE, SIZE + 9))
        assert tokenizer.convert_ids_to_tokens(range(SIZE)) == [original.id_to_piece(i) for i in range(SIZE)]
        assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (2, 0, 0)
        assert tokenizer.decode([*START, 2], skip_special_tokens=True) == ""


def test_texts_begin_as_the_original_begins_them(chatglm2: Fast, original: SentencePieceProcessor) -> None:
    for text in ["1+1=", "", " 你好\n"]:
        assert chatglm2(text)["input_ids"] == [*START, *original.encode(text)]
    one, two = original.encode("问"), original.encode("答")
    assert chatglm2("问", "答")["input_ids"] == [*START, *one, *two, 2]
    batch = chatglm2(["1", "1+1="], padding=True)
    assert [ids[-1:] for ids in batch["input_ids"]] == [original.encode(text)[-1:] for text in ("1", "1+1=")]
    assert batch["attention_mask"][0][0] == 0 and batch["input_ids"][0][0] == 0


def test_control_words_in_a_text(chatglm2: Fast) -> None:
    """Asked for, they are control tokens. The original's names of two are words, and count for nothing."""
    sop, eop = SIZE + 3, SIZE + 4
    assert chatglm2("[gMASK]<sop><|user|>", add_special_tokens=False)["input_ids"] == [SIZE + 1, sop, SIZE + 6]
    for text, count in [("soph", 0), ("people", 0), ("a sop b", 0), ("a<sop>b", 1), ("<eop>.", 1)]:
        assert sum(index in (sop, eop) for index in chatglm2(text, add_special_tokens=False)["input_ids"]) == count


# --------------------------------------------------------------------------- other SentencePiece files

EQUAL: dict[str, dict[str, Any]] = {
    "digits together": {"split_digits": False},
    "across blanks": {"split_by_whitespace": False},
    "runs of blanks": {"allow_whitespace_only_pieces": True},
    "control symbols": {"control_symbols": ["<ctl>"]},
}
REFUSED: dict[str, dict[str, Any]] = {
    "blanks at the end": {"treat_whitespace_as_suffix": True},
    "no bytes": {"byte_fallback": False, "vocab_size": 220},
}
# What is neither equal nor refused: (settings, a text that shows it).
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nfkc": ({"normalization_rule_name": "nfkc"}, "e\u0301\u0323"),
    "nmt_nfkc": ({"normalization_rule_name": "nmt_nfkc"}, "a\r\nb"),
    "nmt_nfkc, one blank": ({"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}, "ｶﾞ"),
    "one blank": ({"remove_extra_whitespaces": True}, "▁"),
    "symbols": ({"user_defined_symbols": ["<n>"]}, "<n></s>"),
}


@pytest.mark.parametrize("name", EQUAL)
def test_files_with_other_settings_are_read_as_well(name: str) -> None:
    other = sentencepiece(**{"vocab_size": 560, **EQUAL[name]})
    original = SentencePieceProcessor(model_proto=other)
    tokenizer = wrap_tokenizer(from_sentencepiece(other, Path("x")), "chatglm2", "</s>", "<unk>")
    assert tokenizer.get_vocab()["[MASK]"] == original.get_piece_size()

    @settings(max_examples=60)
    @given(text=TEXT)
    def check(text: str) -> None:
        assert plain(tokenizer, text) == original.encode(text)
        assert tokenizer.decode(original.encode(text)) == original.decode(original.encode(text))

    for text in NASTY:
        assert plain(tokenizer, text) == original.encode(text)
    check()


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_would_be_read_otherwise_are_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"folder/x uses something of SentencePiece that is not known here: '.*should be"
    ):
        from_sentencepiece(sentencepiece(**{"vocab_size": 560, **REFUSED[name]}), Path("folder/x"))


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="tokenizers normalises rare texts otherwise than SentencePiece does (docs/families.md)",
)
@pytest.mark.parametrize("name", WRONG)
def test_other_files_are_equal_or_refused(name: str) -> None:
    options, text = WRONG[name]
    other = sentencepiece(**{"vocab_size": 560, **options})
    try:
        tokenizer = from_sentencepiece(other, Path("x"))
    except ValueError:
        return
    tokenizer.encode_special_tokens = True
    assert tokenizer.encode(text, add_special_tokens=False).ids == SentencePieceProcessor(model_proto=other).encode(
        text
    )


def test_a_file_without_a_blank_in_front() -> None:
    other = sentencepiece(add_dummy_prefix=False)
    original = SentencePieceProcessor(model_proto=other)
    tokenizer = wrap_tokenizer(from_sentencepiece(other, Path("x")), "chatglm2", "</s>", "<unk>")
    assert tokenizer.decode(original.encode(" a")) == original.decode(original.encode(" a"))


# --------------------------------------------------------------------------- chats

CHATGLM2 = json.loads((CHAT / "chatglm2_6b_prompts.json").read_text("utf-8"))
CHATGLM3 = json.loads((CHAT / "chatglm3_6b_segments.json").read_text("utf-8"))


def chatglm2_messages(case: dict[str, Any]) -> list[dict[str, str]]:
    turns = [message for pair in case["history"] for message in zip(("user", "assistant"), pair, strict=True)]
    return [{"role": role, "content": text} for role, text in [*turns, ("user", case["query"])]]


@pytest.mark.parametrize("case", CHATGLM2, ids=range(len(CHATGLM2)))
def test_chatglm2_prompts_are_the_original_ones(
    chatglm2: Fast, original: SentencePieceProcessor, case: dict[str, Any]
) -> None:
    prompt = [*START, *original.encode(case["prompt"])]
    assert encode_prompt(chatglm2, chatglm2_messages(case)) == prompt
    # As its training script has them: prompt, answer and end token are encoded on their own.
    for answer in ("等于2。", "2\n", " 57.84"):
        target = [*original.encode(answer), 2]
        encoding = encode_example(chatglm2, chatglm2_messages(case), answer)
        assert encoding["input_ids"] == prompt + target
        assert encoding["labels"] == [-100] * len(prompt) + target


@pytest.mark.parametrize("case", CHATGLM3, ids=range(len(CHATGLM3)))
def test_chatglm3_prompts_are_the_original_ones(
    chatglm3: Fast, original: SentencePieceProcessor, case: dict[str, Any], in_the_one_form: Any
) -> None:
    """Each text is encoded on its own, each command is its token."""
    prompt = [*START]
    for kind, text in case["segments"]:
        prompt += [chatglm3.convert_tokens_to_ids(text)] if kind == "command" else original.encode(text)
    turns = [*case["history"], {"role": case.get("role", "user"), "content": case["query"]}]
    messages, tools = [in_the_one_form(turn) for turn in turns], turns[0].get("tools", ())
    assert encode_prompt(chatglm3, messages, tools) == prompt
    encoding = encode_example(chatglm3, messages, "等于2。", tools=tools)
    target = [*original.encode("\n"), *original.encode("等于2。"), 2]
    assert encoding["input_ids"] == prompt + target
    assert encoding["labels"] == [-100] * len(prompt) + target


# --------------------------------------------------------------------------- tiktoken


def byte_pairs(texts: list[str], size: int) -> dict[bytes, int]:
    """Token -> rank of a BPE over bytes."""
    tokenizer = Tokenizer(token_models.BPE())
    cut = pre_tokenizers.Split(Regex(GLM4_PATTERN), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, as_bytes])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    bytes_of = {character: byte for byte, character in bytes_to_unicode().items()}
    return {bytes(bytes_of[sign] for sign in token): rank for token, rank in tokenizer.get_vocab().items()}


def as_tiktoken(ranked: dict[bytes, int]) -> bytes:
    """The lines of a tiktoken file."""
    by_rank = sorted(ranked.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in by_rank)


@cache
def ranks() -> dict[bytes, int]:
    """Those that most tests here are about."""
    return byte_pairs(CORPUS * 2, 600)


def numbers(shift: int = 0) -> dict[str, dict[str, Any]]:
    """`added_tokens_decoder` of the release: id -> control token."""
    first = len(ranks()) + shift
    return {str(index): {"content": token} for index, token in enumerate(GLM4_CONTROL_TOKENS, start=first)}


BLANKS = ["\x0b", "\x1c", "\x1f", "\x85", "\u2028", "\u200b", "\u3000", "\r", "\r\n", "'S", "'ſ", "'LL", "it's", "!!\n"]


@pytest.fixture(scope="module")
def glm4(tmp_path_factory: pytest.TempPathFactory) -> Fast:
    folder = tmp_path_factory.mktemp("glm4")
    release = write_release(folder, as_tiktoken(ranks()), "ChatGLM4Tokenizer", added_tokens_decoder=numbers())
    return AutoTokenizer.from_pretrained(release)


@pytest.fixture(scope="module")
def tiktoken_encoding() -> Callable[[dict[bytes, int]], Any]:
    tiktoken = pytest.importorskip("tiktoken")

    def make(ranked: dict[bytes, int]) -> Any:
        return tiktoken.Encoding("glm4", pat_str=GLM4_PATTERN, mergeable_ranks=ranked, special_tokens={})

    return make


@settings(max_examples=300)
@given(text=st.lists(st.one_of(TEXT, st.sampled_from(BLANKS))).map("".join))
def test_ids_are_those_of_tiktoken(glm4: Fast, tiktoken_encoding: Any, text: str) -> None:
    ids = tiktoken_encoding(ranks()).encode_ordinary(text)
    assert plain(glm4, text) == ids
    assert glm4.decode(ids) == text


@pytest.mark.parametrize("alphabet", ["a", "ab", "abc"])
def test_merges_are_those_of_tiktoken(tiktoken_encoding: Any, alphabet: str) -> None:
    periodic = [(alphabet * 17)[start :: 1 + start % 3][:16] for start in range(12)]
    ranks = byte_pairs(periodic * 2, 275)
    original, tokenizer = tiktoken_encoding(ranks), from_tiktoken(ranks, {len(ranks): "<end>"})

    @settings(max_examples=60)
    @given(text=st.lists(st.sampled_from(alphabet), max_size=40).map("".join))
    def check(text: str) -> None:
        assert tokenizer.encode(text).ids == original.encode_ordinary(text)

    check()


def test_glm4_control_tokens(glm4: Fast) -> None:
    assert type(glm4) is Fast and len(glm4) == len(ranks()) + len(GLM4_CONTROL_TOKENS)
    assert glm4.convert_tokens_to_ids(GLM4_CONTROL_TOKENS) == list(range(len(ranks()), len(glm4)))
    mask, sop = glm4.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    assert glm4("hi")["input_ids"] == [mask, sop, *plain(glm4, "hi")]
    assert glm4.eos_token == glm4.pad_token == "<|endoftext|>" and glm4.unk_token is None
    assert glm4.chat_template == read_preset("glm4")


def test_control_tokens_follow_where_nobody_numbers_them(glm4: Fast, tmp_path: Path) -> None:
    release = write_release(tmp_path, as_tiktoken(ranks()), "ChatGLM4Tokenizer")
    assert AutoTokenizer.from_pretrained(release).get_vocab() == glm4.get_vocab()
    (tmp_path / "tokenizer_config.json").unlink()
    assert AutoTokenizer.from_pretrained(release).get_vocab() == glm4.get_vocab()


@pytest.mark.parametrize("shift", [-1, 1])
def test_other_numbers_than_the_file_has_room_for_are_refused(tmp_path: Path, shift: int) -> None:
    release = write_release(tmp_path, as_tiktoken(ranks()), "ChatGLM4Tokenizer", added_tokens_decoder=numbers(shift))
    with pytest.raises(
        UserError, match=r"numbers its tokens otherwise than tokenizer\.model: .*endoftext.*Get the file"
    ):
        loading.load_tokenizer(str(release))


# --------------------------------------------------------------------------- files


@pytest.mark.parametrize("roles_in", ["code", "settings", "nowhere"])
def test_the_release_is_told_from_its_files(tmp_path: Path, roles_in: str) -> None:
    roles = {"added_tokens_decoder": {"64795": {"content": "<|user|>"}}} if roles_in == "settings" else {}
    release = write_release(tmp_path / "chatglm2-6b", content(), **roles)
    if roles_in == "code":
        write_chatglm3(release)
    tokenizer = loading.load_tokenizer(str(release))
    assert tokenizer.chat_template == read_preset("chatglm2" if roles_in == "nowhere" else "chatglm3")
    assert tokenizer.name_or_path == str(release)


BROKEN = {
    "pointer": (lambda: LFS_POINTER.encode(), r"tokenizer\.model is a Git.LFS pointer"),
    "truncated": (lambda: content()[:-5], r"tokenizer\.model is damaged, or neither SentencePiece nor tiktoken"),
    "empty": (lambda: b"", r"tokenizer\.model is .*(damaged|no BPE)"),
    "a page": (lambda: b"<!DOCTYPE html>\n<html>404</html>", r"tokenizer\.model is damaged"),
    "unigram": (
        lambda: sentencepiece(400, model_type="unigram"),
        r"tokenizer\.model is no BPE: it is of another model",
    ),
    "half a line": (lambda: as_tiktoken(ranks())[:-4], r"tokenizer\.model is damaged|otherwise than tokenizer\.model"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_told_in_a_line(tmp_path: Path, name: str) -> None:
    damaged, message = BROKEN[name]
    release = write_release(
        tmp_path, damaged(), **({"added_tokens_decoder": numbers()} if name == "half a line" else {})
    )
    with pytest.raises(UserError, match=message) as error:
        loading.load_tokenizer(str(release))
    assert str(release) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    release = write_release(tmp_path, content())
    (release / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"tokenizer cannot be read.*(tokenizer|ice_text)\.model"):
        loading.load_tokenizer(str(release))


OPENED_ALONE = """
import json, sys
from transformers import AutoTokenizer

texts = json.load(sys.stdin)
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "1+1="}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    own = [tokenizer(text)["input_ids"] for text in texts]
    print(json.dumps([tokenizer.chat_template, ids, own, [tokenizer.decode(each) for each in own]]))
assert not any(name.partition(".")[0] == "glmtune" for name in sys.modules)
"""


def test_transformers_alone_opens_what_is_saved(chatglm2: Fast, chatglm3: Fast, glm4: Fast, tmp_path: Path) -> None:
    """In a Python that never imports this package, without the releases' files: the same ids, the same template."""
    tokenizers = [chatglm2, chatglm3, glm4]
    for number, tokenizer in enumerate(tokenizers):
        tokenizer.save_pretrained(tmp_path / str(number))
        assert not (tmp_path / str(number) / "tokenizer.model").exists()
    command = [sys.executable, "-I", "-c", OPENED_ALONE, *(str(tmp_path / str(n)) for n in range(len(tokenizers)))]
    done = subprocess.run(command, input=json.dumps(NASTY), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line, tokenizer in zip(done.stdout.splitlines(), tokenizers, strict=True):
        template, ids, own, texts = json.loads(line)
        assert (template, ids) == (tokenizer.chat_template, encode_prompt(tokenizer, "1+1="))
        assert own == [tokenizer(text)["input_ids"] for text in NASTY]
        assert texts == [tokenizer.decode(each) for each in own]
    for number, tokenizer in enumerate(tokenizers):
        again = AutoTokenizer.from_pretrained(tmp_path / str(number))
        assert [plain(again, text) for text in NASTY] == [plain(tokenizer, text) for text in NASTY]
