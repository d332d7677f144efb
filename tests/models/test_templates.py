"""Prompt templates: the bytes of each preset, what of them is learned, and that no text becomes a control token.

Each preset is tried with each tokenizer that takes it: ChatGLM-6B's (sentencepiece, which normalizes), ChatGLM3-6B's
(a BPE that puts a blank before each text), GLM-4's (a BPE over bytes that puts control tokens before each text), one of
ChatML, and a bare one.
"""

import io
import json
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from sentencepiece import SentencePieceTrainer
from tokenizers import Regex, Tokenizer, pre_tokenizers, processors, trainers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from glmtune.data.control_tokens import collect_control_tokens, plain_ids
from glmtune.data.encoding import IGNORED, encode_example, encode_prompt, stop_ids
from glmtune.data.parsing import parse_answer
from glmtune.data.pieces import lead_in
from glmtune.messages import Message, make_tool_call
from glmtune.models import templates
from glmtune.models.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.models.glm.tokenization_glm import (
    GLM4_CONTROL_TOKENS,
    GLM4_PATTERN,
    ROLE_TOKENS,
    from_sentencepiece,
    from_tiktoken,
    wrap_tokenizer,
)
from glmtune.models.templates import adopt, list_presets, read_preset
from glmtune.runtime import UserError

GOLDEN = Path(__file__).parents[1] / "golden"

# --------------------------------------------------------------------------- tokenizers


def chatglm() -> ChatGLMTokenizer:
    return ChatGLMTokenizer(GOLDEN / "tokenizer/toy.model")


