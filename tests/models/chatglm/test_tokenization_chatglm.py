"""ChatGLMTokenizer against recorded results of the original ("quirk": numbers in the golden data's README).

`toy.model` is a 512-piece model with the piece layout of the real `ice_text.model`. The licence of the real
one keeps it out of this repository: it is tested where the shared golden data lies next to the checkout.
"""

import copy
import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.models.chatglm.tokenization_chatglm import ChatGLMTokenizer

GOLDEN = Path(__file__).parents[2] / "golden" / "tokenizer"
SHARED = Path(__file__).parents[3].parent / "shared" / "golden"
FILES = {
    "toy": (GOLDEN / "toy.model", GOLDEN / "toy.json"),
    "ice_text": (SHARED / "ice_text" / "ice_text.model", SHARED / "tokenizer" / "ice_text.json"),
}
TOY_GOLDEN = json.loads((GOLDEN / "toy.json").read_text("utf-8"))
TEXTS = [entry["text"] for entry in TOY_GOLDEN["strings"]]
CONTROL_WORDS = [
    "<unk>",
    "<s>",
    "</s>",
    "<pad>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<unused_0>",
    "<sop>",
    "<eop>",
    "<ENC>",
    "<dBLOCK>",
]
TRUNCATES_LIKE_NO_OTHER = "trunc_to_specials_2"

# Text that the model's normalization leaves as it is, rich in blanks; "<" would allow a literal `<n>`.
PLAIN_TEXT = st.text(
    st.sampled_from([chr(code) for code in range(33, 127) if chr(code) != "<"] + [*"\n\t你好世界今天。"] + [" "] * 40)
)
# Any text, with many whole and broken control words in it.
HOSTILE_TEXT = st.lists(
    st.one_of(
        st.text(),
        st.sampled_from([*CONTROL_WORDS, "<", ">", "[", "]", "MASK]", "op>", " ", "\n", "<n>", "＜sop＞"]),
    )
).map("".join)


@dataclass
class Original:
    """A tokenizer that was loaded as the original is, and what the original gave."""

    directory: Path
    tokenizer: ChatGLMTokenizer
    golden: dict[str, Any]


