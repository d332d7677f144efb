"""Batches, streams and single answers are one and the same text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families_of_today import gemma3
from transformers import GenerationConfig

import glmtune
from glmtune.config import GenerationSettings
from glmtune.data.encoding import encode_prompt
from glmtune.inference.batch import Batch
from glmtune.inference.completion import Completion, Delta, Request
from glmtune.inference.engine import Engine
from glmtune.inference.rows import Row
from glmtune.methods.ptuning_v2 import PTuningV2, PTuningV2Settings
from glmtune.models.slots import SlotCache
from glmtune.runtime import UserError

PROMPTS = ["1+2=", "12.5+7", "3", "99.25-1.75*3=", "问:1+1", "100/7=", "5*5"]
GREEDY = GenerationSettings(max_new_tokens=12, batch_size=3)
SAMPLED = GenerationSettings(max_new_tokens=12, batch_size=3, do_sample=True, temperature=5.0, top_p=1.0)

Loaded = tuple[Any, Any]


def answers(loaded: Loaded, prompts: list[Any], settings: GenerationSettings = GREEDY) -> list[str]:
    return [completion.text for completion in Engine(*loaded).answer(prompts, settings)]


def request(loaded: Loaded, prompt: Any, settings: GenerationSettings = GREEDY, **more: Any) -> Request:
    return Request(encode_prompt(loaded[1], prompt), settings, **more)


def heard(stream: Any) -> tuple[list[Delta], Completion | None]:
    """All pieces of a stream, and what it returns."""
    deltas = []
    while True:
        try:
            deltas.append(next(stream))
        except StopIteration as end:
            return deltas, end.value


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
    alone = [answers((model, tokenizer), [prompt], settings) for prompt in prompts]
    sizes = []
    decode = Batch.decode

    def note(batch: Batch) -> None:
        decode(batch)
        sizes.append((len(batch.rows), len(batch.running)))

    monkeypatch.setattr(Batch, "decode", note)
    assert [[text] for text in answers((model, tokenizer), prompts, settings)] == alone
    assert max(sizes)[0] > 8 and all(3 * rows <= 4 * running for rows, running in sizes)
    assert len({len(text) for [text] in alone}) > 3


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_batch_size_changes_nothing(tiny: Loaded, batch_size: int) -> None:
    assert answers(tiny, PROMPTS, GREEDY.model_copy(update={"batch_size": batch_size})) == answers(tiny, PROMPTS)


def test_no_prompts_no_answers(tiny: Loaded) -> None:
    assert answers(tiny, []) == []


@pytest.mark.parametrize("limit", [1, 5])
def test_no_more_tokens_than_allowed(tiny: Loaded, limit: int) -> None:
    _, tokenizer = tiny
    never = GREEDY.model_copy(update={"max_new_tokens": limit})
    for answer in answers(tiny, PROMPTS, never):
        assert len(tokenizer(answer, add_special_tokens=False)["input_ids"]) <= limit + 1  # and a word's blank


def test_sampling_follows_the_seed(tiny: Loaded) -> None:
    def sample(seed: int) -> list[str]:
        return [completion.text for completion in Engine(*tiny).answer(PROMPTS, SAMPLED, seed)]

    assert sample(1) == sample(1)
    assert sample(1) != sample(1000)
    assert sample(1) != answers(tiny, PROMPTS)


def test_a_seed_holds_in_any_company(tiny: Loaded) -> None:
    engine = Engine(*tiny)
    seeded = [request(tiny, prompt, SAMPLED, seed=place) for place, prompt in enumerate(PROMPTS)]
    torch.manual_seed(1)
    found = dict(engine.complete(seeded))
    torch.manual_seed(2)
    assert [dict(engine.complete([one]))[0] for one in seeded] == [found[index] for index in range(len(seeded))]
    assert found[0] != dict(engine.complete([replace(seeded[0], seed=99)]))[0]


def test_a_mixed_batch_is_one_by_one(tiny: Loaded, check_mixture: Callable[..., None]) -> None:
    check_mixture(Engine(*tiny))


def test_a_mixed_batch_behind_a_prefix(tiny_checkpoint: Path, check_mixture: Callable[..., None]) -> None:
    model, tokenizer = glmtune.load(tiny_checkpoint)
    prefixed = PTuningV2(PTuningV2Settings(name="ptuning_v2", num_virtual_tokens=5)).apply(model).eval()
    check_mixture(Engine(prefixed, tokenizer))


def test_what_a_completion_says(tiny: Loaded, says: Callable[..., None]) -> None:
    """The token that ends an answer is one of its tokens; each has its log-probability."""
    eos = tiny[1].eos_token_id
    digits = tiny[1].convert_tokens_to_ids(["1", "2", "3"])
    asked = request(tiny, "0", GREEDY.model_copy(update={"max_new_tokens": 3}), logprobs=True)
    for script, text, ids, reason in (
        (("1", "<eop>"), "1", [digits[0], eos], "stop"),
        (("1", "2", "<eop>"), "12", [*digits[:2], eos], "stop"),
        (("1", "2", "3", "<eop>"), "123", digits, "length"),
    ):
        says(*script)
        [(_, found)] = Engine(*tiny).complete([asked])
        assert (found.text, found.token_ids, found.finish_reason) == (text, ids, reason)
        assert found.prompt_tokens == len(asked.input_ids)
        assert found.logprobs is not None and len(found.logprobs) == len(ids) and max(found.logprobs) < 0


def test_log_probabilities_are_those_of_a_forward_pass(tiny: Loaded) -> None:
    asked = request(tiny, "12.5+7", SAMPLED, seed=1, logprobs=True)
    [(_, found)] = Engine(*tiny).complete([asked])
    ids = torch.tensor([[*asked.input_ids, *found.token_ids]])
    with torch.no_grad():
        logits = tiny[0](input_ids=ids).logits[0, len(asked.input_ids) - 1 : -1].log_softmax(-1)
    expected = logits.gather(1, torch.tensor(found.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found.logprobs), expected, atol=1e-4, rtol=1e-4)


def test_texts_end_answers(tiny: Loaded, says: Callable[..., None]) -> None:
    says("1", "2", "3", "4", "<eop>")
    [(_, found)] = Engine(*tiny).complete([request(tiny, "0", stop=["34", "9"])])
    assert (found.text, found.finish_reason, len(found.token_ids)) == ("12", "stop", 4)
    says("1", "2", "3", "4", "<eop>")
    deltas, streamed = heard(Engine(*tiny).stream(request(tiny, "0", stop=["34", "9"])))
    assert streamed == found and "".join(delta.text for delta in deltas) == "12"


def test_a_row_that_is_cancelled_leaves_its_batch(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of its answer, from outside; the others go on as if nothing had been."""
    asked = [request(tiny, prompt, GREEDY.model_copy(update={"batch_size": 9})) for prompt in PROMPTS]
    expected = dict(Engine(*tiny).complete(asked))
    decode, steps = Batch.decode, iter(range(100))

    def cancel_later(batch: Batch) -> None:
        if next(steps) == 2:
            asked[3].cancellation.set()
        decode(batch)

    monkeypatch.setattr(Batch, "decode", cancel_later)
    found = dict(Engine(*tiny).complete(asked))
    assert found == {index: expected[index] for index in expected if index != 3}
    assert heard(Engine(*tiny).stream(asked[3])) == ([], None)