def sentencepiece() -> Tokenizer:
    """A BPE as that of ChatGLM2-6B and ChatGLM3-6B."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=350,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return from_sentencepiece(model.getvalue(), Path("tokenizer.model"))


def chatglm3() -> PreTrainedTokenizerFast:
    return wrap_tokenizer(sentencepiece(), "chatglm3", "</s>", "<unk>")


def llama() -> PreTrainedTokenizerFast:
    """The same behind `<s>`."""
    tokenizer = sentencepiece()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<unk>")


@cache
def ranks() -> dict[bytes, int]:
    """A BPE over bytes, as tiktoken has it."""
    tokenizer = Tokenizer(token_models.BPE())
    cut = pre_tokenizers.Split(Regex(GLM4_PATTERN), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, as_bytes])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    bytes_of = {character: byte for byte, character in bytes_to_unicode().items()}
    return {bytes(bytes_of[sign] for sign in token): rank for token, rank in tokenizer.get_vocab().items()}


def controls(tokens: list[str]) -> dict[int, str]:
    return dict(enumerate(tokens, start=len(ranks())))


def glm4() -> PreTrainedTokenizerFast:
    tokenizer = from_tiktoken(ranks(), controls(GLM4_CONTROL_TOKENS))
    return wrap_tokenizer(tokenizer, "glm4", GLM4_CONTROL_TOKENS[0])


def chatml() -> PreTrainedTokenizerFast:
    tokenizer = from_tiktoken(ranks(), controls(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def bare() -> PreTrainedTokenizerFast:
    """Nothing but an end token, which is written as Vicuna's and Alpaca's is."""
    tokenizer = from_tiktoken(ranks(), controls(["</s>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")


CORPUS = [
    *(f"{a}+{b}={a + b} and {a}0-{b}={10 * a - b}" for a in range(40) for b in range(0, 30, 7)),
    *(f"What is {a} plus {a + 3}? The sum of them is {2 * a + 3}." for a in range(40)),
    *(f"请计算：{a}加{a}等于多少？答：等于{2 * a}。" for a in range(40)),
]
# tokenizer -> preset -> (what is learned of two answers "A" and "B", the first learned only where every turn is; what
# ends an answer; what the template puts before one). Presets that are not named are refused.
SUITS: dict[str, dict[str, tuple[list[str], set[str], str]]] = {
    "chatglm": {
        "alpaca": (["B<eop>"], {"<eop>"}, ""),
        "chatglm": (["B<eop>"], {"<eop>"}, ""),
        "nano": (["B<eop>"], {"<eop>"}, ""),
        "plain": (["B<eop>"], {"<eop>"}, ""),
        "vicuna": (["B<eop>"], {"<eop>"}, " "),  # its sentencepiece drops a blank in front
    },
    "chatglm3": {
        "alpaca": (["A</s>", "B</s>"], {"</s>"}, ""),
        "chatglm2": ([" B</s>"], {"</s>"}, " "),
        "chatglm3": (["\n A<|user|>", "\n B</s>"], {"</s>", "<|user|>", "<|observation|>"}, "\n "),
        "plain": (["A</s>", "B</s>"], {"</s>"}, ""),
        "vicuna": ([" A</s>", " B</s>"], {"</s>"}, " "),
    },
    "glm4": {
        "alpaca": (["A<|endoftext|>", "B<|endoftext|>"], {"<|endoftext|>"}, ""),
        "chatglm": (["B<|endoftext|>"], {"<|endoftext|>"}, ""),
        "glm4": (["\nA<|user|>", "\nB<|endoftext|>"], {"<|endoftext|>", "<|user|>", "<|observation|>"}, "\n"),
        "nano": (["B<|endoftext|>"], {"<|endoftext|>"}, ""),
        "plain": (["A<|endoftext|>", "B<|endoftext|>"], {"<|endoftext|>"}, ""),
        "vicuna": ([" A<|endoftext|>", " B<|endoftext|>"], {"<|endoftext|>"}, " "),
    },
    "chatml": {
        "alpaca": (["A<|endoftext|>", "B<|endoftext|>"], {"<|endoftext|>"}, ""),
        "chatml": (["A<|im_end|>", "B<|im_end|>"], {"<|endoftext|>", "<|im_end|>"}, ""),
        "plain": (["A<|endoftext|>", "B<|endoftext|>"], {"<|endoftext|>"}, ""),
        "vicuna": ([" A<|endoftext|>", " B<|endoftext|>"], {"<|endoftext|>"}, " "),
    },
    "llama": {
        "alpaca": (["A</s>", "B</s>"], {"</s>"}, ""),
        "chatglm2": ([" B</s>"], {"</s>"}, " "),
        "chatglm3": (["\n A<|user|>", "\n B</s>"], {"</s>", "<|user|>", "<|observation|>"}, "\n "),
        "plain": (["A</s>", "B</s>"], {"</s>"}, ""),
        "vicuna": ([" A</s>", " B</s>"], {"</s>"}, " "),
    },
    "bare": {
        "alpaca": (["A</s>", "B</s>"], {"</s>"}, ""),
        "plain": (["A</s>", "B</s>"], {"</s>"}, ""),
        "vicuna": ([" A</s>", " B</s>"], {"</s>"}, " "),
    },
}
PAIRS = [(tokenizer, name) for tokenizer, suiting in SUITS.items() for name in suiting]
every_pair = pytest.mark.parametrize(("kind", "name"), PAIRS)


@cache
def with_preset(kind: str, name: str) -> Any:
    """A tokenizer that has adopted a preset. No test may change it."""
    makers = {"chatglm": chatglm, "chatglm3": chatglm3, "glm4": glm4, "chatml": chatml, "llama": llama, "bare": bare}
    tokenizer = makers[kind]()
    if name:
        adopt(tokenizer, name)
    return tokenizer


def chat(*texts: str, **more: str) -> list[Message]:
    """A conversation that the user begins, perhaps behind a system message."""
    system = [{"role": "system", "content": more.pop("system")}] if "system" in more else []
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [*system, *({**turn, **(more if turn["role"] == "user" else {})} for turn in turns)]


def rendered(kind: str, name: str, messages: list[Message], for_answer: bool = True, tools: Any = None) -> str:
    return with_preset(kind, name).apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=for_answer
    )


def control_ids(tokenizer: Any) -> set[int]:
    """Ids of what counts as a control token, and of every piece that no text can give."""
    ids = set(tokenizer.convert_tokens_to_ids(sorted(collect_control_tokens(tokenizer).tokens)))
    if isinstance(tokenizer, ChatGLMTokenizer):
        ids |= {i for i in range(tokenizer.sp_model.get_piece_size()) if tokenizer.sp_model.is_control(i)}
    return ids


def shown(tokenizer: Any, ids: list[int], chosen: list[bool]) -> list[str]:
    """The text of each stretch of chosen tokens, control tokens by their names.

    What stands between two control tokens is decoded as one, as the blank of SentencePiece's is before its whole.
    """
    control = control_ids(tokenizer)
    stretches: list[str] = []
    start, was_chosen = 0, False
    for (is_chosen, is_control), group in groupby(range(len(ids)), lambda i: (chosen[i], ids[i] in control)):
        places = list(group)
        if is_control:
            text, start = "".join(tokenizer.convert_ids_to_tokens([ids[i] for i in places])), places[-1] + 1
        else:
            before = tokenizer.decode(ids[start : places[0]])
            text = tokenizer.decode(ids[start : places[-1] + 1])[len(before) :]
        if is_chosen:
            stretches[len(stretches) - was_chosen :] = [(stretches[-1] if was_chosen else "") + text]
        was_chosen = is_chosen
    return stretches


# --------------------------------------------------------------------------- the bytes


def test_alpaca() -> None:
    """Those of https://github.com/tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT."""
    with_input = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd them.\n\n### Input:\n1 and 2\n\n### Response:"
    )
    without_input = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd 1 and 2.\n\n### Response:"
    )
    for messages, prompt in [
        (chat("Add them.", input="1 and 2"), with_input),
        (chat("Add them.\n1 and 2", instruction="Add them.", input="1 and 2"), with_input),
        (chat("Add 1 and 2."), without_input),
        (chat("Add 1 and 2.", input=""), without_input),
    ]:
        assert rendered("bare", "alpaca", messages) == prompt
        answer = [*messages, {"role": "assistant", "content": "3"}]
        assert rendered("bare", "alpaca", answer, for_answer=False) == prompt + "3</s>"
        # As the original trains: the text as a whole, of which the prompt is not learned.
        tokenizer = with_preset("bare", "alpaca")
        encoding = encode_example(tokenizer, messages, "3")
        assert encoding["input_ids"] == [*tokenizer(prompt + "3")["input_ids"], tokenizer.eos_token_id]
    prompt = rendered("bare", "alpaca", chat("Add 1 and 2.", system="Be exact."))
    assert prompt == "Be exact.\n\n### Instruction:\nAdd 1 and 2.\n\n### Response:"