def make_checkpoint(directory: Path, model: Path) -> Path:
    """The tokenizer files of the original repository, remote code named but not there."""
    directory.mkdir(exist_ok=True)
    shutil.copyfile(model, directory / "ice_text.model")
    config = json.loads((GOLDEN / "tokenizer_config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return directory


@pytest.fixture(scope="module", params=FILES)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Original:
    model, golden = FILES[request.param]
    if not model.exists():
        pytest.skip(f"the shared golden data is not here: {model}")
    directory = make_checkpoint(tmp_path_factory.mktemp(request.param), model)
    tokenizer = ChatGLMTokenizer.from_pretrained(directory)
    return Original(directory, tokenizer, json.loads(golden.read_text("utf-8")))


@pytest.fixture(scope="module")
def toy() -> ChatGLMTokenizer:
    return ChatGLMTokenizer(GOLDEN / "toy.model")


# The original's results


@pytest.mark.parametrize("index", range(len(TEXTS)), ids=[ascii(text)[1:-1][:24] for text in TEXTS])
def test_text(original: Original, index: int) -> None:
    tokenizer, expected = original.tokenizer, original.golden["strings"][index]
    text, ids, ids_with_special = expected["text"], expected["ids"], expected["ids_with_special"]
    assert tokenizer.tokenize(text) == expected["tokens"]
    assert tokenizer.encode(text, add_special_tokens=False) == ids
    assert tokenizer(text).input_ids == tokenizer.encode(text) == ids_with_special
    assert tokenizer.convert_ids_to_tokens(ids) == expected["ids_to_tokens"]
    # `sp_*` took no notice of control words in the text.
    assert tokenizer.tokenize(text, split_special_tokens=True) == expected["sp_pieces_whole"]
    assert tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) == expected["sp_ids_whole"]

    assert tokenizer.decode(ids) == expected["decode_noclean"] == expected["sp_decode"]
    # The original cleaned up by default; exact text matters more here.
    cleaned = {"clean_up_tokenization_spaces": True}
    skipped = {"skip_special_tokens": True, **cleaned}
    assert tokenizer.decode(ids, **cleaned) == expected["decode"]
    assert tokenizer.decode(ids, **skipped) == expected["decode_skip"]
    assert tokenizer.decode(ids_with_special, **cleaned) == expected["decode_with_special"]
    assert tokenizer.decode(ids_with_special, **skipped) == expected["decode_with_special_skip"]


def test_pairs(original: Original) -> None:
    tokenizer = original.tokenizer
    for pair in original.golden["pairs"]:
        encoding = tokenizer(pair["a"], pair["b"], return_special_tokens_mask=True)
        assert encoding.input_ids == pair["ids"] == pair["call"]["input_ids"]
        assert tokenizer.encode(pair["a"], pair["b"], add_special_tokens=False) == pair["ids_nospecial"]
        assert tokenizer.decode(pair["ids"]) == pair["decode"]
        assert tokenizer.decode(pair["ids"], skip_special_tokens=True) == pair["decode_skip"]
        # Quirk 18: the original's mask lacks the three special tokens.
        assert len(encoding.special_tokens_mask) == len(pair["special_tokens_mask"]) + 3


@pytest.mark.parametrize("name", TOY_GOLDEN["calls"])
def test_call(original: Original, name: str) -> None:
    tokenizer, call = original.tokenizer, original.golden["calls"][name]
    encoding = tokenizer(*call["args"], **call["kwargs"])
    batch = [np.asarray(ids).tolist() for ids in encoding["input_ids"]]
    batch = batch if isinstance(batch[0], list) else [batch]

    # Quirk 18: the original returns 3-d masks and 2-row positions, only with padding or `max_length`, and
    # ignores `return_attention_mask=False`.
    if call["kwargs"].get("return_attention_mask") is False:
        assert "attention_mask" not in encoding
    else:
        masks = np.asarray(encoding["attention_mask"], dtype=object).tolist()
        masks = masks if isinstance(masks[0], list) else [masks]
        assert masks == [[int(index != tokenizer.pad_token_id) for index in ids] for ids in batch]
    assert "position_ids" not in encoding

    if name == TRUNCATES_LIKE_NO_OTHER:  # quirk 18: the original does not truncate at all
        assert batch == [[tokenizer.gmask_token_id, tokenizer.bos_token_id]]
    elif "error" in call["out"]:  # numpy cannot pad the original's mask to fewer tokens than there are
        assert max(map(len, batch)) > call["kwargs"]["max_length"]
    else:
        expected = np.asarray(call["out"]["input_ids"], dtype=object).tolist()
        assert batch == (expected if isinstance(expected[0], list) else [expected])
    if call["kwargs"].get("return_length"):
        assert encoding["length"] == call["out"]["length"]
    if call["kwargs"].get("return_tensors") == "pt":
        assert isinstance(encoding["input_ids"], torch.Tensor)
    for key in ("special_tokens_mask", "token_type_ids"):
        if key in call["out"]:
            assert len(encoding[key]) == len(batch[0]) > len(call["out"][key])


def test_truncation_on_the_left(original: Original) -> None:
    tokenizer = copy.deepcopy(original.tokenizer)
    tokenizer.truncation_side = "left"
    text = original.golden["calls"]["trunc_single_6"]["args"][0]
    encoding = tokenizer(text, truncation=True, max_length=6)
    assert encoding.input_ids == original.golden["trunc_left_6"]["input_ids"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_conversation_that_is_cut_keeps_its_marks(toy: ChatGLMTokenizer, side: str) -> None:
    """Or is refused where it is encoded, before a model meets it in the midst of a training."""
    tokenizer = copy.deepcopy(toy)
    tokenizer.truncation_side = side
    short, long = (
        [{"role": "user", "content": "1+1=" * times}, {"role": "assistant", "content": "2<sop>" * times}]
        for times in (1, 9)
    )
    whole = tokenizer.apply_chat_template(long)["input_ids"]
    marks = whole.index(tokenizer.gmask_token_id)
    least = len(whole) - marks if side == "left" else marks + 2
    kept = tokenizer.apply_chat_template([short, long], truncation=True, max_length=least)["input_ids"]
    assert kept[1] == (whole[-least:] if side == "left" else whole[:least])
    message = rf"Conversation 1 has {len(whole)} tokens, .* tokens {marks} and {marks + 1}"
    for tensors in (None, "pt"):
        with pytest.raises(ValueError, match=message):
            tokenizer.apply_chat_template(
                [short, long], truncation=True, max_length=least - 1, padding=True, return_tensors=tensors
            )


def test_pad_features(original: Original) -> None:
    texts = original.golden["calls"]["batch_padding"]["args"][0]
    features = [original.tokenizer(text) for text in texts]
    assert original.tokenizer.pad(features)["input_ids"] == original.golden["pad_features"]["input_ids"]


def test_decode_kinds(original: Original) -> None:
    tokenizer, expected = original.tokenizer, original.golden["decode_kinds"]
    index, text = expected["int_"]
    for one in (index, np.int64(index), torch.tensor(index)):
        assert tokenizer.decode(one) == text
    ids, text = expected["with_pads"]
    for several in (ids, np.array(ids), torch.tensor(ids), [torch.tensor(index) for index in ids]):
        assert tokenizer.decode(several) == text == expected["tensor"]
        assert tokenizer.decode(several, skip_special_tokens=True) == expected["with_pads_skip"]
    assert tokenizer.batch_decode(torch.tensor([ids, ids])) == [text, text]
    assert tokenizer.decode([]) == expected["empty"]
    for ids, text in expected["partial"] + expected["growing"]:
        assert tokenizer.decode(ids) == text
    ids, text, skipped = expected["only_specials"]
    assert (tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=True)) == (text, skipped)


def test_tokens_and_ids(original: Original) -> None:
    tokenizer, golden = original.tokenizer, original.golden
    for token, index in golden["token_to_id"].items():
        # Quirk 19: the original reads any `<image_3>` as id 3, also where there are no image tokens.
        assert tokenizer.convert_tokens_to_ids(token) == (0 if token == "<image_3>" else index)
    for index, token in golden["id_to_token"].items():
        assert tokenizer.convert_ids_to_tokens(int(index)) == token
    for tokens, text in golden["tokens_to_string"]:
        assert tokenizer.convert_tokens_to_string(tokens) == text


def test_attributes(original: Original) -> None:
    tokenizer, golden = original.tokenizer, original.golden
    assert (tokenizer.vocab_size, len(tokenizer)) == (golden["vocab_size"], golden["len"])
    vocab = tokenizer.get_vocab()
    assert sorted(vocab.values()) == list(range(len(tokenizer)))
    assert all(tokenizer.convert_ids_to_tokens(index) == token for token, index in vocab.items())
    for name, (token, index) in golden["special"].items():
        named = (tokenizer.special_tokens_map[f"{name}_token"], vocab[token])
        assert named == (token, index)
    assert tokenizer.gmask_token == "[gMASK]" and tokenizer.gmask_token_id == vocab["[gMASK]"]
    assert tokenizer.mask_token_id == vocab["[MASK]"] and tokenizer.end_token_id == vocab["</s>"]
    assert tokenizer.all_special_tokens == golden["all_special_tokens"]
    assert tokenizer.all_special_ids == golden["all_special_ids"]
    assert (tokenizer.padding_side, tokenizer.truncation_side) == (
        golden["padding_side"],
        golden["truncation_side"],
    )
    assert [tokenizer.num_special_tokens_to_add(pair) for pair in (False, True)] == golden["num_special_tokens_to_add"]
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]


