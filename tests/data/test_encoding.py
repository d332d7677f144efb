from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glmtune.data.control_tokens import collect_control_tokens, plain_ids
from glmtune.data.encoder import Encoder
from glmtune.data.encoding import IGNORED, check_template, encode_example, encode_prompt
from glmtune.examples import Example
from glmtune.messages import Message, make_tool_call
from glmtune.models.templates import adopt, read_preset
from glmtune.runtime import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "chat" / "chatglm_6b_prompts.json"
SHARED = Path(__file__).parents[2].parent / "shared" / "golden" / "chat" / "chat.json"

CHATGLM_WORDS = ["<unk>", "<s>", "</s>", "<pad>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "[gMASK]<sop>"]
CHATML_WORDS = ["<bos>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>system\n", "<|im_end|>\n"]
PIECES = ["<|im_", "start|>", "<", "|>", "\n", "\ue000", "\U000f0000", "\U000f0001"]
HOSTILE = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(CHATGLM_WORDS + CHATML_WORDS + PIECES))).map("".join)
same_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


def messages_of(history: list[list[str]], query: str) -> list[Message]:
    turns = [message for pair in history for message in zip(("user", "assistant"), pair, strict=True)]
    return [{"role": role, "content": content} for role, content in [*turns, ("user", query)]]


def control_ids(tokenizer: Any) -> set[int]:
    return set(tokenizer.convert_tokens_to_ids(sorted(collect_control_tokens(tokenizer).tokens)))


GOLDEN_PROMPTS = json.loads(GOLDEN.read_text("utf-8"))


@pytest.mark.parametrize("golden", GOLDEN_PROMPTS, ids=range(len(GOLDEN_PROMPTS)))
def test_chatglm_prompts_are_the_original_ones(golden: dict[str, Any], chatglm: Any) -> None:
    check_prompt(golden, chatglm)


@pytest.mark.skipif(not SHARED.is_file(), reason="the shared golden data is not here")
def test_all_chatglm_prompts_are_the_original_ones(chatglm: Any) -> None:
    for golden in json.loads(SHARED.read_text("utf-8"))["chatglm_6b_prompts"]:
        check_prompt(golden, chatglm)


def check_prompt(golden: dict[str, Any], chatglm: Any) -> None:
    messages = messages_of(golden["history"], golden["query"])
    rendered = chatglm.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == golden["prompt"] + "[gMASK]<sop>"
    ids = encode_prompt(chatglm, messages)
    assert ids == chatglm(golden["prompt"])["input_ids"]
    assert ids[-2:] == [chatglm.gmask_token_id, chatglm.bos_token_id]
    if not golden["history"]:
        assert encode_prompt(chatglm, golden["query"]) == ids