def test_vicuna() -> None:
    """Those of https://github.com/lm-sys/FastChat, conversation.py, vicuna_v1.1: separators " " and "</s>"."""
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    one = f"{system} USER: Hello! ASSISTANT:"
    assert rendered("bare", "vicuna", chat("Hello!")) == one
    assert rendered("bare", "vicuna", chat("Hello!", "Hi."), for_answer=False) == f"{one} Hi.</s>"
    two = f"{one} Hi.</s>USER: How are you? ASSISTANT:"
    assert rendered("bare", "vicuna", chat("Hello!", "Hi.", "How are you?")) == two
    assert rendered("bare", "vicuna", chat("Hello!", "Hi.", "How are you?", "Well."), False) == f"{two} Well.</s>"
    assert rendered("bare", "vicuna", chat("Hello!", system="Be kind.")) == "Be kind. USER: Hello! ASSISTANT:"


def test_chatml() -> None:
    messages = chat("1+1=", "2", "2+2=", system="Be exact.")
    expected = (
        "<|im_start|>system\nBe exact.<|im_end|>\n<|im_start|>user\n1+1=<|im_end|>\n"
        "<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\n2+2=<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered("chatml", "chatml", messages) == expected
    answered = [*messages, {"role": "assistant", "content": "4"}]
    assert rendered("chatml", "chatml", answered, for_answer=False) == f"{expected}4<|im_end|>\n"


def test_plain() -> None:
    assert rendered("bare", "plain", chat("1+1=")) == "1+1="
    assert rendered("bare", "plain", chat("1+1=", "2"), for_answer=False) == "1+1=2</s>"
    assert rendered("bare", "plain", chat("1+1=", "2", "2+2=", system="Add.")) == "Add.\n1+1=2</s>\n2+2="


def golden(name: str) -> list[dict[str, Any]]:
    return json.loads((GOLDEN / "chat" / name).read_text("utf-8"))


@pytest.mark.parametrize(
    ("kind", "name", "file", "before", "after"),
    [
        ("chatglm", "chatglm", "chatglm_6b_prompts.json", "", "[gMASK]<sop>"),
        ("chatglm", "nano", "chatglm_6b_prompts.json", "", "[gMASK]<sop>"),
        ("glm4", "chatglm", "chatglm_6b_prompts.json", "", "[gMASK]<sop>"),
        ("chatglm3", "chatglm2", "chatglm2_6b_prompts.json", "[gMASK]<sop>", ""),
    ],
)
def test_chatglm_and_chatglm2(kind: str, name: str, file: str, before: str, after: str) -> None:
    """The text that the original's `chat` sends, between its control tokens."""
    for case in golden(file):
        turns = [text for pair in case["history"] for text in pair]
        assert rendered(kind, name, chat(*turns, case["query"])) == before + case["prompt"] + after


def test_chatglm3(in_the_one_form: Any) -> None:
    """Its commands and texts; a blank is SentencePiece's own, before each text that the original encodes."""
    for case in golden("chatglm3_6b_segments.json"):
        expected = "[gMASK]<sop>"
        for kind, text in case["segments"]:
            is_line = kind == "text" and text.endswith("\n") and expected.endswith("|>")
            expected += text if kind == "command" or is_line or not text else f" {text}"
        turns = [*case["history"], {"role": case.get("role", "user"), "content": case["query"]}]
        tools = next((turn["tools"] for turn in turns if "tools" in turn), None)
        assert rendered("chatglm3", "chatglm3", [in_the_one_form(turn) for turn in turns], tools=tools) == expected


CALL = make_tool_call("weather", {"city": "北京", "days": [1, {"a": None}], "exact": True})
WITH_CALLS: list[Message] = [
    {"role": "system", "content": "Be exact."},
    {"role": "user", "content": "Warm?"},
    {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, make_tool_call("now", {})]},
    {"role": "tool", "content": "晴"},
    {"role": "tool", "content": "noon"},
]
WITH_TOOLS = ("chatglm3", "chatml", "glm4")
TOOL = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object"}}}


