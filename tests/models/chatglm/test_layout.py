"""The layout of prompts moves with the rows of their cache, whatever is done to it, and what is learned is not seen."""

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache

from glmtune.models.chatglm.modeling_chatglm import ChatGLMForCausalLM
from glmtune.models.growing_cache import make_room

Model = ChatGLMForCausalLM
Case = dict[str, Tensor]
ATOL = 2e-4


def reorder(cache: Cache, rows: Tensor) -> tuple[Cache, Tensor]:
    order = torch.arange(len(rows) - 1, -1, -1)
    cache.reorder_cache(order)
    return cache, rows[order]


def repeat(cache: Cache, rows: Tensor) -> tuple[Cache, Tensor]:
    cache.batch_repeat_interleave(2)
    return cache, rows.repeat_interleave(2)


def select(cache: Cache, rows: Tensor) -> tuple[Cache, Tensor]:
    indices = torch.tensor([len(rows) - 1, 0])
    cache.batch_select_indices(indices)
    return cache, rows[indices]


def mask_out(cache: Cache, rows: Tensor) -> tuple[Cache, Tensor]:
    kept = torch.arange(len(rows)) != 1
    cache.batch_select_indices(kept)
    return cache, rows[kept]


def rebuild(cache: Cache, rows: Tensor) -> tuple[Cache, Tensor]:
    return DynamicCache([(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]), rows


def duplicate(cache: Cache, rows: Tensor) -> tuple[Cache, Tensor]:
    return copy.deepcopy(cache), rows


def grow(cache: Cache, rows: Tensor) -> tuple[Cache, Tensor]:
    make_room(cache)
    return cache, rows


OPERATIONS = [reorder, repeat, select, mask_out, rebuild, duplicate, grow]


def check(model: Model, batch: Case, cache: Cache, rows: Tensor, start: int) -> None:
    """The columns from `start` on give the logits that they give without a cache."""
    ids, mask = batch["input_ids"][rows], batch["attention_mask"][rows]
    logits = model(ids[:, start:], attention_mask=mask, past_key_values=cache).logits
    torch.testing.assert_close(logits, model(ids, attention_mask=mask).logits[:, start:], atol=ATOL, rtol=0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(OPERATIONS), max_size=5), held=st.sampled_from([16, 17]))
def test_rows_of_a_cache(model: Model, batch: Case, steps: list[Any], held: int) -> None:
    rows, cache = torch.arange(3), DynamicCache()
    with torch.no_grad():
        model(batch["input_ids"][:, :held], attention_mask=batch["attention_mask"][:, :held], past_key_values=cache)
        for step in steps:
            cache, rows = step(cache, rows) if len(rows) > 1 and len(rows) < 9 else (cache, rows)
        check(model, batch, cache, rows, held)


def test_tokens_that_are_taken_back(model: Model, batch: Case) -> None:
    cache, rows = DynamicCache(), torch.arange(3)
    with torch.no_grad():
        model(**batch, past_key_values=cache)
        cache.crop(-1)
        check(model, batch, cache, rows, 17)


def test_a_prompt_that_is_cut_is_no_prompt(model: Model, batch: Case) -> None:
    """What is left of it has seen what was taken back; `<sop>` and what stands behind it may be taken back."""
    ids = torch.tensor([[20, 21, 22, 169, 172, 30]])
    with torch.no_grad():
        cache = model(ids).past_key_values
        cache.crop(-2)
        check(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, cache, torch.arange(1), 4)
        cache.crop(-4)
        for rest in (ids[:, 2:], ids[:, 2:3]):
            with pytest.raises(ValueError, match=r"past_key_values were cut within the prompt of row 0, .* as a whole"):
                model(rest, past_key_values=copy.deepcopy(cache))


