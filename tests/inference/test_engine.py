"""Batches, streams and single answers are one and the same text."""

import copy
import threading
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

import glmtune
from glmtune.config import GenerationSettings
from glmtune.data.encoding import encode_prompt
from glmtune.inference import engine
from glmtune.inference.engine import (
    MOST_ROUNDS,
    complete,
    converse,
    encode_prompts,
    generation_config,
    stream,
    text_of,
)
from glmtune.methods.ptuning_v2 import PTuningV2, PTuningV2Settings
from glmtune.runtime import UserError
from glmtune.tasks import Reply
from glmtune.tasks.arithmetic import question_in

PROMPTS = ["1+2=", "12.5+7", "3", "99.25-1.75*3=", "问:1+1", "100/7=", "5*5"]
GREEDY = GenerationSettings(max_new_tokens=12, batch_size=3)
SAMPLED = GenerationSettings(max_new_tokens=12, batch_size=3, do_sample=True, temperature=5.0, top_p=1.0)

Loaded = tuple[Any, Any]


def answers(loaded: Loaded, prompts: list[Any], settings: GenerationSettings = GREEDY) -> list[str]:
    """Answers in the order of the prompts."""
    found = dict(complete(*loaded, prompts, settings))
    assert sorted(found) == list(range(len(prompts)))
    return [found[index] for index in range(len(prompts))]


@pytest.fixture
def says(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`says("7", "7", "<eop>")`: the next tokens of the model, whatever it is asked; the last one for ever."""
    model, tokenizer = tiny
    head = model.get_base_model().lm_head
    forward, vocabulary = head.forward, model.config.vocab_size

    def install(*tokens: str) -> None:
        script = chain(
            tokenizer.convert_tokens_to_ids(list(tokens)), repeat(tokenizer.convert_tokens_to_ids(tokens[-1]))
        )

        def scripted(states: Tensor) -> Tensor:
            return forward(states) * 0 + one_hot(torch.tensor(next(script)), vocabulary)

        monkeypatch.setattr(head, "forward", scripted)

    return install


def test_batched_is_single_is_by_hand(tiny: Loaded) -> None:
    model, tokenizer = tiny
    batched = answers(tiny, PROMPTS)
    assert len(set(batched)) > 1
    for prompt, answer in zip(PROMPTS, batched, strict=True):
        assert answers(tiny, [prompt]) == [answer]
        ids = torch.tensor([encode_prompt(tokenizer, prompt)])
        by_hand = model.generate(input_ids=ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
        assert tokenizer.decode(by_hand, skip_special_tokens=True) == answer


@pytest.mark.parametrize("prefix", [False, True])
def test_rows_that_leave_early_change_nothing(
    prefix: bool, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many stop tokens, answers end at many lengths."""
    model, tokenizer = glmtune.load(tiny_checkpoint)
    if prefix:
        model = PTuningV2(PTuningV2Settings(name="ptuning_v2", num_virtual_tokens=5)).apply(model).eval()
    ends = [*range(10, model.config.vocab_size, 17), tokenizer.eos_token_id]
    monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
    prompts = [f"{number}+{number * number}" for number in range(16)]
    settings = GenerationSettings(max_new_tokens=40, batch_size=16)
    rounds = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **named: rounds.append(len(named["input_ids"])) or generate(**named))
    alone = [answers((model, tokenizer), [prompt], settings) for prompt in prompts]
    rounds.clear()
    for few in (100, 1):
        monkeypatch.setattr(engine, "FEW_ROWS", few)
        assert [[text] for text in answers((model, tokenizer), prompts, settings)] == alone
    assert rounds[:2] == [16, 16] and rounds[2] <= 8
    assert len({len(text) for [text] in alone}) > 3


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_batch_size_changes_nothing(tiny: Loaded, batch_size: int) -> None:
    assert answers(tiny, PROMPTS, GREEDY.model_copy(update={"batch_size": batch_size})) == answers(tiny, PROMPTS)