def test_constructed_directly(original: Original) -> None:
    """Quirk 14: the original splits control words off only after from_pretrained; here a keyword decides."""
    tokenizer = ChatGLMTokenizer(original.directory / "ice_text.model")
    for case in original.golden["constructed_directly"]:
        ids = tokenizer.encode(case["text"], add_special_tokens=False)
        assert ids == case["ids_from_pretrained"]
        ids = tokenizer.encode(case["text"], add_special_tokens=False, split_special_tokens=True)
        assert ids == case["ids"]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("do_lower_case", {"do_lower_case": True}),
        ("remove_space", {"remove_space": True}),
        ("num_image_tokens_100", {"num_image_tokens": 100}),
    ],
)
def test_variants(original: Original, name: str, kwargs: dict[str, Any], tmp_path: Path) -> None:
    expected = original.golden["variants"][name]
    tokenizer = ChatGLMTokenizer.from_pretrained(original.directory, **kwargs)
    tokenizer.save_pretrained(tmp_path)
    for variant in (tokenizer, ChatGLMTokenizer.from_pretrained(tmp_path)):
        assert variant.vocab_size == len(variant) == expected["vocab_size"]
        assert (variant.pad_token_id, variant.bos_token_id) == (expected["pad"], expected["bos"])
        for case in expected["cases"]:
            assert variant(case["text"]).input_ids == case["ids"]
            assert variant.decode(case["ids"]) == case["decode"]


