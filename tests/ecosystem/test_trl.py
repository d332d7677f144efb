"""trl's trainers on a checkpoint of each family: which tokens are learned, what they see, or what is said instead."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ecosystem_matrix import FAMILIES, SEEN, TRL, WORKS
from peft import LoraConfig, PromptTuningConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

pytest.importorskip("trl")
from datasets import Dataset
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.chat_template_utils import is_chat_template_stop_token_trained

SHORT = ["SFT, `text`", "SFT, `messages`, assistant_only_loss, packed", "DPO, texts"]  # the others are slow tests
# For a tokenizer that brings none.
TEMPLATE = (
    "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
PAIRS = [("1+2=", "3"), ("12+7=", "19"), ("2+2=", "4"), ("9+9=", "18")]


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def answered(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def records(name: str) -> list[dict[str, Any]]:
    """What a trainer is given, by the name of the row."""
    question, answer = (str, str) if "text" in name else (asked, answered)
    if name.startswith("SFT, `text`"):
        return [{"text": a + b} for a, b in PAIRS]
    if name.startswith("SFT, `messages`"):
        return [{"messages": asked(a) + answered(b)} for a, b in PAIRS]
    if name.startswith("SFT"):
        return [{"prompt": question(a), "completion": answer(b)} for a, b in PAIRS]
    if name.startswith("KTO"):
        return [
            {"prompt": question(a), "completion": answer(b), "label": place % 2 == 0}
            for place, (a, b) in enumerate(PAIRS)
        ]
    if name.startswith(("GRPO", "RLOO")):
        return [{"prompt": question(a)} for a, _ in PAIRS]
    return [{"prompt": question(a), "chosen": answer(b), "rejected": answer("5")} for a, b in PAIRS]


def every_other(completions: list[Any], **_: Any) -> list[float]:
    """A reward."""
    return [float(place % 2) for place in range(len(completions))]


TRAINERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "SFT": (SFTTrainer, SFTConfig, {"max_length": 64}),
    "DPO": (DPOTrainer, DPOConfig, {"max_length": 64}),
    "KTO": (KTOTrainer, KTOConfig, {"max_length": 64}),
    "GRPO": (GRPOTrainer, GRPOConfig, {"num_generations": 2, "max_completion_length": 4}),
    "RLOO": (RLOOTrainer, RLOOConfig, {"num_generations": 2, "max_completion_length": 4}),
    "rew": (RewardTrainer, RewardConfig, {"max_length": 64}),
}


def trainer_of(
    name: str, checkpoint: Path, output: Path, adapter: Any = None, more: Sequence[Any] = (), **settings: Any
) -> Any:
    """A trainer of one step of two records, with more records than those of its row."""
    kind, config, options = TRAINERS[name[:3] if name.startswith("rew") else name.partition(",")[0]]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = tokenizer.chat_template or TEMPLATE
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model: Any
    if kind is RewardTrainer:
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1, dtype=torch.float32)
        model.config.pad_token_id = tokenizer.pad_token_id
    else:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    if kind is SFTTrainer:
        flags = {"packing": "packed" in name, "assistant_only_loss": "assistant_only_loss" in name}
        free: dict[str, Any] = {"padding_free": True, "max_length": None} if "padding_free" in name else {}
        options = {**options, **flags, **free}
    arguments = config(
        output_dir=str(output),
        per_device_train_batch_size=2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        **{"max_steps": 1, **options, **settings},
    )
    rest: dict[str, Any] = {"reward_funcs": every_other} if kind in (GRPOTrainer, RLOOTrainer) else {}
    rest |= {"peft_config": adapter} if adapter is not None else {}
    dataset = Dataset.from_list([*records(name), *more])
    return kind(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer, **rest)


def learned(trainer: Any) -> Iterator[tuple[list[int], list[int]]]:
    """The token ids of each sequence of the first batch, and those of them that are learned."""
    batch = next(iter(trainer.get_train_dataloader()))
    for row, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        places = batch["position_ids"][row] if "position_ids" in batch else torch.arange(len(ids))
        for part in parts_of(places):
            yield ids[part].tolist(), [int(label) for label in labels[part] if label != -100]


def sees_what_it_learns(trainer: Any) -> bool:
    """Whether a token that is learned changes how likely it was held: the model has seen it while it predicts it."""
    batch, model = next(iter(trainer.get_train_dataloader())), trainer.model.eval()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    is_learned = batch["completion_mask"].bool() if "completion_mask" in batch else batch["labels"].ne(-100)
    is_learned[:, 0] = False  # nothing stands before it
    assert is_learned.any()

    def logits(ids: Tensor) -> Tensor:
        found: Tensor = model(**{**inputs, "input_ids": ids}, use_cache=False).logits
        return found

    with torch.no_grad():
        before = logits(inputs["input_ids"])
        for row, column in is_learned.nonzero().tolist():
            changed = inputs["input_ids"].clone()
            changed[row, column] = 20 if changed[row, column] != 20 else 21
            if not torch.allclose(logits(changed)[row, column - 1], before[row, column - 1], atol=1e-3):
                return True
    return False


def parts_of(places: Tensor) -> list[slice]:
    """The sequences of a packed row."""
    starts = [*places.eq(0).nonzero().flatten().tolist(), len(places)]
    return [slice(first, last) for first, last in itertools.pairwise(starts)]


CELLS = [
    pytest.param(name, family, marks=[] if name in SHORT else pytest.mark.slow) for name in TRL for family in FAMILIES
]


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_every_trainer(name: str, family: str, checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    trainer = trainer_of(name, checkpoint_of(FAMILIES[family]), tmp_path)
    expected = TRL[name][family]
    if not name.startswith(("GRPO", "RLOO", "reward")):  # which learn what was sampled, or a score
        assert sees_what_it_learns(trainer) == (expected == SEEN)
    if expected != WORKS:
        with pytest.raises(ValueError) as error:
            trainer.train()
        assert expected in str(error.value)
        return
    before = {key: weight.clone() for key, weight in trainer.model.named_parameters()}
    if ("completion" in name and "texts" not in name) or "assistant_only" in name:
        # The answers are learned, with the token that ends them, and nothing else.
        tokenizer = trainer.processing_class
        found = [labels for _, labels in learned(trainer) if labels]
        assert found and all(labels[-1] == tokenizer.eos_token_id for labels in found)
        answers = {tokenizer.decode(labels, skip_special_tokens=True).strip() for labels in found}
        assert answers <= {answer for _, answer in PAIRS}
    trainer.train()
    assert any(not torch.equal(before[key], weight) for key, weight in trainer.model.named_parameters())


@pytest.mark.parametrize(
    "adapter",
    [None, LoraConfig(task_type="CAUSAL_LM"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)],
    ids=["none", "LoRA", "virtual tokens"],
)
def test_the_question_is_refused_beside_an_adapter_too(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, adapter: Any
) -> None:
    trainer = trainer_of("SFT, `messages`", checkpoint_of("ChatGLM-6B v1.1"), tmp_path, adapter)
    with pytest.raises(ValueError, match=r"tokens before <sop>.*assistant_only_loss=True"):
        trainer.train()


def test_packed_sequences_see_nothing_of_each_other(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    trainer = trainer_of("SFT, `messages`, assistant_only_loss, packed", checkpoint_of("ChatGLM-6B v1.1"), tmp_path)
    batch, model = next(iter(trainer.get_train_dataloader())), trainer.model.eval()
    with torch.no_grad():
        packed = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
        for part in parts_of(batch["position_ids"][0]):
            alone = model(batch["input_ids"][:, part]).logits[0]
            torch.testing.assert_close(packed[part], alone, atol=2e-4, rtol=0)


def test_what_a_cut_leaves(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    """trl drops prompts that fill a row; where it packs, nothing of them is learned; a cut from the left is told."""
    name, folder = "SFT, `prompt` and `completion` as messages", checkpoint_of("ChatGLM-6B v1.1")
    long = [{"prompt": asked("1+1=" * 9), "completion": answered("2" * 30)}]
    for packed in ("", ", packed"):
        trainer = trainer_of(name + packed, folder, tmp_path, more=long, max_length=16)
        assert not any("222" in trainer.processing_class.decode(labels) for _, labels in learned(trainer))
        trainer.train()
    trainer = trainer_of(name, folder, tmp_path, more=long, max_length=16, truncation_mode="keep_end", max_steps=5)
    with pytest.raises(ValueError, match=r"Row \d of labels has 16 tokens before <sop>"):
        trainer.train()


def test_texts_in_a_row_without_places_are_refused(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint_of("ChatGLM-6B v1.1"), dtype=torch.float32).train()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_of("ChatGLM-6B v1.1"))
    ids = [token for a, b in PAIRS for token in tokenizer(a, b)["input_ids"]]
    batch = torch.tensor([ids])
    with pytest.raises(ValueError, match=r"Row 0 of input_ids holds \[gMASK\] <sop> twice: .* position_ids"):
        model(batch, labels=batch)


def test_masks_of_what_the_assistant_wrote(checkpoint_of: Callable[[str], Path]) -> None:
    """Alone and in a batch, padded on either side, cut on either side, as lists and as tensors."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_of("ChatGLM-6B v1.1"))
    talks = [asked(a) + answered(b) for a, b in PAIRS]
    long = asked("1+1=") + answered("2") + talks[1]
    options: dict[str, Any] = {"return_assistant_tokens_mask": True, "return_dict": True}

    def written(ids: Any, mask: Any) -> str:
        kept = [int(token) for token, is_written in zip(ids, mask, strict=True) if is_written]
        return str(tokenizer.decode(kept)).strip()

    for talk, answer in [(talks[0], "3"), (long, "19")]:
        alone = tokenizer.apply_chat_template(talk, **options)
        assert written(alone["input_ids"], alone["assistant_masks"]) == answer
        assert alone["input_ids"][-1] == tokenizer.eos_token_id and alone["assistant_masks"][-1] == 1
    begun = tokenizer.apply_chat_template(talks[0] + asked("5+5="), add_generation_prompt=True, **options)
    assert len(begun["assistant_masks"]) == len(begun["input_ids"]) and not any(begun["assistant_masks"])
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer.apply_chat_template([*talks, long], padding=True, return_tensors="pt", **options)
        assert batch["assistant_masks"].shape == batch["input_ids"].shape
        found = [written(*row) for row in zip(batch["input_ids"], batch["assistant_masks"], strict=True)]
        assert found == ["3", "19", "4", "18", "19"]
    tokenizer.truncation_side = "left"
    cut = tokenizer.apply_chat_template(long, truncation=True, max_length=6, **options)
    assert len(cut["input_ids"]) == 6 and written(cut["input_ids"], cut["assistant_masks"]) == "19"


def test_a_pair_of_texts_is_laid_out_rightly(checkpoint_of: Callable[[str], Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_of("ChatGLM-6B v1.1"))
    model = AutoModelForCausalLM.from_pretrained(checkpoint_of("ChatGLM-6B v1.1"), dtype=torch.float32).train()
    ids = torch.tensor([tokenizer("12+7=", "19")["input_ids"]])
    behind = ids.eq(model.config.bos_token_id).cumsum(-1).gt(0)
    assert model(ids, labels=ids.masked_fill(~behind, -100)).loss.isfinite()


@pytest.mark.parametrize("family", ["ChatGLM3-6B", "Llama"])
def test_trl_sees_that_the_end_is_learned(family: str, checkpoint_of: Callable[[str], Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_of(FAMILIES[family]))
    tokenizer.chat_template = tokenizer.chat_template or TEMPLATE
    assert is_chat_template_stop_token_trained(tokenizer)
