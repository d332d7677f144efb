"""ChatGLM-6B against the original code's results, and against itself.

"Quirk n" is an observed behaviour of the original; where it is plainly wrong, a test shows that we are right.
"""

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache

from glmtune.models.chatglm.modeling_chatglm import ChatGLMForCausalLM, rotary_tables

Model = ChatGLMForCausalLM
Case = dict[str, Tensor]
Golden = dict[str, dict[str, Case]]
Loader = Callable[..., Model]

ATOL = 2e-4  # fp32 noise is about 3e-5 on logits up to 20
SINGLE = ["single_gmask", "single_mask"]
PLAIN = [*SINGLE, "prompt_only", "both_masks", "repeated_specials", "leftpad_batch_no_mask"]
GREEDY = ["greedy_gmask", "greedy_mask", "greedy_continue", "greedy_eos", "greedy_leftpad_batch"]
CACHING = {"dynamic": {}, "static": {"cache_implementation": "static"}, "none": {"use_cache": False}}
WITH_BOTH = pytest.mark.parametrize("attention", ["sdpa", "eager"])  # overrides the fixture of that name


def close(actual: Tensor, expected: Tensor, atol: float = ATOL) -> None:
    torch.testing.assert_close(actual.detach(), expected.detach(), atol=atol, rtol=0, check_dtype=False)


def real(case: Case) -> Tensor:
    return case.get("valid", torch.ones_like(case["input_ids"])).bool()


def padding_mask(case: Case) -> Tensor | None:
    return real(case).long() if "valid" in case else None