def test_a_checkpoints_own_settings_do_not_leak_in(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny[0].get_base_model()
    expected = answers(tiny, PROMPTS)
    first = tiny[1](expected[0], add_special_tokens=False)["input_ids"]
    own = GenerationConfig(
        eos_token_id=tiny[1].eos_token_id,
        do_sample=True,
        temperature=9.0,
        num_beams=2,
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        min_new_tokens=12,
        begin_suppress_tokens=first,
        suppress_tokens=first,
        exponential_decay_length_penalty=(0, 9.0),
    )
    monkeypatch.setattr(base, "generation_config", own)
    assert answers(tiny, PROMPTS) == expected
    assert base.generation_config is own


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("logprobs", [True, False])
def test_a_stream_is_the_answer(tiny: Loaded, prompt: str, logprobs: bool) -> None:
    asked = request(tiny, prompt, logprobs=logprobs)
    [(_, expected)] = Engine(*tiny).complete([asked])
    deltas, found = heard(Engine(*tiny).stream(asked))
    assert found == expected and found is not None
    assert "".join(delta.text for delta in deltas) == expected.text
    assert [token for delta in deltas for token in delta.token_ids] == found.token_ids
    if logprobs:
        assert [number for delta in deltas for number in delta.logprobs or ()] == found.logprobs
    else:
        assert {delta.logprobs for delta in deltas} == {None}


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, "1"), (2, "12"), (3, "123"), (4, "123")], ids=["one", "cut", "all", "room"]
)
def test_the_last_token_arrives(tiny: Loaded, says: Callable[..., None], limit: int, expected: str) -> None:
    """The original's stream lost the token at the limit (golden quirk 10)."""
    settings = GREEDY.model_copy(update={"max_new_tokens": limit})
    says("1", "2", "3", "<eop>")
    assert "".join(delta.text for delta in Engine(*tiny).stream(request(tiny, "0", settings))) == expected
    says("1", "2", "3", "<eop>")
    assert answers(tiny, ["0", "00"], settings) == [expected, expected]