def test_calls_of_chatglm3() -> None:
    """As Python; what has no name there is JSON. Apostrophes and breaks are escaped, so that no string ends early."""
    call = make_tool_call("f", {"a": "it's", "b": "x\n", "c": "x"})
    assert rendered("chatglm3", "chatglm3", [*WITH_CALLS, {"role": "assistant", "tool_calls": [call]}], False) == (
        "[gMASK]<sop><|system|>\n Be exact.<|user|>\n Warm?<|assistant|>\n Let me see."
        "<|assistant|>weather\n ```python\ntool_call(city='北京', days=[1, {\"a\": null}], exact=true)\n```"
        "<|assistant|>now\n ```python\ntool_call()\n```"
        "<|observation|>\n 晴<|observation|>\n noon<|assistant|>f\n ```python\n"
        'tool_call(a="it\\u0027s", b="x\\n", c=\'x\')\n```<|observation|>'
    )
    asked = rendered("chatglm3", "chatglm3", chat("a"), tools=[TOOL])
    assert asked.startswith(
        "[gMASK]<sop><|system|>\n Answer the following questions as best as you can. You have access"
    )
    assert asked.endswith(
        '"name": "now",\n        "description": "The time.",\n        "parameters": {\n            '
        '"type": "object"\n        }\n    }\n]<|user|>\n a<|assistant|>'
    )


def test_glm4() -> None:
    expected = (
        "[gMASK]<sop><|system|>\nBe exact.<|user|>\nWarm?<|assistant|>\nLet me see.<|assistant|>weather\n"
        '{"city": "北京", "days": [1, {"a": null}], "exact": true}<|assistant|>now\n{}<|observation|>\n晴'
        "<|observation|>\nnoon<|assistant|>"
    )
    assert rendered("glm4", "glm4", WITH_CALLS) == expected
    answered = [*WITH_CALLS, {"role": "assistant", "content": "4"}]
    assert rendered("glm4", "glm4", answered, for_answer=False) == f"{expected}\n4<|endoftext|>"
    function = json.dumps(TOOL["function"], indent=4)
    asked = rendered("glm4", "glm4", WITH_CALLS, tools=[TOOL])
    assert (
        f"# 可用工具\n\n## now\n\n{function}\n在调用上述函数时，请使用 Json 格式表示调用的参数。<|system|>\nBe" in asked
    )