def test_longest_first_in_batches(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[list[int]] = []

    def echo(model: Any, tokenizer: Any, prompts: list[list[int]], settings: GenerationSettings) -> list[str]:
        sizes.append([len(prompt) for prompt in prompts])
        return [text_of(tokenizer, prompt[:-2], [tokenizer.eos_token_id]) for prompt in prompts]

    monkeypatch.setattr(engine, "complete_batch", echo)
    assert answers(tiny, PROMPTS) == PROMPTS
    assert [len(batch) for batch in sizes] == [3, 3, 1]
    lengths = [length for batch in sizes for length in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_no_prompts_no_answers(tiny: Loaded) -> None:
    assert answers(tiny, []) == []


@pytest.mark.parametrize("limit", [1, 5])
def test_no_more_tokens_than_allowed(tiny: Loaded, limit: int) -> None:
    _, tokenizer = tiny
    never = GREEDY.model_copy(update={"max_new_tokens": limit})
    for answer in answers(tiny, PROMPTS, never):
        assert len(tokenizer(answer, add_special_tokens=False)["input_ids"]) <= limit + 1  # and a word's blank


def test_text_ends_at_the_end_token(tiny: Loaded) -> None:
    _, tokenizer = tiny
    ids = tokenizer("42", add_special_tokens=False)["input_ids"]
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    for tail in ([], [eos], [eos, pad, pad], [eos, *ids], [eos, eos]):
        assert text_of(tokenizer, [*ids, *tail], [eos]) == "42"
    assert text_of(tokenizer, [eos, *ids], [eos]) == text_of(tokenizer, [], [eos]) == ""


def test_sampling_follows_the_seed(tiny: Loaded) -> None:
    def sample(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return answers(tiny, PROMPTS, SAMPLED)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(1) != answers(tiny, PROMPTS)


def test_settings_reach_the_library(tiny: Loaded) -> None:
    sampled, greedy = (generation_config(tiny[1], settings, [tiny[1].eos_token_id]) for settings in (SAMPLED, GREEDY))
    assert (sampled.do_sample, sampled.temperature, sampled.top_p, sampled.top_k) == (True, 5.0, 1.0, 0)
    assert not greedy.do_sample
    assert (greedy.max_new_tokens, greedy.eos_token_id) == (12, [tiny[1].eos_token_id])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_stream_is_the_answer(tiny: Loaded, prompt: str) -> None:
    pieces = list(stream(*tiny, prompt, GREEDY))
    assert "".join(pieces) == answers(tiny, [prompt])[0]


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, "1"), (2, "12"), (3, "123"), (4, "123")], ids=["one", "cut", "all", "room"]
)
def test_the_last_token_arrives(tiny: Loaded, says: Callable[..., None], limit: int, expected: str) -> None:
    """The original's stream lost the token at the limit (golden quirk 10)."""
    settings = GREEDY.model_copy(update={"max_new_tokens": limit})
    says("1", "2", "3", "<eop>")
    assert "".join(stream(*tiny, "0", settings)) == expected
    says("1", "2", "3", "<eop>")
    assert answers(tiny, ["0", "00"], settings) == [expected, expected]


def test_nothing_is_decoded_after_the_end(tiny: Loaded, says: Callable[..., None]) -> None:
    says("1", "<eop>", "2")
    assert answers(tiny, ["0"]) == ["1"]
    says("<eop>", "2")
    assert list(filter(None, stream(*tiny, "0", GREEDY))) == []


def test_who_stops_listening_stops_the_model(tiny: Loaded, says: Callable[..., None]) -> None:
    says("1")
    before = threading.active_count()
    pieces = stream(*tiny, "0", GREEDY.model_copy(update={"max_new_tokens": 100}))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_an_error_in_the_stream_is_told(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**kwargs: Any) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(tiny[0], "generate", fail)
    with pytest.raises(RuntimeError, match="no such luck"):
        list(stream(*tiny, "0", GREEDY))


@pytest.mark.parametrize("ask", [complete, lambda m, t, prompts, s: stream(m, t, prompts[-1], s)])
def test_a_prompt_too_long_is_refused_before_any_work(
    tiny: Loaded, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny[0], "generate", None)
    fits, too_long = "1" * 113, "1" * 114  # and a blank, [gMASK] and <sop>
    assert len(encode_prompt(tiny[1], fits)) == 116
    with pytest.raises(UserError, match=r"Prompt \d has 117 tokens.*max_new_tokens=12.*the 128 that") as error:
        list(ask(*tiny, [fits, too_long], GREEDY))
    assert "Shorten the prompt or lower that setting" in str(error.value)


def test_a_prompt_that_just_fits_is_answered(tiny: Loaded) -> None:
    assert len(answers(tiny, ["1" * 113])) == 1


def test_messages_that_the_template_refuses_are_told(tiny: Loaded) -> None:
    tokenizer = copy.deepcopy(tiny[1])
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="q, line 1: the model's chat template does not take it: roles must alternate"):
        encode_prompts(tokenizer, [[{"role": "user", "content": "1"}]], None, 8, "q, line")


def test_messages_are_a_prompt(tiny: Loaded) -> None:
    said = [{"role": "user", "content": "1+2="}]
    assert answers(tiny, [said]) == answers(tiny, ["1+2="])


def test_tools_reply_until_there_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt goes on by itself; what was said and replied is asked again, and nobody calls for ever."""
    asked: list[list[Any]] = []

    def says_again(model: Any, tokenizer: Any, prompts: list[Any], settings: Any) -> Any:
        asked.append(prompts)
        for index, prompt in reversed(list(enumerate(prompts))):
            question = prompt if isinstance(prompt, str) else prompt[0]["content"]
            rounds = 0 if isinstance(prompt, str) else len(prompt) // 2
            yield index, "done" if rounds == int(question) else f"call {rounds}"

    def reply(prompt: Any, text: str) -> Reply | None:
        if text == "done":
            return None
        return Reply("no", ends=True) if question_in(prompt) == "2" and text == "call 1" else Reply(f"result of {text}")

    monkeypatch.setattr(engine, "complete", says_again)
    monkeypatch.setattr(engine, "has_room", lambda model, tokenizer, messages, settings: len(messages) < 9)
    found = dict(converse(None, None, ["1", "0", "9", "2"], GREEDY, reply))  # type: ignore[arg-type]
    assert found == {0: "call 0\ndone", 1: "done", 2: "call 0\ncall 1\ncall 2\ncall 3", 3: "call 0\ncall 1\nno"}
    assert [len(prompts) for prompts in asked] == [4, 3, 1, 1] and len(asked) == MOST_ROUNDS
    assert asked[1][0] == [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "call 0"},
        {"role": "observation", "content": "result of call 0"},
    ]


def test_without_tools_it_is_complete(tiny: Loaded) -> None:
    found = dict(converse(*tiny, PROMPTS, GREEDY, lambda prompt, text: None))
    assert [found[index] for index in range(len(PROMPTS))] == answers(tiny, PROMPTS)