# Better than the original


def test_image_tokens_have_names_and_no_text(toy: ChatGLMTokenizer) -> None:
    tokenizer = ChatGLMTokenizer(GOLDEN / "toy.model", num_image_tokens=100)
    assert tokenizer.convert_ids_to_tokens([99, 100]) == ["<image_99>", "<unk>"]
    assert tokenizer.convert_tokens_to_ids(["<image_99>", "<image_100>"]) == [99, 100]
    ids = toy.encode("Hello", add_special_tokens=False)
    assert tokenizer.decode([0, *(index + 100 for index in ids), 99]) == "Hello"
    assert sorted(tokenizer.get_vocab().values()) == list(range(612))


@pytest.mark.parametrize("offset", [0, 1, 183, 10**6])
def test_ids_beyond_the_vocabulary_have_no_text(original: Original, offset: int) -> None:
    """Quirk 19: IndexError in the original, though its model can emit such ids."""
    tokenizer = original.tokenizer
    beyond = tokenizer.vocab_size + offset
    ids = tokenizer.encode("Hello world", add_special_tokens=False)
    assert tokenizer.decode(beyond) == tokenizer.decode(-100) == ""
    assert tokenizer.decode([beyond, *ids[:1], beyond, *ids[1:], -100]) == "Hello world"
    first, *others = tokenizer.convert_tokens_to_ids(["<0xE9>", "<0xBE>", "<0x98>"])
    assert tokenizer.decode([first, beyond, *others]) == "龘"


def test_every_id_decodes(toy: ChatGLMTokenizer) -> None:
    texts = [toy.decode(index) for index in range(toy.vocab_size)]
    control_ids = toy.convert_tokens_to_ids(CONTROL_WORDS[1:])
    assert all(texts[index] == "" for index in control_ids)
    assert texts[toy.unk_token_id] == " ⁇ "
    assert texts[toy.convert_tokens_to_ids("<|blank_80|>")] == " " * 80