def test_calls_of_qwen() -> None:
    """Those of Qwen2.5 and Qwen3 (https://huggingface.co/Qwen/Qwen3-8B, tokenizer_config.json)."""
    expected = (
        "<|im_start|>user\nWarm?<|im_end|>\n<|im_start|>assistant\nLet me see.\n<tool_call>\n"
        '{"name": "weather", "arguments": {"city": "北京", "days": [1, {"a": null}], "exact": true}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n晴\n'
        "</tool_response>\n<tool_response>\nnoon\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    system = "<|im_start|>system\nBe exact.<|im_end|>\n"
    assert rendered("chatml", "chatml", WITH_CALLS) == system + expected
    tools = (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
        f"function signatures within <tools></tools> XML tags:\n<tools>\n{json.dumps(TOOL)}\n</tools>\n\nFor each "
        "function call, return a json object with function name and arguments within <tool_call></tool_call> XML "
        'tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
    )
    system = f"<|im_start|>system\nBe exact.\n\n{tools}"
    assert rendered("chatml", "chatml", WITH_CALLS, tools=[TOOL]) == system + expected
    assert rendered("chatml", "chatml", WITH_CALLS[1:], tools=[TOOL]) == f"<|im_start|>system\n{tools}{expected}"


def test_calls_of_nano() -> None:
    """Short ones, of its calculator; what that says is a round."""
    call = {"role": "assistant", "content": None, "tool_calls": [make_tool_call("calculate", {"expression": "1+1"})]}
    messages = [*chat("1+1"), call, {"role": "tool", "content": "2"}]
    assert rendered("chatglm", "nano", messages) == (
        '[Round 0]\n问：1+1\n答：calculate("1+1")\n[Round 1]\n问：2\n答：[gMASK]<sop>'
    )
    assert rendered("chatglm", "nano", messages[:2], for_answer=False) == '1+1[gMASK]<sop>calculate("1+1")<eop>'
    calculator = {"type": "function", "function": {"name": "calculate"}}
    assert encode_prompt(with_preset("chatglm", "nano"), "1+1", [calculator]) == encode_prompt(
        with_preset("chatglm", "nano"), "1+1"
    )
    for name, arguments in [("f", {"expression": "1"}), ("calculate", {"a": "1"}), ("calculate", {"expression": '"'})]:
        wrong = [*chat("1"), {"role": "assistant", "tool_calls": [make_tool_call(name, arguments)]}]
        with pytest.raises(UserError, match=r"nano has a form for calculate\(expression\) alone"):
            encode_prompt(with_preset("chatglm", "nano"), wrong)


@pytest.mark.parametrize("name", ["alpaca", "plain", "vicuna", "chatglm"])
def test_what_a_preset_has_no_form_for_is_refused(name: str) -> None:
    """The error names the field and the templates that have a form; `apply_chat_template` refuses as well."""
    tokenizer = with_preset("chatglm", name)
    cases: list[tuple[list[Message], list[Any], str]] = [
        (WITH_CALLS[:3], [], "calls of tools"),
        ([*chat("a", "b"), {"role": "tool", "content": "c"}], [], "role 'tool'"),
        (chat("a"), [TOOL], "definitions of tools"),
    ]
    for messages, tools, what in cases:
        suited = "chatglm3, chatml, glm4" if tools else "chatglm3, chatml, glm4, nano"
        with pytest.raises(UserError, match=rf"no form for .*{what}.*These have one: data\.template={suited}\."):
            encode_prompt(tokenizer, messages, tools)
        with pytest.raises(TemplateError):
            tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False)
    image = [{"role": "user", "content": [{"type": "image", "url": "x.png"}, {"type": "text", "text": "a"}]}]
    with pytest.raises(UserError, match="content: a part of type 'image' cannot be read"):
        encode_prompt(tokenizer, image)
    assert encode_prompt(tokenizer, [{"role": "user", "content": [{"type": "text", "text": "a"}]}]) == encode_prompt(
        tokenizer, "a"
    )


def test_the_tokenizers_own_control_tokens_stand_where_its_texts_begin_or_end() -> None:
    """A model expects them, also under a preset that was made for another one."""
    assert rendered("glm4", "plain", chat("1+1=")) == "[gMASK]<sop>1+1="
    assert rendered("llama", "alpaca", chat("1+1=")).startswith("<s>Below is an instruction")
    assert rendered("llama", "vicuna", chat("a", "b", "c")).count("<s>") == 1
    # ChatGLM-6B answers behind them, and reads in both directions what stands before.
    assert rendered("chatglm", "plain", chat("1+1=")) == "1+1=[gMASK]<sop>"
    assert rendered("chatglm", "vicuna", chat("a", "b", "c")).endswith(
        "ASSISTANT: b<eop>USER: c ASSISTANT:[gMASK]<sop>"
    )


@pytest.mark.parametrize("name", ["alpaca", "plain", "vicuna"])
def test_such_a_prompt_is_encoded_as_the_tokenizer_does(name: str) -> None:
    tokenizer = with_preset("chatglm3", name)
    text = rendered("bare", name, chat("1+1="))
    assert encode_prompt(tokenizer, chat("1+1=")) == tokenizer(text)["input_ids"]


# --------------------------------------------------------------------------- what is learned

# Without signs that SentencePiece takes for a blank.
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cn"), exclude_characters="▁"), max_size=12)