def greedy(model: Model, case: Case, steps: int, **options: Any) -> tuple[Tensor, Tensor]:
    """Sequences and the logits (B, steps, V) that chose them."""
    options |= {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    options |= {"max_new_tokens": steps, "attention_mask": padding_mask(case)}
    out = model.generate(case["input_ids"], **options)
    return out.sequences, torch.stack(out.logits, dim=1)


def gradients(model: Model) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def new_cache(kind: str, model: Model) -> Cache:
    return DynamicCache() if kind == "dynamic" else StaticCache(model.config, max_cache_len=64)


# --------------------------------------------------------------------------- parity with the original


@WITH_BOTH
@pytest.mark.parametrize(
    ("file", "name"),
    [
        *product(["forward"], [*PLAIN, "leftpad_batch"]),
        *product(["position_1d"], SINGLE),
        *product(["train"], ["train", "train_leftpad"]),
        ("generate", "greedy_leftpad_batch"),
    ],
)
def test_forward(load_glm1: Loader, attention: str, glm1: Golden, file: str, name: str) -> None:
    model = load_glm1(attn_implementation=attention, position_encoding_2d=file != "position_1d")
    case = glm1[file][name]
    ids, mask, valid = case["input_ids"], padding_mask(case), real(case)
    out = model(ids, attention_mask=mask, labels=case.get("labels"))
    if "logits" in case:
        close(out.logits[valid], case["logits"][valid])
    if "logits_last" in case:
        close(out.logits[:, -1], case["logits_last"])
    if "loss" in case:
        close(out.loss, case["loss"], atol=1e-5)

    placement = model.transformer.place_prompt(ids, mask, None)
    position_ids = placement.position_ids
    assert torch.equal(position_ids.movedim(-1, 1)[valid], case["position_ids"].movedim(-1, 1)[valid])
    mask = model.transformer.forward_mask(model.get_input_embeddings()(ids), mask, None, placement)
    hidden = mask < 0 if attention == "eager" else ~mask
    assert torch.equal(hidden[:, 0][valid], case["attention_mask"][:, 0][valid])


@WITH_BOTH
@pytest.mark.parametrize("name", SINGLE)
def test_hidden_states_and_attentions(model: Model, attention: str, glm1: Golden, name: str) -> None:
    """All are batch first, unlike the original's (quirk 8)."""
    case = glm1["hidden"][name]
    has_weights = attention == "eager"
    out = model(case["input_ids"], output_hidden_states=True, output_attentions=has_weights)
    assert len(out.hidden_states) == 4 and len(out.attentions or ()) == 3 * has_weights
    for i, states in enumerate(out.hidden_states):
        close(states, case[f"hidden_states.{i}"])
    for i, weights in enumerate(out.attentions or ()):
        close(weights, case[f"attentions.{i}"][None])


def test_sublayers_and_cache(model: Model, glm1: Golden) -> None:
    case = glm1["hidden"]["single_gmask"]
    seen: Case = {}

    def record(name: str, module: torch.nn.Module) -> Any:
        return module.register_forward_hook(
            lambda _module, _args, out: seen.update({name: out[0] if isinstance(out, tuple) else out})
        )

    hooks = []
    for i, layer in enumerate(model.transformer.layers):
        hooks += [record(f"input_ln.{i}", layer.input_layernorm), record(f"attn_out.{i}", layer.attention)]
        hooks += [record(f"post_attn_ln.{i}", layer.post_attention_layernorm)]
        hooks += [record(f"mlp_out.{i}", layer.mlp), record(f"layer_out.{i}", layer)]
    cache = model(case["input_ids"]).past_key_values
    for hook in hooks:
        hook.remove()
    assert len(seen) == 15
    for name, output in seen.items():
        close(output, case[name])
    for i, layer in enumerate(cache.layers):
        close(layer.keys, case[f"past_key.{i}"].permute(1, 2, 0, 3))
        close(layer.values, case[f"past_value.{i}"].permute(1, 2, 0, 3))


@WITH_BOTH
@pytest.mark.parametrize("caching", CACHING.values(), ids=CACHING)
@pytest.mark.parametrize(("file", "name"), [*product(["generate"], GREEDY), ("position_1d", "greedy_mask")])
def test_greedy(load_glm1: Loader, attention: str, glm1: Golden, file: str, name: str, caching: Any) -> None:
    model = load_glm1(attn_implementation=attention, position_encoding_2d=file != "position_1d")
    case = glm1[file][name]
    sequences, logits = greedy(model, case, 12 if file == "position_1d" else 24, **caching)
    assert torch.equal(sequences, case["sequences"])
    close(logits, case["step_logits"])


@pytest.mark.parametrize("caching", CACHING.values(), ids=CACHING)
def test_beams(model: Model, glm1: Golden, caching: Any) -> None:
    case = glm1["generate"]["beam3"]
    assert torch.equal(greedy(model, case, 12, num_beams=3, **caching)[0], case["sequences"])


@WITH_BOTH
@pytest.mark.parametrize("masked", [True, False])
def test_training(model: Model, glm1: Golden, glm1_dir: Path, masked: bool) -> None:
    """With what trl's collators give: input_ids, labels, and mostly an attention_mask."""
    case = glm1["train"]["train"]
    mask = (case["input_ids"] != model.config.pad_token_id).long() if masked else None
    out = model(input_ids=case["input_ids"], attention_mask=mask, labels=case["labels"])
    close(out.loss, case["loss"], atol=1e-5)
    close(out.logits[0, :20], case["logits_row0"][:20])
    out.loss.backward()
    grads = gradients(model)
    norms = json.loads((glm1_dir / "train_grad_norms.json").read_text())["grad_norms"]
    assert {name: grad.norm().item() for name, grad in grads.items()} == pytest.approx(norms, rel=1e-4)
    named = {key.removeprefix("grad.") for key in case if key.startswith("grad.")} - {"rows"}
    assert len(named) == 17
    for name in named:
        grad = grads[name.removesuffix(".at_rows")]
        close(grad[case["grad.rows"]] if name.endswith(".at_rows") else grad, case[f"grad.{name}"])


@pytest.mark.parametrize("head_dim", [16, 128])
@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-6), ("fp16", 0.0)])
def test_rotary_tables(glm1: Golden, head_dim: int, precision: str, atol: float) -> None:
    """fp16 is equal to the last bit: the angles are rounded to fp16, like the original's (quirk 2)."""
    positions, golden = glm1["rope_fp16"]["positions"][""], glm1["rope_fp16"][f"d{head_dim // 2}"]
    dtype = golden[f"{precision}.cos"].dtype
    tables = rotary_tables(torch.stack((positions, positions.flip(0)))[None], head_dim, dtype)
    for name, table in zip(("cos", "sin"), tables, strict=True):
        expected = golden[f"{precision}.{name}"]
        assert table.dtype == dtype and table.shape == (1, 1, len(positions), 2, head_dim // 4)
        close(table[0, 0, :, 0], expected, atol)
        close(table[0, 0, :, 1], expected.flip(0), atol)


# --------------------------------------------------------------------------- where the original is wrong


def test_padding_mask_counts_in_generate(model: Model, batch: Case, glm1: Golden) -> None:
    """Quirk 7: the original's `generate` drops a 2-D mask, so padding is attended and shifts positions."""
    case = glm1["forward"]["leftpad_batch"]
    alone = torch.cat([model(row[row != 3][None]).logits[:, -1] for row in case["input_ids"]])
    close(greedy(model, case, steps=1)[1][:, 0], alone)
    errors = (glm1["forward"]["leftpad_batch_no_mask"]["logits_last"] - alone).abs().amax(-1)
    assert errors[0] < ATOL and errors[1:].min() > 0.1  # row 0 has no padding


def test_one_row_of_positions_cached_is_full(load_glm1: Loader, glm1: Golden) -> None:
    """Quirk 9: with `[gMASK]` and one row of positions, the original stops counting once it has a cache."""
    model, case = load_glm1(position_encoding_2d=False), glm1["position_1d"]["greedy_gmask"]
    sequences, cached = greedy(model, case, steps=12)
    answer = slice(case["input_ids"].shape[1] - 1, -1)
    close(cached, model(sequences).logits[:, answer])
    close(cached[:, 0], case["step_logits"][:, 0])
    # Our forward is the original's (test_forward), and the original's steps are not what it gives.
    assert (model(case["sequences"]).logits[:, answer] - case["step_logits"]).abs().max() > 1


# --------------------------------------------------------------------------- checkpoints


def write_shards(folder: Path, source: Path) -> Path:
    tensors = load_file(source / "model.safetensors")
    weight_map = {key: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, key in enumerate(tensors)}
    for file in set(weight_map.values()):
        torch.save({key: tensors[key] for key in tensors if weight_map[key] == file}, folder / file)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "pytorch_model.bin.index.json").write_text(index)
    return Path(shutil.copy(source / "config.json", folder)).parent