def test_special_tokens_mask(toy: ChatGLMTokenizer) -> None:
    """Quirk 18: the original's masks have the length without special tokens."""
    for pair in (("你好[MASK]",), ("", ""), ("写[MASK]", "诗")):
        encoding = toy(*pair, return_special_tokens_mask=True, return_token_type_ids=True)
        parts = [toy.encode(text, add_special_tokens=False) for text in pair]
        expected = [0] * len(parts[0]) + [1, 1] + ([0] * len(parts[1]) + [1] if len(pair) == 2 else [])
        assert encoding.special_tokens_mask == toy.get_special_tokens_mask(*parts) == expected
        assert len(encoding.token_type_ids) == len(encoding.input_ids) == len(expected)
    ids = [*toy("你好[MASK]", padding="max_length", max_length=8).input_ids, toy.end_token_id]
    assert toy.get_special_tokens_mask(ids, already_has_special_tokens=True) == [1, 1, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("side", ["left", "right"])
@settings(max_examples=30)
@given(texts=st.lists(HOSTILE_TEXT, min_size=1, max_size=4))
def test_padding(toy: ChatGLMTokenizer, side: str, texts: list[str]) -> None:
    """Quirk 18: the original pads only on the left."""
    batch = toy(texts, padding=True, padding_side=side, return_tensors="np", split_special_tokens=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    for text, ids, mask in zip(texts, batch["input_ids"], batch["attention_mask"], strict=True):
        alone = toy(text, split_special_tokens=True)
        assert alone.attention_mask == [1] * len(alone.input_ids)
        assert ids[mask == 1].tolist() == alone.input_ids
        assert set(ids[mask == 0].tolist()) <= {toy.pad_token_id}
        assert np.array_equal(np.sort(mask) if side == "left" else -np.sort(-mask), mask)


# Control words in the text


def test_split_special_tokens_keeps_control_words_plain(original: Original) -> None:
    tokenizer, by_attribute = original.tokenizer, copy.deepcopy(original.tokenizer)
    by_attribute.split_special_tokens = True
    by_init = ChatGLMTokenizer(original.directory / "ice_text.model", split_special_tokens=True)
    control_ids = set(tokenizer.convert_tokens_to_ids(CONTROL_WORDS))
    assert len(control_ids) == len(CONTROL_WORDS)
    for word in CONTROL_WORDS:
        for text in (word, f" {word} ", f"前{word}后", f"{word}{word}\n{word}", f"<n>{word}"):
            ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            assert not control_ids & set(ids)
            assert word in tokenizer.decode(ids)
            assert by_attribute.encode(text, add_special_tokens=False) == ids
            assert by_init.encode(text, add_special_tokens=False) == ids
            pair = tokenizer(text, text, split_special_tokens=True).input_ids
            assert pair == tokenizer.build_inputs_with_special_tokens(ids, ids)


@pytest.mark.parametrize("word", ["[MASK]", "<sop>", "<eop>", "<pad>", "<unk>"])
def test_control_words_swallow_the_white_space_around_them(original: Original, word: str) -> None:
    """Quirk 14; the text after the word begins with a dummy prefix again."""
    tokenizer = original.tokenizer
    expected = [*tokenizer.tokenize("a"), word, *tokenizer.tokenize("b")]
    for left, right in (("", ""), (" ", " "), ("  ", "\n"), (" \t\n", "\u3000  ")):
        assert tokenizer.tokenize(f"a{left}{word}{right}b") == expected


@given(text=HOSTILE_TEXT)
def test_no_text_becomes_a_control_token(original: Original, text: str) -> None:
    ids = original.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert not set(original.tokenizer.convert_tokens_to_ids(CONTROL_WORDS)) & set(ids)


@given(text=HOSTILE_TEXT)
def test_only_five_words_become_control_tokens(toy: ChatGLMTokenizer, text: str) -> None:
    ids = toy.encode(text, add_special_tokens=False)
    control_ids = toy.convert_tokens_to_ids(CONTROL_WORDS)
    assert set(ids) & set(control_ids) == {
        toy.convert_tokens_to_ids(word) for word in ("[MASK]", "<sop>", "<eop>", "<pad>", "<unk>") if word in text
    }


# Text survives


@given(text=PLAIN_TEXT)
def test_plain_text_survives(original: Original, text: str) -> None:
    """Quirk 15: a single blank at either end is lost, all other white space is kept."""
    tokenizer = original.tokenizer
    ids = tokenizer.encode(text, split_special_tokens=True)
    assert tokenizer.encode(tokenizer.decode(ids), split_special_tokens=True) == ids
    inner = text.strip(" ")
    assert tokenizer.decode(tokenizer.encode(inner, split_special_tokens=True)) == inner


@pytest.mark.parametrize("length", [2, 3, 79, 80, 81, 82, 160, 161, 400])
def test_runs_of_blanks_survive(original: Original, length: int) -> None:
    tokenizer, text = original.tokenizer, f"x{' ' * length}y"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.convert_tokens_to_ids("<|blank_80|>")) == length // 80


# Files


def test_save_and_load(original: Original, tmp_path: Path) -> None:
    original.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    written = {Path(file).name for file in original.tokenizer.save_pretrained(tmp_path)}
    original.tokenizer.chat_template = None
    assert written >= {"ice_text.model", "tokenizer_config.json", "chat_template.jinja"}
    assert (tmp_path / "ice_text.model").read_bytes() == (original.directory / "ice_text.model").read_bytes()
    assert "auto_map" not in json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))

    loaded = ChatGLMTokenizer.from_pretrained(tmp_path)
    assert loaded.chat_template == "{{ messages[0]['content'] }}"
    assert loaded.apply_chat_template([{"role": "user", "content": "你好"}], tokenize=False) == "你好"
    assert loaded.get_vocab() == original.tokenizer.get_vocab()
    assert loaded.special_tokens_map == original.tokenizer.special_tokens_map
    assert loaded(TEXTS).input_ids == original.tokenizer(TEXTS).input_ids

    loaded.save_pretrained(tmp_path)  # onto the files it came from
    assert ChatGLMTokenizer.from_pretrained(tmp_path)(TEXTS).input_ids == original.tokenizer(TEXTS).input_ids