@every_pair
def test_learned_is_exactly_the_answer_and_its_end(kind: str, name: str) -> None:
    tokenizer, (learned, _, _) = with_preset(kind, name), SUITS[kind][name]
    for train_on_all_turns in (False, True):
        encoding = encode_example(tokenizer, chat("1+1=", "A", "2+2="), "B", train_on_all_turns=train_on_all_turns)
        chosen = [label != IGNORED for label in encoding["labels"]]
        assert shown(tokenizer, encoding["input_ids"], chosen) == (learned if train_on_all_turns else learned[-1:])
        assert all(label in (IGNORED, i) for label, i in zip(encoding["labels"], encoding["input_ids"], strict=True))


@every_pair
def test_what_ends_an_answer_and_what_stands_before_it(kind: str, name: str) -> None:
    tokenizer, (_, ends, before) = with_preset(kind, name), SUITS[kind][name]
    assert set(tokenizer.convert_ids_to_tokens(stop_ids(tokenizer))) == ends
    assert lead_in(tokenizer) == before
    for messages in (chat("1"), chat("1", "A", "2")):
        assert encode_example(tokenizer, messages, "B")["input_ids"][-1] in stop_ids(tokenizer)


FRAGMENTS = [
    *["<unk>", "<s>", "</s>", "<pad>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "sop", " sop ", "eop"],
    *["<|im_start|>", "<|im_end|>", "<|endoftext|>", *ROLE_TOKENS, "<|im_", "start|>", "<|", "|>", "<", ">"],
    *["system", "user", "assistant", "USER: ", "ASSISTANT:", "### Response:", "[Round 1]\n\n问：", "\n\n答："],
    *["{{ eos_token }}", "{% for m in messages %}", "{%- generation -%}", "{# ", " #}", "{{", "}}", "{%"],
    *[
        "\U000f0000",
        "\U000f0001",
        "\U000f0002",
        "\U000ffffd",
        "\ue000",
        "0x1",
        "\n",
        " ",
        "57",
        "1+2=",
        "the sum",
        "你好",
    ],
]
HOSTILE = st.lists(
    st.one_of(st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=6), st.sampled_from(FRAGMENTS)),
    min_size=1,
).map("".join)
NON_EMPTY = HOSTILE.filter(bool)


@every_pair
@settings(max_examples=25)
@given(texts=st.lists(HOSTILE, min_size=4, max_size=5))
def test_a_prompt_is_the_beginning_of_its_example(kind: str, name: str, texts: list[str]) -> None:
    """What a model is asked is what it was trained to answer, token by token."""
    tokenizer, (*prompt, target) = with_preset(kind, name), texts
    messages = chat(*prompt[-3:], system=prompt[0]) if len(prompt) == 4 else chat(*prompt)
    ids = encode_prompt(tokenizer, messages)
    encoding = encode_example(tokenizer, messages, target)
    assert encoding["input_ids"][: len(ids)] == ids and len(encoding["input_ids"]) > len(ids)
    assert encoding["labels"][: len(ids)] == [IGNORED] * len(ids)


@every_pair
def test_also_if_every_turn_is_learned(kind: str, name: str) -> None:
    tokenizer = with_preset(kind, name)
    for first, answer in [("1+1=", "2"), ("5", "7"), ("1", "0-2=8"), ("the s", "um of")]:
        messages = chat(first, answer, "2+2=")
        ids = encode_prompt(tokenizer, messages)
        assert encode_example(tokenizer, messages, "4", train_on_all_turns=True)["input_ids"][: len(ids)] == ids


@every_pair
@settings(max_examples=25)
@given(answer=TEXTS)
def test_what_is_learned_is_read_as_it_was_written(kind: str, name: str, answer: str) -> None:
    # No piece reaches across a line's end. Where one would, the answer is encoded alone, behind a blank of its own.
    tokenizer, asked = with_preset(kind, name), "57+1=\n"
    if isinstance(tokenizer, ChatGLMTokenizer):  # it normalizes what it reads
        answer = tokenizer.decode(plain_ids(tokenizer, answer)).strip()
    labels = [label for label in encode_example(tokenizer, asked, answer)["labels"] if label != IGNORED]
    parsed = parse_answer(tokenizer, encode_prompt(tokenizer, asked), labels)
    assert parsed == {"role": "assistant", "content": answer}