@pytest.mark.parametrize("sharded", [True, False])
def test_original_checkpoints_load(
    load_glm1: Loader, glm1_dir: Path, tmp_path: Path, glm1: Golden, sharded: bool, library_log: Any
) -> None:
    """The original's names, in both formats that the Hub has."""
    path = write_shards(tmp_path, glm1_dir) if sharded else glm1_dir
    model, info = load_glm1(path, output_loading_info=True)
    assert not any(info.values()) and not library_log.records  # the stored inv_freq is not even unexpected
    case = glm1["forward"]["single_gmask"]
    close(model(case["input_ids"]).logits, case["logits"])


@pytest.mark.parametrize("tied", [True, False])
def test_saving(load_glm1: Loader, glm1_dir: Path, batch: Case, tmp_path: Path, tied: bool) -> None:
    model = load_glm1(tie_word_embeddings=tied)
    torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(tmp_path)
    names = {key for key in load_file(glm1_dir / "model.safetensors") if not key.endswith("inv_freq")}
    assert load_file(tmp_path / "model.safetensors").keys() == names - ({"lm_head.weight"} if tied else set())
    assert torch.equal(load_glm1(tmp_path)(**batch).logits, model(**batch).logits)


def test_untied_head(load_glm1: Loader, glm1_dir: Path, glm1: Golden, tmp_path: Path) -> None:
    tensors = load_file(glm1_dir / "model.safetensors") | load_file(glm1_dir / "untied_lm_head.safetensors")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(glm1_dir / "config.json", tmp_path)
    case, train = glm1["train"]["untied"], glm1["train"]["train"]

    untied = load_glm1(tmp_path, tie_word_embeddings=False)
    close(untied(case["input_ids"]).logits, case["logits"])
    loss = untied(train["input_ids"], labels=train["labels"]).loss
    close(loss, case["train_loss"], atol=1e-5)
    loss.backward()
    for name in ("lm_head.weight", "transformer.word_embeddings.weight"):
        close(gradients(untied)[name][case["train_grad.rows"]], case[f"train_grad.{name}.at_rows"])

    tied = load_glm1(tmp_path)  # quirk 6: unless told otherwise, the embedding replaces the stored head
    assert tied.lm_head.weight is tied.transformer.word_embeddings.weight
    close(tied(case["input_ids"]).logits, glm1["forward"]["single_gmask"]["logits"])


# --------------------------------------------------------------------------- agreement with itself


@WITH_BOTH
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [3, 169, 172])
def test_padding_and_batching_change_nothing(model: Model, batch: Case, side: str, pad: int) -> None:
    """Whatever the padding's token; 169 is `[gMASK]`, 172 is `<sop>`."""
    mask = batch["attention_mask"]
    ids = batch["input_ids"].masked_fill(mask == 0, pad)
    if side == "right":
        order = mask.argsort(dim=-1, descending=True, stable=True)
        ids, mask = ids.gather(1, order), mask.gather(1, order)
    logits = model(ids, attention_mask=mask).logits
    for row in range(3):
        valid = mask[row].bool()
        close(logits[row][valid], model(ids[row][valid][None]).logits[0])