@pytest.mark.parametrize("with_model_config", [True, False])
def test_auto_tokenizer(original: Original, with_model_config: bool, tmp_path: Path) -> None:
    shutil.copytree(original.directory, tmp_path, dirs_exist_ok=True)
    if with_model_config:
        ChatGLMConfig().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)  # without `trust_remote_code`
    assert type(loaded) is ChatGLMTokenizer
    loaded.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is ChatGLMTokenizer
    assert again(TEXTS).input_ids == original.tokenizer(TEXTS).input_ids


def test_pickle_and_deepcopy(original: Original) -> None:
    expected = original.tokenizer(TEXTS, padding=True).data
    for twin in (pickle.loads(pickle.dumps(original.tokenizer)), copy.deepcopy(original.tokenizer)):
        assert twin(TEXTS, padding=True).data == expected
        assert twin.gmask_token_id == original.tokenizer.gmask_token_id


def test_added_tokens(tmp_path: Path) -> None:
    """Tokens without a piece go behind the vocabulary, whether named, special or plain."""
    tokenizer = ChatGLMTokenizer(GOLDEN / "toy.model", pad_token="<|my_pad|>")
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, len(tokenizer)) == (512, 0, 513)
    assert (
        tokenizer.add_tokens(["plain_word"]) == tokenizer.add_special_tokens({"extra_special_tokens": ["<|x|>"]}) == 1
    )
    tokenizer.save_pretrained(tmp_path)
    for variant in (tokenizer, ChatGLMTokenizer.from_pretrained(tmp_path)):
        ids = variant.encode("a plain_word <|x|> b", add_special_tokens=False)
        assert {513, 514} <= set(ids) and variant.vocab_size == 512 and len(variant) == 515
        assert "plain_word" in variant.decode([512, *ids]) and "my_pad" not in variant.decode([512, *ids])


# Files that are not there, or are something else


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:5e974d9a\nsize 2706249\n",
            "Git LFS pointer",
        ),
        (b"", "damaged"),
        (b"<!DOCTYPE html>", "damaged"),
        ((GOLDEN / "toy.model").read_bytes()[:100_000], "damaged"),
    ],
    ids=["missing", "lfs_pointer", "empty", "web_page", "cut_off"],
)
def test_unusable_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    make_checkpoint(tmp_path, GOLDEN / "toy.model")
    file = tmp_path / "ice_text.model"
    file.unlink() if content is None else file.write_bytes(content)
    for load in (ChatGLMTokenizer.from_pretrained, AutoTokenizer.from_pretrained):
        with pytest.raises(ValueError, match=message) as caught:
            load(tmp_path)
        assert str(file) in str(caught.value) and "git lfs pull" in str(caught.value)
    with pytest.raises(ValueError, match=message):
        ChatGLMTokenizer(file)


def test_directory_instead_of_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        ChatGLMTokenizer(tmp_path)


def test_tokenizer_of_another_model(tmp_path: Path) -> None:
    """E.g. `tokenizer.model` of ChatGLM2-6B, whose tokenizer class has the same name."""
    other = (GOLDEN / "toy.model").read_bytes().replace(b"[gMASK]", b"[xMASK]")
    make_checkpoint(tmp_path, GOLDEN / "toy.model")
    (tmp_path / "ice_text.model").write_bytes(other)
    with pytest.raises(ValueError, match=r"ice_text\.model lacks \[gMASK\]: it is of another model"):
        AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "ice_text.model").rename(tmp_path / "tokenizer.model")
    with pytest.raises(ValueError, match=r"tokenizer\.model is no BPE: it is of another model than ChatGLM2-6B"):
        AutoTokenizer.from_pretrained(tmp_path)