def test_chatglm_system_message(chatglm: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1="}]
    assert encode_prompt(chatglm, messages) == chatglm("Be brief.\n1+1=")["input_ids"]


MESSAGES = messages_of([["你好", "Hi!\n"], ["1+1=", "2"]], "57.84+13.64=")


def test_chatml_prompts_are_those_of_transformers(chatml: Any) -> None:
    expected = chatml.apply_chat_template(MESSAGES, tokenize=True, add_generation_prompt=True, return_dict=True)
    assert encode_prompt(chatml, MESSAGES) == expected["input_ids"]
    assert encode_prompt(chatml, "1+1=") == encode_prompt(chatml, [{"role": "user", "content": "1+1="}])


@given(text=HOSTILE)
@same_fixture
def test_user_text_is_never_a_control_token(text: str, chatglm: Any, chatml: Any) -> None:
    pieces = chatglm.sp_model
    ids = encode_prompt(chatglm, text)
    assert ids[-2:] == [chatglm.gmask_token_id, chatglm.bos_token_id]
    assert not [i for i in ids[:-2] if pieces.is_control(i) or i in control_ids(chatglm)]
    start, end = chatml.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    ids = encode_prompt(chatml, text)
    assert [i for i in ids if i >= 256] == [start, end, start]
    assert chatml.decode(ids) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


@given(texts=st.lists(HOSTILE, min_size=3, max_size=3))
@same_fixture
def test_histories_are_never_control_tokens(texts: list[str], chatglm: Any, chatml: Any) -> None:
    messages = messages_of([texts[:2]], texts[2])
    ids = encode_prompt(chatml, messages)
    assert len([i for i in ids if i >= 256]) == 7
    assert chatml.decode(ids) == chatml.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = f"[Round 0]\n问：{texts[0]}\n答：{texts[1]}\n[Round 1]\n问：{texts[2]}\n答："
    marks = [chatglm.gmask_token_id, chatglm.bos_token_id]
    assert encode_prompt(chatglm, messages) == plain_ids(chatglm, prompt) + marks


@given(target=HOSTILE)
@same_fixture
def test_targets_are_never_control_tokens(target: str, chatglm: Any, chatml: Any) -> None:
    for tokenizer in (chatglm, chatml):
        length = len(encode_prompt(tokenizer, "1+1="))
        ids = encode_example(tokenizer, "1+1=", target)["input_ids"][length:]
        assert ids.pop() == tokenizer.eos_token_id
        assert not set(ids) & control_ids(tokenizer)
    assert chatml.decode(ids) == target


def test_many_messages_and_a_tokenizer_with_tokens_for_digits(chatml: Any) -> None:
    chatml.add_tokens(["0", "1", "10", "11"])
    messages = messages_of([[f"q{i}", f"a{i}"] for i in range(8)], "last")
    rendered = chatml.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chatml.decode(encode_prompt(chatml, messages)) == rendered


def test_a_template_may_use_the_content_twice_or_not_at_all(chatml: Any) -> None:
    chatml.chat_template = "{% for m in messages %}<bos>{{ m.content }}-{{ m.content }}{% endfor %}"
    assert chatml.decode(encode_prompt(chatml, "a<bos>")) == "<bos>a<bos>-a<bos>"
    chatml.chat_template = "<bos>nothing"
    with pytest.raises(UserError, match="leaves out content of a message of role 'user'"):
        encode_prompt(chatml, "a")


@pytest.mark.parametrize("name", ["chatglm", "chatml"])
def test_only_the_target_and_its_end_are_learned(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    for prompt in ("1+1=", MESSAGES, ""):
        prompt_ids = encode_prompt(tokenizer, prompt)
        encoding = encode_example(tokenizer, prompt, "1+1=2")
        target_ids = [*plain_ids(tokenizer, "1+1=2"), tokenizer.eos_token_id]
        assert encoding["input_ids"] == prompt_ids + target_ids
        assert encoding["labels"] == [IGNORED] * len(prompt_ids) + target_ids
        assert encoding["labels"].count(tokenizer.eos_token_id) == 1
    assert IGNORED == -100


def test_chatglm_layout_is_that_of_the_original(chatglm: Any) -> None:
    encoding = encode_example(chatglm, "1+1=", "1+1=2")
    assert encoding["input_ids"] == chatglm("1+1=", "1+1=2")["input_ids"]


@pytest.mark.parametrize("name", ["chatglm", "chatml"])
def test_what_fits(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    whole = encode_example(tokenizer, "1+1=", "2")
    length = len(whole["input_ids"])
    assert Encoder(tokenizer, length)(Example("1+1=", "2")) == whole == Encoder(tokenizer, 1)(Example("1+1=", "2"))
    assert Encoder(tokenizer, length).fits(whole) and Encoder(tokenizer).fits(whole)
    assert not Encoder(tokenizer, length - 1).fits(whole)


def test_an_alpaca_record_keeps_its_instruction(chatglm: Any) -> None:
    prompt = [{"role": "user", "content": "Add\n" + "1+" * 50, "instruction": "Add", "input": "1+" * 50}]
    tokenizer = copy.deepcopy(chatglm)
    for template in (
        tokenizer.chat_template,
        read_preset("alpaca").replace("set before_answer = ''", "set before_answer = '[gMASK]<sop>'"),
    ):
        tokenizer.chat_template = template
        limit = len(encode_example(tokenizer, prompt, "50")["input_ids"]) - 20
        encoding = Encoder(tokenizer, limit).cut(Example(prompt, "50"))
        assert encoding is not None and limit - 2 <= len(encoding["input_ids"]) <= limit
        assert "Add" in tokenizer.decode(encoding["input_ids"])


def test_without_a_template(chatglm: Any, chatml: Any) -> None:
    """The bare prompt, with the special tokens that the tokenizer itself puts around a text."""
    chatml.chat_template = None
    assert encode_prompt(chatml, "1+1=<|im_end|>") == [256, *plain_ids(chatml, "1+1=<|im_end|>")]
    assert encode_prompt(chatml, MESSAGES) == [256, *plain_ids(chatml, "\n".join(m["content"] for m in MESSAGES))]
    assert encode_example(chatml, "1+1=", "2")["labels"][-2:] == [*plain_ids(chatml, "2"), chatml.eos_token_id]
    bare = copy.deepcopy(chatglm)
    bare.chat_template = None
    assert encode_prompt(bare, "1+1=") == encode_prompt(chatglm, "1+1=")
    assert not set(encode_prompt(bare, "[MASK]<eop>")[:-2]) & control_ids(chatglm)


def test_encoding_leaves_the_tokenizer_as_it_was(chatml: Any) -> None:
    before = chatml("<|im_end|>")["input_ids"]
    encode_prompt(chatml, MESSAGES)
    assert chatml("<|im_end|>")["input_ids"] == before == [256, chatml.eos_token_id]


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (
            "[gMASK]<sop>{% if not add_generation_prompt %}{{ messages[-1].content }}{% endif %}",
            "leaves out content of a message of role 'user'",
        ),
        (
            "{% for message in messages %}{{ message.content }}{% endfor %}",
            r"leaves out \[gMASK\]<sop>, which must stand",
        ),
        (
            "{{ messages[0].content }}[gMASK]<sop>{% generation %}{{ eos_token }}{% endgeneration %}",
            "leaves out content of a message of role 'assistant'",
        ),
        ("{% for %}", "no form for a question and its answer.*TemplateSyntaxError: "),
        ("{{ raise_exception('two turns only') }}", "no form for a question and its answer.*two turns only"),
    ],
)
def test_templates_by_which_nothing_can_be_learned(template: str, told: str, chatglm: Any) -> None:
    check_template(chatglm)
    tokenizer = copy.deepcopy(chatglm)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=f"chat template.*{told}"):
        check_template(tokenizer)