def test_nothing_is_decoded_after_the_end(tiny: Loaded, says: Callable[..., None]) -> None:
    says("1", "<eop>", "2")
    assert answers(tiny, ["0"]) == ["1"]
    says("<eop>", "2")
    assert [delta.text for delta in Engine(*tiny).stream(request(tiny, "0"))] == [""]


def test_who_stops_listening_stops_the_model(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    decode = Batch.decode
    monkeypatch.setattr(Batch, "decode", lambda batch: steps.append(batch) or decode(batch))
    pieces = Engine(*tiny).stream(request(tiny, "0", GREEDY.model_copy(update={"max_new_tokens": 100})))
    next(pieces)
    next(pieces)
    pieces.close()
    assert len(steps) == 1


@pytest.mark.parametrize("ask", [Engine.complete, lambda engine, requests: engine.stream(requests[-1])])
def test_a_prompt_too_long_is_refused_before_any_work(
    tiny: Loaded, ask: Callable[..., Iterator[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batch, "step", None)
    fits, too_long = request(tiny, "1" * 113), request(tiny, "1" * 114)  # and a blank, [gMASK] and <sop>
    with pytest.raises(UserError, match=r"rompt .*has 117 tokens.*max_new_tokens=12.*the 128 that"):
        list(ask(Engine(*tiny), [fits, too_long]))
    with pytest.raises(UserError, match="the 100 that"):
        list(ask(Engine(*tiny, limit=100), [fits]))


def test_a_prompt_that_just_fits_is_answered(tiny: Loaded) -> None:
    assert len(answers(tiny, ["1" * 113])) == 1


def test_messages_are_a_prompt(tiny: Loaded) -> None:
    said = [{"role": "user", "content": "1+2="}]
    assert answers(tiny, [said]) == answers(tiny, ["1+2="])


class Panic(BaseException):
    """What libraries in Rust raise, which is no Exception."""


@pytest.mark.parametrize("error", [Panic, ValueError])
def test_an_error_in_a_stream_is_told(
    tiny: Loaded, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(*_: Any) -> None:
        raise error("gave up")

    monkeypatch.setattr(Batch, "decode", fail)
    with pytest.raises(error, match="gave up"):
        list(Engine(*tiny).stream(request(tiny, "0")))


def test_who_asks_may_ask_on(tiny: Loaded) -> None:
    """What is appended to the requests while they are answered is answered with them."""
    asked = [request(tiny, prompt) for prompt in PROMPTS[:2]]
    found = {}
    for index, completion in Engine(*tiny).complete(asked):
        found[index] = completion.text
        if len(asked) < len(PROMPTS):
            asked.append(request(tiny, PROMPTS[len(asked)]))
    assert [found[index] for index in range(len(PROMPTS))] == answers(tiny, PROMPTS)


def test_penalties_and_the_likeliest_tokens_are_of_the_row_alone(tiny: Loaded) -> None:
    """A row by penalties, one with log-probabilities, and a plain one, together and alone."""
    changes = ({"repetition_penalty": 3.0}, {"presence_penalty": 2.0, "frequency_penalty": 2.0}, {})
    asked = [request(tiny, "12.5+7", GREEDY.model_copy(update=change)) for change in changes]
    asked[2] = replace(asked[2], logprobs=True, top_logprobs=3)
    together = dict(Engine(*tiny).complete(asked))
    for index, one in enumerate(asked):
        [(_, alone)] = Engine(*tiny).complete([one])
        assert alone.token_ids == together[index].token_ids
    assert len({tuple(found.token_ids) for found in together.values()}) > 1
    told = together[2]
    assert told.top_logprobs is not None and told.logprobs is not None
    for token_id, number, likeliest in zip(told.token_ids, told.logprobs, told.top_logprobs, strict=True):
        assert len(likeliest) == 3 and likeliest[0] == (token_id, number)
    assert together[0].top_logprobs is None


@pytest.mark.parametrize("prefix", [False, True])
def test_rows_come_and_go_in_any_order(
    prefix: bool, tiny_checkpoint: Path, any_order: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = glmtune.load(tiny_checkpoint)
    if prefix:
        model = PTuningV2(PTuningV2Settings(name="ptuning_v2", num_virtual_tokens=5)).apply(model).eval()
    ends = [*range(10, model.config.vocab_size, 17), tokenizer.eos_token_id]
    monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
    any_order(Engine(model, tokenizer))


def test_a_window_that_moves_over_a_prefix(tmp_path: Path) -> None:
    """Gemma 3's: each row is answered as alone, whoever is asked beside it."""
    gemma3(tmp_path)
    model, tokenizer = glmtune.load(tmp_path)
    torch.manual_seed(1)
    prefix = PTuningV2Settings(name="ptuning_v2", num_virtual_tokens=3, init="normal")
    prefixed = PTuningV2(prefix).apply(model).eval()
    for weight in prefixed.parameters():
        if weight.requires_grad:
            weight.data *= 5
    engine, prompts = Engine(prefixed, tokenizer), [[2, 300, 301], [2, 300, 301, 302], [2, *range(300, 340)]]
    settings = GenerationSettings(max_new_tokens=12, batch_size=8)
    requests = [Request(ids, settings, logprobs=True) for ids in prompts]
    together = dict(engine.complete(requests))
    for index, one in enumerate(requests):
        [(_, alone)] = engine.complete([one])
        assert together[index].token_ids == alone.token_ids
        assert together[index].logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def started(engine: Engine, slots: int, prompts: list[str], **settings: Any) -> tuple[Batch, list[Row]]:
    """A batch with rows that wait."""
    batch = engine.open(slots)
    asked = GREEDY.model_copy(update=settings)
    rows = [Row(Request(encode_prompt(engine.tokenizer, prompt), asked), engine.reader) for prompt in prompts]
    for row in rows:
        batch.add(row)
    return batch, rows


def test_rows_whose_slots_cannot_be_had_have_the_error(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have their first token already, and the cache may be half another: nobody goes on with it."""
    reserve, engine = SlotCache.reserve, Engine(*tiny)
    batch, [going] = started(engine, 8, PROMPTS[:1])
    batch.step()

    def fail(cache: SlotCache, count: int, longest: int) -> None:
        if count == 3:
            reserve(cache, count, longest)
            raise torch.OutOfMemoryError("no memory")
        reserve(cache, count, longest)

    monkeypatch.setattr(SlotCache, "reserve", fail)
    joining = started(engine, 8, PROMPTS[1:4])[1]
    for row in joining:
        batch.add(row)
    assert {*batch.step()} == {going, *joining} and batch.is_idle
    assert all(isinstance(row.error, torch.OutOfMemoryError) for row in (going, *joining))
    assert [len(row.token_ids) for row in joining] == [1, 1, 1]
    [later] = started(engine, 8, PROMPTS[1:2])[1]
    batch.add(later)
    while not batch.is_idle:
        batch.step()
    assert later.complete() == next(engine.complete([later.request]))[1]


def test_a_flood_of_short_answers_lets_others_go_on(tiny: Loaded) -> None:
    """A token for those who go on, and prompts for some slots, in each step."""
    engine = Engine(*tiny)
    batch, [going] = started(engine, 4, PROMPTS[:1], max_new_tokens=20)
    batch.step()
    short = started(engine, 4, ["1+2="] * 50, max_new_tokens=1)[1]
    for row in short:
        batch.add(row)
    for tokens in range(2, 12):
        rows = batch.step()
        assert len(going.token_ids) == tokens and len(rows) <= 4
    while not batch.is_idle:
        batch.step()
    assert all(row.has_ended for row in (going, *short))
    assert going.complete() == next(engine.complete([going.request]))[1]