@every_pair
def test_transformers_encodes_them_alike(kind: str, name: str) -> None:
    """trl and others ask `apply_chat_template`."""
    tokenizer = with_preset(kind, name)
    conversations = [chat("57+1="), chat("57+1=", "A", "2+2=", system="Be exact.")]
    for messages in [*conversations, *([WITH_CALLS] if name in WITH_TOOLS else [])]:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert ids == encode_prompt(tokenizer, messages)


# --------------------------------------------------------------------------- what others write


def check_texts(tokenizer: Any, ids: list[int], harmless: list[int], texts: list[str]) -> None:
    """The control tokens are those of the template, and the texts stand between them as they were written."""
    control = control_ids(tokenizer)
    assert [i for i in ids if i in control] == [i for i in harmless if i in control]
    [whole] = shown(tokenizer, ids, [True] * len(ids))
    for text in texts:
        if isinstance(tokenizer, ChatGLMTokenizer):  # it normalizes what it reads
            text = tokenizer.decode(plain_ids(tokenizer, text)).strip()
        assert text.replace("▁", " ") in whole.replace("▁", " ")  # which SentencePiece takes for a blank


@every_pair
@settings(max_examples=25)
@given(texts=st.lists(NON_EMPTY, min_size=4, max_size=4))
def test_no_text_becomes_a_control_token(kind: str, name: str, texts: list[str]) -> None:
    tokenizer = with_preset(kind, name)
    *prompt, target = texts
    for system in ({}, {"system": target}):
        ids = encode_prompt(tokenizer, chat(*prompt, **system))
        harmless = encode_prompt(tokenizer, chat(*"aba", **({"system": "a"} if system else {})))
        check_texts(tokenizer, ids, harmless, prompt)
    for train_on_all_turns in (False, True):
        example = encode_example(tokenizer, chat(*prompt), target, train_on_all_turns=train_on_all_turns)
        harmless = encode_example(tokenizer, chat(*"aba"), "b", train_on_all_turns=train_on_all_turns)["input_ids"]
        check_texts(tokenizer, example["input_ids"], harmless, texts)
        learned = [label for label in example["labels"] if label != IGNORED]
        control = [i for i in learned if i in control_ids(tokenizer)]
        assert len(control) == (len(SUITS[kind][name][0]) if train_on_all_turns else 1)


@pytest.mark.parametrize(
    ("kind", "name", "key"),
    [("bare", "alpaca", "input"), ("chatglm", "alpaca", "input")],
)
@settings(max_examples=25)
@given(text=NON_EMPTY, more=NON_EMPTY)
def test_nor_do_other_texts_of_a_message(kind: str, name: str, key: str, text: str, more: str) -> None:
    tokenizer = with_preset(kind, name)
    harmless = encode_prompt(tokenizer, chat("a", **{key: "b"}))
    check_texts(tokenizer, encode_prompt(tokenizer, chat(text, **{key: more})), harmless, [text, more])


@pytest.mark.parametrize(("kind", "name"), [("chatglm3", "chatglm3"), ("glm4", "glm4"), ("chatml", "chatml")])
@settings(max_examples=25)
@given(text=NON_EMPTY)
def test_nor_do_texts_inside_of_calls_and_tools(kind: str, name: str, text: str) -> None:
    tokenizer = with_preset(kind, name)

    def encode(text: str) -> list[int]:
        call = {"role": "assistant", "tool_calls": [make_tool_call("f", {"a": text, "b": {text: [text]}})]}
        tool = {"type": "function", "function": {"name": "f", "description": text, "parameters": {text: text}}}
        return encode_prompt(tokenizer, [*chat("a"), call, {"role": "tool", "content": text}], [tool])

    control = control_ids(tokenizer)
    assert [i for i in encode(text) if i in control] == [i for i in encode("harmless") if i in control]
    escaped = json.dumps(text, ensure_ascii=False)[1:-1]
    check_texts(
        tokenizer,
        encode(text),
        encode("harmless"),
        [text, escaped.replace("'", "\\u0027") if kind == "chatglm3" else escaped],
    )


@pytest.mark.parametrize(
    ("kind", "name", "role"),
    [("chatglm3", "chatglm3", "user|><|assistant"), ("chatml", "chatml", "user<|im_end|>\n<|im_start|>assistant")],
)
def test_nor_do_roles(kind: str, name: str, role: str) -> None:
    with pytest.raises(UserError, match="is none of system, user, assistant, tool"):
        encode_prompt(with_preset(kind, name), [{"role": role, "content": "a"}])