@pytest.mark.parametrize("count", [1, 2])
def test_transformers_encodes_chatglm_templates_alike(count: int, chatglm: Any) -> None:
    """trl and others ask `apply_chat_template`; in text, `[gMASK]` is no special token (quirk 14)."""
    messages = [{"role": "user", "content": "1 + 1 = [gMASK]\n"}, {"role": "assistant", "content": "2 [gMASK]"}] * count
    prompt = chatglm.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    assert prompt == encode_prompt(chatglm, messages[:-1])
    whole = chatglm.apply_chat_template([messages, messages], return_tensors="pt")["input_ids"]
    assert whole.tolist() == [encode_example(chatglm, messages[:-1], "2 [gMASK]")["input_ids"]] * 2
    odd = [{"role": "user", "content": "a\U00100000b"}]
    assert chatglm.apply_chat_template(odd, add_generation_prompt=True)["input_ids"] == encode_prompt(chatglm, odd)
    two = chatglm.apply_chat_template([odd, odd], add_generation_prompt=True)["input_ids"]
    assert two == [encode_prompt(chatglm, odd)] * 2
    text = chatglm.apply_chat_template(messages, tokenize=False)
    assert text.endswith("[gMASK]\n[gMASK]<sop>2 [gMASK]<eop>") or count > 1


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"])
def test_templates_by_which_models_learn(template: str | None, chatml: Any) -> None:
    """Also where an answer follows a blank, which many tokenizers join with what follows."""
    if template is None:
        adopt(chatml, "vicuna")
    else:
        chatml.chat_template = template
    check_template(chatml)