@WITH_BOTH
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize(("name", "masked"), [*product(SINGLE, [False, True]), ("leftpad_batch", True)])
def test_cached_is_full(model: Model, glm1: Golden, name: str, masked: bool, kind: str, chunk: int) -> None:
    case = glm1["forward"][name]
    ids, mask, cache, read = case["input_ids"], real(case).long(), new_cache(kind, model), 0
    parts = []
    for part in (ids[:, :16], *ids[:, 16:].split(chunk, dim=1)):
        read += part.shape[1]
        now = mask[:, :read] if masked else None
        parts.append(model(part, attention_mask=now, past_key_values=cache).logits)
    close(torch.cat(parts, dim=1)[real(case)], case["logits"][real(case)])


def test_static_cache_after_reset(model: Model, glm1: Golden) -> None:
    cache = new_cache("static", model)
    for name in ("single_gmask", "both_masks", "single_mask"):
        ids = glm1["forward"][name]["input_ids"]
        cache.reset()
        logits = [model(part, past_key_values=cache).logits for part in (ids[:, :15], ids[:, 15:])]
        close(torch.cat(logits, dim=1), glm1["forward"][name]["logits"])


def test_generation_goes_on_from_a_cache(model: Model, glm1: Golden) -> None:
    case, cache = glm1["generate"]["greedy_gmask"], new_cache("dynamic", model)
    sequences = case["input_ids"]
    for steps in (5, 19):
        sequences = model.generate(sequences, past_key_values=cache, max_new_tokens=steps, do_sample=False)
    assert torch.equal(sequences, case["sequences"])


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # the new name is too new
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(load_glm1: Loader, model: Model, glm1: Golden, use_reentrant: bool) -> None:
    inputs = {key: glm1["train"]["train"][key] for key in ("input_ids", "labels")}
    checkpointed = load_glm1().train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert checkpointed.transformer.layers[0].gradient_checkpointing
    losses = checkpointed(**inputs).loss, model(**inputs).loss
    sum(losses).backward()
    close(*losses, atol=1e-6)
    for name, grad in gradients(model).items():
        close(gradients(checkpointed)[name], grad, atol=1e-6)


def test_micro_batches(model: Model, glm1: Golden) -> None:
    ids, labels = glm1["train"]["train"]["input_ids"], glm1["train"]["train"]["labels"]
    whole = model(ids, labels=labels).loss
    whole.backward()
    expected = gradients(model)
    model.zero_grad()
    rows, learned = zip(ids.split(1), labels.split(1), strict=True), (labels[:, 1:] != -100).sum()
    loss = sum(model(row, labels=label, num_items_in_batch=learned).loss for row, label in rows)
    loss.backward()
    close(loss, whole, atol=1e-5)
    for name, grad in gradients(model).items():
        close(grad, expected[name], atol=1e-5)


def test_logits_to_keep(model: Model, batch: Case) -> None:
    logits = model(**batch).logits
    close(model(**batch, logits_to_keep=2).logits, logits[:, -2:])
    close(model(**batch, logits_to_keep=torch.tensor([3, 17])).logits, logits[:, [3, 17]])


@WITH_BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(load_glm1: Loader, attention: str, batch: Case, glm1: Golden, dtype: Any) -> None:
    half = load_glm1(dtype=dtype, attn_implementation=attention)
    out = half(**batch, labels=batch["input_ids"])
    out.loss.backward()
    assert out.logits.dtype == dtype and out.logits.isfinite().all()
    assert all(grad.isfinite().all() for grad in gradients(half).values())
    assert half.generate(**batch, max_new_tokens=3, do_sample=False).shape == (3, 21)
    original = glm1["rope_fp16"]["fp16_cpu"]
    error = (half(original["single_gmask.input_ids"]).logits - original["single_gmask.logits"]).abs().max()
    assert error < (0.1 if dtype == torch.float16 else 1)  # fp16 itself is 0.04 from fp32 in the original