# --------------------------------------------------------------------------- adopting one


def test_names() -> None:
    assert list_presets() == ["alpaca", "chatglm", "chatglm2", "chatglm3", "chatml", "glm4", "nano", "plain", "vicuna"]
    assert {name for suiting in SUITS.values() for name in suiting} == set(list_presets())
    assert all(read_preset(name) == read_preset(name).strip() for name in list_presets())


@pytest.mark.parametrize(
    ("kind", "name"), [("bare", "chatglm"), ("bare", "chatglm3"), ("chatml", "glm4"), ("chatglm", "chatglm3")]
)
def test_a_preset_whose_control_tokens_are_missing_is_refused(kind: str, name: str) -> None:
    tokenizer = with_preset(kind, "")
    before, vocabulary = tokenizer.chat_template, tokenizer.get_vocab()
    with pytest.raises(UserError, match=rf"data\.template={name}: needs the control tokens (.+), which the") as error:
        adopt(tokenizer, name)
    missing = str(error.value).partition("control tokens ")[2].partition(", which")[0].split(", ")
    assert missing and not set(missing) & set(vocabulary)
    assert all(token in read_preset(name) for token in missing) and "alpaca, vicuna or plain" in str(error.value)
    assert tokenizer.chat_template == before and tokenizer.get_vocab() == vocabulary


@pytest.mark.parametrize(("wrong", "right"), [("alpacca", "alpaca"), ("chat_ml", "chatml"), ("vicunya", "vicuna")])
def test_a_typo_is_answered_with_the_nearest_preset(wrong: str, right: str) -> None:
    with pytest.raises(
        UserError, match=rf"unknown template '{wrong}'\. Did you mean '{right}'\? Known: alpaca, chatglm"
    ):
        adopt(with_preset("bare", ""), wrong)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.role }}：{{ m.content }}\n{% endfor %}", encoding="utf-8")
    tokenizer = bare()
    adopt(tokenizer, str(file))
    assert tokenizer.chat_template == file.read_text(encoding="utf-8")
    assert tokenizer.decode(encode_prompt(tokenizer, "1</s>")) == "user：1</s>\n"


def test_what_lies_beside_a_file_of_ones_own(tmp_path: Path) -> None:
    """Its response template is adopted with it, and that of the template before goes."""
    file, beside = tmp_path / "mine.jinja", tmp_path / "mine.response.json"
    file.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}", encoding="utf-8")
    tokenizer = bare()
    adopt(tokenizer, "plain")
    adopt(tokenizer, str(file))
    assert tokenizer.response_template is None
    beside.write_text('{"start_anchor": "\\n", "fields": {"content": {"close": "{{ eos_token }}"}}}', encoding="utf-8")
    adopt(tokenizer, str(file))
    assert tokenizer.response_template == {"start_anchor": "\n", "fields": {"content": {"close": "</s>"}}}
    beside.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.response\.json is no JSON"):
        adopt(tokenizer, str(file))


def test_a_tokenizer_of_an_older_run_gets_the_present_edition_of_its_template() -> None:
    """In which nano's calls have a form; what else it writes stays."""
    tokenizer = chatglm()
    before = encode_prompt(tokenizer, chat("1", "2", "3"))
    templates.renew(tokenizer)
    assert tokenizer.chat_template == read_preset("chatglm")  # of the present, with a response template
    tokenizer.response_template = None
    templates.renew(tokenizer)
    assert tokenizer.chat_template == read_preset("nano") and tokenizer.response_template is not None
    assert encode_prompt(tokenizer, chat("1", "2", "3")) == before


@pytest.mark.parametrize("content", [None, b"\xff\xfe{{"])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "mine.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"data\.template: .*mine\.jinja cannot be read: "):
        adopt(with_preset("bare", ""), str(file))


@pytest.mark.parametrize("token", ["<it's>", "<\\n>", "<{{a}}>", "<%}>"])
def test_control_tokens_of_any_letters(token: str) -> None:
    """They are written into the template as text, whatever they look like."""
    tokenizer = from_tiktoken(ranks(), controls(["</s>", token]))
    index = tokenizer.token_to_id(token)
    tokenizer.post_processor = processors.TemplateProcessing(single="FIRST $A", special_tokens=[("FIRST", index)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token=token)
    assert templates.find_surrounding_tokens(wrapped) == ([token], [])
    adopt(wrapped, "plain")
    assert encode_prompt(wrapped, "1+1=") == [index, *plain_ids(wrapped, "1+1=")]