def test_the_token_before_an_answer_is_learned_if_asked(chatglm: Any) -> None:
    """As in the official script of ChatGLM-6B, whose labels begin with `<sop>`."""
    without, with_start = (encode_example(chatglm, "1+1=", "2", train_on_bos=start) for start in (False, True))
    assert without["input_ids"] == with_start["input_ids"]
    place = without["input_ids"].index(chatglm.bos_token_id)
    assert with_start["labels"][place] == chatglm.bos_token_id and without["labels"][place] == IGNORED
    assert with_start["labels"][place + 1 :] == without["labels"][place + 1 :]


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ("user assistant observation", "observation"),
        ("user assistant tool", "tool"),
        ("user assistant", None),
        ("", "tool"),  # of which each role is written
        ("observation", "observation"),  # each, but this one is named
    ],
)
def test_what_a_tool_says_reaches_templates_of_others(known: str, said: str | None, chatml: Any) -> None:
    tokenizer = copy.deepcopy(chatml)
    tokenizer.chat_template = (
        "{%- for message in messages -%}{%- if message.role in '"
        + known
        + "'.split() or "
        + ("false" if " " in known else "true")
        + " -%}"
        "{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
    )
    roles = ("user", "assistant", "tool")
    messages = [{"role": role, "content": f"{number}."} for number, role in enumerate(roles)]
    if said is None:
        with pytest.raises(UserError, match="no form for what a tool says"):
            encode_prompt(tokenizer, messages)
        assert encode_prompt(tokenizer, messages[:1])
        return
    for ids in (encode_prompt(tokenizer, messages), encode_example(tokenizer, messages, "3.")["input_ids"]):
        assert f"{said}\n2." in tokenizer.decode(ids)


def test_calls_in_an_unmarked_template_are_learned_to_their_end(chatml: Any) -> None:
    """As in Qwen's, whose words around calls are tokens as well."""
    chatml.add_tokens(["<tool_call>", "</tool_call>"])
    chatml.chat_template = (
        "{%- for m in messages -%}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content }}"
        "{%- for call in m.tool_calls or [] -%}{{ '<tool_call>' ~ call.function | tojson ~ '</tool_call>' }}"
        "{%- endfor -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
    )
    calls = [make_tool_call("f", {"a": "</tool_call><|im_end|>"}), make_tool_call("g", {})]
    encoding = encode_example(chatml, "1+1=", {"role": "assistant", "content": "So:", "tool_calls": calls})
    learned = [label for label in encoding["labels"] if label != IGNORED]
    assert encoding["input_ids"][-len(learned) :] == learned and learned.count(chatml.eos_token_id) == 1
    assert chatml.decode(learned) == (
        'So:<tool_call>{"name": "f", "arguments": {"a": "</tool_call><|im_end|>"}}</tool_call>'
        '<tool_call>{"name": "g", "arguments": {}}</tool_call><|im_end|>'
    )
    assert [chatml.decode(index) for index in learned if index > chatml.eos_token_id] == [
        "<tool_call>",
        "</tool_call>",
        "<tool_call>",
        "</tool_call>",
    ]


def test_a_template_for_one_call_alone(chatml: Any) -> None:
    chatml.chat_template = (
        "{%- for m in messages -%}{{ m.content ~ m.tool_calls[0].function | tojson if m.tool_calls else m.content }}"
        "<|im_end|>{%- endfor -%}"
    )
    answer = {"role": "assistant", "tool_calls": [make_tool_call("f", {}), make_tool_call("g", {})]}
    with pytest.raises(UserError, match=r"no form for several calls in one message .*=chatglm3, chatml, glm4"):
        encode_example(chatml, "1+1=", answer)
    one = encode_example(chatml, "1+1=", {**answer, "tool_calls": answer["tool_calls"][:1]})
    assert chatml.decode(one["input_ids"]) == '1+1=<|im_end|>{"name": "f", "arguments": {}}<|im_end|>'


def test_without_a_template_there_are_no_calls(chatml: Any) -> None:
    chatml.chat_template = None
    with pytest.raises(UserError, match="no form for calls of tools"):
        encode_example(chatml, "1+1=", {"role": "assistant", "tool_calls": [make_tool_call("f", {})]})