# --------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("token", [172, 169], ids=["<sop>", "[gMASK]"])
def test_incomplete_prompts_are_refused(model: Model, batch: Case, token: int) -> None:
    batch["input_ids"] = torch.where(batch["input_ids"] == token, 20, batch["input_ids"])
    batch["input_ids"][0, 13:15] = torch.tensor([169, 172])  # row 0 stays whole, row 1 does not
    message = r"Row 1 of input_ids.*\[gMASK\] \(id 169\) or \[MASK\] \(id 168\), then <sop> \(id 172\)"
    with pytest.raises(ValueError, match=message):
        model(**batch)
    with pytest.raises(ValueError, match=message):
        model.generate(**batch, max_new_tokens=2)


def test_unfit_inputs_are_refused(model: Model, batch: Case) -> None:
    mask = batch["attention_mask"]
    with pytest.raises(ValueError, match=r"position_ids of shape \(3, 18\).*\(B, 2, T\)"):
        model(**batch, position_ids=torch.arange(18).expand(3, -1))
    with pytest.raises(ValueError, match="pass input_ids beside inputs_embeds"):
        model(inputs_embeds=torch.randn(3, 18, 64), attention_mask=mask)
    with pytest.raises(ValueError, match="needs input_ids"):
        model(attention_mask=mask)


@WITH_BOTH
def test_ready_made_inputs(model: Model, attention: str, batch: Case, glm1: Golden) -> None:
    case = glm1["forward"]["leftpad_batch"]
    positions, valid = {"position_ids": case["position_ids"]}, case["valid"]
    embeds, mask = model.get_input_embeddings()(batch["input_ids"]), ~case["attention_mask"]
    if attention == "eager":  # adds its mask
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo().min)
    whole = {"inputs_embeds": embeds, "attention_mask": mask, **positions}
    for inputs in (batch | {"inputs_embeds": embeds}, batch | positions, whole):
        close(model(**inputs).logits[valid], case["logits"][valid])


# --------------------------------------------------------------------------- peft


def test_lora(load_glm1: Loader, model: Model, batch: Case) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(load_glm1(), peft.LoraConfig(task_type="CAUSAL_LM", r=4)).eval()
    base = model(**batch).logits
    close(adapted(**batch).logits, base, atol=1e-6)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    trained = adapted(**batch).logits
    assert (trained - base).abs().max() > 0.1
    close(adapted.merge_and_unload()(**batch).logits, trained)


@pytest.mark.parametrize("attention", ["eager"])
def test_prefix_is_seen_by_all_and_shifts_nothing(prefixed: Any, model: Model, batch: Case) -> None:
    valid = batch["attention_mask"].bool()
    out, plain = prefixed(**batch, output_attentions=True), model(**batch)
    assert (out.logits - plain.logits)[valid].abs().max() > 0.1
    for weights in out.attentions:
        assert (weights.transpose(1, 2)[valid][..., :5] > 0).all()
        assert (weights[1, :, 10:, 5:15] == 0).all()  # the padding of row 1
    # Keys of the first layer depend on tokens and positions alone.
    keys, plain_keys = out.past_key_values.layers[0].keys[:, :, 5:], plain.past_key_values.layers[0].keys
    close(keys.transpose(1, 2)[valid], plain_keys.transpose(1, 2)[valid], atol=1e-5)


@WITH_BOTH
@pytest.mark.parametrize("masked", [True, False])
def test_prefix_cached_is_full(prefixed: Any, batch: Case, masked: bool) -> None:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    full = prefixed(ids, attention_mask=mask if masked else None).logits
    cache = prefixed(ids[:, :16], attention_mask=mask[:, :16] if masked else None).past_key_values
    seen = torch.nn.functional.pad(mask, (5, 0), value=1) if masked else None
    rest = prefixed.base_model(ids[:, 16:], attention_mask=seen, past_key_values=cache).logits
    close(rest, full[:, 16:])


@WITH_BOTH
def test_prefix_generates(prefixed: Any, batch: Case) -> None:
    ids, mask = batch["input_ids"][:, :16], batch["attention_mask"][:, :16]
    sequences = prefixed.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    logits = prefixed(sequences, attention_mask=torch.nn.functional.pad(mask, (0, 6), value=1)).logits
    assert torch.equal(sequences[:, 16:], logits[:, 15:-1].argmax(-1))


def test_prefix_trains(prefixed: Any, glm1: Golden) -> None:
    case = glm1["train"]["train"]
    prefixed.train()(case["input_ids"], labels=case["labels"]).loss.backward()
    trained = {name for name, p in prefixed.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"prompt_encoder.default.embedding.weight"}