def test_a_cache_of_a_shorter_prompt_is_none_of_a_longer_one(model: Model) -> None:
    short, more = torch.tensor([[20, 21, 169, 172]]), {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    cache = model(short).past_key_values
    with pytest.raises(ValueError, match=r"past_key_values hold 4 columns of shorter prompts .* Leave past_key_values"):
        model.generate(torch.tensor([[20, 21, 22, 23, 24, 169, 172]]), past_key_values=cache, **more)
    begun = model.generate(short, **more, return_dict_in_generate=True)
    gone_on = model.generate(begun.sequences, past_key_values=begun.past_key_values, **more)
    assert torch.equal(gone_on, model.generate(begun.sequences, use_cache=False, **more))


def test_a_static_cache_in_another_order(model: Model, batch: Case) -> None:
    cache, rows = StaticCache(model.config, max_cache_len=32), torch.arange(3)
    with torch.no_grad():
        model(batch["input_ids"][:, :17], attention_mask=batch["attention_mask"][:, :17], past_key_values=cache)
        cache, rows = reorder(cache, rows)
        check(model, batch, cache, rows, 17)
        cache.reset()
        cache.reorder_cache(torch.tensor([1, 0, 2]))
        model(batch["input_ids"][:, :17], attention_mask=batch["attention_mask"][:, :17], past_key_values=cache)
        check(model, batch, cache, torch.arange(3), 17)


def test_a_cache_of_tensors_with_a_prefix(prefixed: Any, batch: Case) -> None:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        full = prefixed(ids, attention_mask=mask).logits
        cache = prefixed(ids[:, :16], attention_mask=mask[:, :16]).past_key_values
        rebuilt, _ = rebuild(cache, torch.arange(3))
        seen = torch.nn.functional.pad(mask, (5, 0), value=1)
        rest = prefixed.base_model(ids[:, 16:], attention_mask=seen, past_key_values=rebuilt).logits
    torch.testing.assert_close(rest, full[:, 16:], atol=ATOL, rtol=0)


def test_a_cache_of_other_tensors_is_refused(model: Model, batch: Case) -> None:
    cache = DynamicCache([(torch.randn(3, 4, 6, 16), torch.randn(3, 4, 6, 16)) for _ in model.transformer.layers])
    with pytest.raises(ValueError, match="past_key_values hold 6 columns that are no whole prompt of this model"):
        model(batch["input_ids"][:, -1:], past_key_values=cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_tell_the_layout(load_glm1: Any, batch: Case, dtype: torch.dtype) -> None:
    """Alone, behind virtual tokens, and one by one with a cache."""
    model = load_glm1(dtype=dtype)
    embeds, mask = model.get_input_embeddings()(batch["input_ids"]), batch["attention_mask"]
    with torch.no_grad():
        expected = model(**batch).logits
        assert torch.equal(model(inputs_embeds=embeds, attention_mask=mask).logits, expected)
        cache = model(inputs_embeds=embeds[:, :16], attention_mask=mask[:, :16]).past_key_values
        rest = model(inputs_embeds=embeds[:, 16:], attention_mask=mask, past_key_values=cache).logits
        torch.testing.assert_close(
            rest.float(), expected[:, 16:].float(), atol=ATOL if dtype == torch.float32 else 0.5, rtol=0
        )
        written = model.generate(**batch, max_new_tokens=3, do_sample=False)[:, -3:]
        assert torch.equal(
            model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=3, do_sample=False), written
        )
    with pytest.raises(ValueError, match=r"no row of inputs_embeds is what get_input_embeddings.* gives for them"):
        model(inputs_embeds=torch.randn_like(embeds))


def test_embeddings_that_are_learned_are_looked_at(load_glm1: Any, batch: Case) -> None:
    """As behind virtual tokens, where `input_ids` do not arrive."""
    model, ids = learning(load_glm1), batch["input_ids"]
    embeds = torch.nn.functional.pad(model.get_input_embeddings()(ids), (0, 0, 2, 0), value=0.3)
    behind = ids.eq(model.config.bos_token_id).cumsum(-1).gt(0) & batch["attention_mask"].bool()
    mask = torch.nn.functional.pad(batch["attention_mask"], (2, 0), value=1)
    right = torch.nn.functional.pad(ids.masked_fill(~behind, -100), (2, 0), value=-100)
    right[:, 0] = 7  # as CPT learns its own tokens
    assert model(inputs_embeds=embeds, attention_mask=mask, labels=right).loss.isfinite()
    whole = torch.nn.functional.pad(ids.masked_fill(batch["attention_mask"] == 0, -100), (2, 0), value=-100)
    with pytest.raises(ValueError, match=r"of labels has .* tokens before <sop>"):
        model(inputs_embeds=embeds, attention_mask=mask, labels=whole)


def learning(load_glm1: Any) -> Model:
    model: Model = load_glm1().train()
    return model


def test_what_is_seen_is_not_learned(load_glm1: Any, batch: Case) -> None:
    """As where prompt and answer are one text, to whose end the tokenizer puts `[gMASK] <sop>`."""
    model, ids, mask = learning(load_glm1), batch["input_ids"], batch["attention_mask"]
    begun = ids.eq(model.config.bos_token_id)
    behind = begun.cumsum(-1).gt(0) & mask.bool()
    right = ids.masked_fill(~behind, -100)
    assert model(**batch, labels=right).loss.isfinite()
    early = right.clone()
    early[1, (begun[1].int().argmax() - 2)] = 20
    with pytest.raises(ValueError, match=r"Row 1 of labels has 1 tokens before <sop>, .* tokenizer\(prompt, answer\)"):
        model(**batch, labels=early)
    assert model.eval()(**batch, labels=early).loss.isfinite()


def test_packed_rows_are_looked_at_one_by_one(load_glm1: Any, batch: Case) -> None:
    model = learning(load_glm1)
    rows = [row[mask.bool()] for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    places = torch.cat([torch.arange(len(row)) for row in rows])[None]
    ids = torch.cat(rows)[None]
    labels = torch.cat([row.masked_fill(row.eq(172).cumsum(-1) == 0, -100) for row in rows])[None]
    assert model(ids, position_ids=places, labels=labels, use_cache=False).loss.isfinite()
    labels[0, len(rows[0])] = 20  # the first token of the second
    with pytest.raises(ValueError, match="Row 0 of labels has 1 tokens before <sop>"):
        model(ids, position_ids=places, labels=labels, use_cache=False)


def test_a_packed_prompt_that_was_cut_teaches_nothing(load_glm1: Any) -> None:
    """Nor does it stop a training: where rows are one, trl drops it."""
    model, whole, cut = learning(load_glm1), [20, 21, 169, 172, 22, 173], [30, 31, 32]
    ids = torch.tensor([cut + whole])
    places = torch.tensor([[*range(len(cut)), *range(len(whole))]])
    labels = torch.tensor([[-100] * (len(cut) + 4) + whole[4:]])
    loss = model(ids, position_ids=places, labels=labels, use_cache=False).loss
    torch.testing.assert_close(loss, model(ids[:, 3:], labels=labels[:, 3:]).loss, atol=ATOL, rtol=0)
    labels[0, 1] = 31
    with pytest.raises(ValueError, match="Row 0 of labels has 1 tokens before <sop>"):
        model(ids, position_ids=places, labels=labels, use_cache=False)


def test_an_answer_may_hold_what_the_model_wrote(load_glm1: Any) -> None:
    """`<sop>` among it, as models of random weights write it under GRPO; with `[gMASK]` it begins another sequence."""
    model, ids = learning(load_glm1), torch.tensor([[20, 169, 172, 22, 172, 23]])
    assert model(ids).logits.isfinite().all()
    ids[0, 3] = 169
    with pytest.raises(ValueError, match=r"Row 0 of input_ids holds \[gMASK\] <sop> twice"):
        model(ids)


def test_a_prompt_alone_teaches_nothing(load_glm1: Any) -> None:
    """As where a loss is computed from the logits of texts that were encoded as one."""
    model, ids = learning(load_glm1), torch.tensor([[20, 21, 169, 172, 22], [20, 21, 22, 169, 172]])
    with pytest.raises(ValueError, match="Row 1 of input_ids ends with <sop>, behind which an answer stands"):
        model(ids)
    assert model(ids[:1]).logits.isfinite().all()
    with torch.no_grad():
        assert model(ids).logits.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefill_chunk_size": 4}, r"generate\(prefill_chunk_size=4\): a chunk of a prompt has no <sop>"),
        ({"token_healing": True}, r"generate\(token_healing=True\): a prompt ends with <sop>"),
        ({"guidance_scale": 1.5}, r"generate\(guidance_scale=1.5\): .* Pass negative_prompt_ids"),
    ],
)
def test_what_takes_prompts_to_pieces_says_so(model: Model, batch: Case, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.*read as a whole"):
        model.generate(**batch, max_new_tokens=2, **options)


def test_guidance_with_a_prompt_of_its_own(model: Model, batch: Case) -> None:
    prompt = {name: value[:1, :16] for name, value in batch.items()}
    negative = torch.tensor([[20, 169, 172]])
    plain = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    guided = model.generate(
        **prompt, max_new_tokens=3, do_sample=False, guidance_scale=1.0 + 1e-6, negative_prompt_ids=negative
    )
    assert torch.equal(plain, guided)


def test_a_prompt_in_parts_says_so(model: Model, batch: Case) -> None:
    with pytest.raises(ValueError, match="read as a whole, in both directions: it cannot come in parts"):
        model(batch["input_ids"][:1, :4])


def test_generating_while_layers_are_recomputed(load_glm1: Any, batch: Case) -> None:
    model = load_glm1()
    expected = model.generate(**batch, max_new_tokens=4, do_sample=False)
    model.train()
    model.gradient_checkpointing_enable()
    with torch.no_grad():
        assert torch.equal(model.generate(**batch, max_new_tokens=4, do_sample=False), expected)


def test_a_draft_of_fewer_layers_changes_nothing(load_glm1: Any, batch: Case) -> None:
    model, prompt = load_glm1(), {name: value[:1, :16] for name, value in batch.items()}
    expected = model.generate(**prompt, max_new_tokens=6, do_sample=False)
    drafted = model.generate(**prompt, max_new_tokens=6, do_sample=False, assistant_early_exit=1)
    assert torch.equal(drafted, expected)
    assert torch.equal(model.generate(**prompt, max_new_tokens=6, do_sample=False), expected)


def test_a_draft_that_is_broken_off_leaves_the_model(load_glm1: Any, batch: Case) -> None:
    model, prompt = load_glm1(), {name: value[:1, :16] for name, value in batch.items()}
    expected, embeds = model(**prompt).logits, model.get_input_embeddings()(prompt["input_ids"])
    with pytest.raises(IndexError):  # transformers drafts from input_ids, of which there are none
        model.generate(inputs_embeds=embeds, max_new_tokens=3, assistant_early_exit=1)
    assert torch.equal(model(**prompt).logits, expected)


def test_a_cache_that_a_graph_has_filled(model: Model, batch: Case) -> None:
    """It knows its prompts like any other, and a graph goes on with it."""
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    held = {name: part[:, :17] for name, part in batch.items()}
    static = StaticCache(model.config, max_cache_len=32)
    static.early_initialization(3, model.config.num_attention_heads, 16, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        filled = compiled(**held, use_cache=True).past_key_values
        for step in (*OPERATIONS, lambda cache, rows: (cache, rows)):
            cache, rows = step(copy.deepcopy(filled), torch.arange(3))
            check(model, batch, cache, rows, 17)
        static = compiled(**held, past_key_values=static).past_key_values
        by_hand = model(**held).past_key_values
        for cache in (filled, static, by_hand):
            moved, rows = reorder(cache, torch.arange(3))
            check(compiled, batch, moved, rows, 17)


def test_a_cache_may_be_put_away(model: Model, batch: Case) -> None:
    held = {name: part[:, :17] for name, part in batch.items()}
    with torch.no_grad():
        cache = pickle.loads(pickle.dumps(model(**held).past_key_values))
        check(model, batch, cache, torch.arange(3), 17)


@pytest.mark.parametrize("cached", [False, True])
def test_a_prompt_is_one_graph(model: Model, batch: Case, cached: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        options = {"past_key_values": DynamicCache(config=model.config)} if cached else {"use_cache": False}
        logits = compiled(**batch, **options).logits
    torch.testing.assert_close(logits, model(**batch).logits, atol=ATOL, rtol=0)


def test_export_of_a_prompt(model: Model, batch: Case) -> None:
    with torch.no_grad():
        program = torch.export.export(model, (), {**batch, "use_cache": False})
        logits = program.module()(**batch, use_cache=False).logits
    torch.testing.assert_close(logits, model(**batch).logits, atol=ATOL, rtol=0)
