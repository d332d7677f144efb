"""Of a checkpoint's `generation_config.json` its end tokens are taken, and nothing else; malformed ones are told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import glmtune
from glmtune import cli
from glmtune.config import GenerationSettings
from glmtune.inference.engine import Engine
from glmtune.models.endings import named_ends
from glmtune.resolution import resolve

GREEDY = GenerationSettings(max_new_tokens=12)
PROMPTS = ["1+2=", "3", "99.25-1.75*3="]
EVERY = [*range(512)]

# Fields that would change answers, end in an error, or never end; of no wrong type, or of one.
FIELDS = [
    {"suppress_tokens": EVERY},
    {"begin_suppress_tokens": EVERY},
    {"bad_words_ids": [[token] for token in EVERY]},
    {"sequence_bias": [[[7], 100.0]]},
    {"forced_eos_token_id": 9},
    {"forced_bos_token_id": 7},
    {"decoder_start_token_id": 7},
    {"exponential_decay_length_penalty": [0, 100.0]},
    {"repetition_penalty": 100.0},
    {"encoder_repetition_penalty": 100.0},
    {"no_repeat_ngram_size": 1},
    {"encoder_no_repeat_ngram_size": 1},
    {"min_length": 10**9, "min_new_tokens": 10**9},
    {"max_length": 1, "max_new_tokens": 1},
    {"max_time": 1e-9},
    {"stop_strings": ["1", " "]},
    {"num_beams": 7, "num_beam_groups": 7, "diversity_penalty": 1.0, "early_stopping": True},
    {"num_return_sequences": 3},
    {"constraints": [1], "force_words_ids": [[7]]},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"do_sample": True, "temperature": 9.0, "top_k": 1, "top_p": 0.01, "min_p": 0.9, "typical_p": 0.1},
    {"epsilon_cutoff": 0.5, "eta_cutoff": 0.5, "top_h": 0.5},
    {"guidance_scale": 9.0},
    {"watermarking_config": {"bias": 100.0, "hashing_key": 1, "seeding_scheme": "selfhash"}},
    {"renormalize_logits": True, "remove_invalid_values": True},
    {"return_dict_in_generate": True, "output_scores": True, "output_attentions": True, "output_hidden_states": True},
    {"cache_implementation": "static", "cache_config": {"max_cache_len": 1}},
    {"use_cache": False},
    {"compile_config": {"fullgraph": True, "backend": "nothing"}},
    {"is_assistant": True, "num_assistant_tokens": 10**6, "prompt_lookup_num_tokens": 3, "assistant_early_exit": 1},
    {"low_memory": True, "dola_layers": "high"},
    {"token_healing": True},
    {"pad_token_id": 10**12, "bos_token_id": "x"},
    {"transformers_version": ["x"], "_from_model_config": "x", "custom_generate": "evil/repository"},
    {"num_beams": "x", "temperature": "x", "suppress_tokens": "x", "stop_strings": 5, "watermarking_config": "x"},
    {"num_beams": -1, "max_length": 1e400, "temperature": -1.0, "top_p": 7, "cache_implementation": "nothing"},
    {"generate": None, "to_dict": 1, "validate": 1, "__class__": "x"},
]
# What is no token, and no list of tokens.
NO_TOKENS = ["x", "9", 10**12, -1, 512, 9.0, True, [[9]], [9, None], [9, "x"], {"9": 9}, [9, -1], float("nan"), [True]]


def plant(checkpoint: Path, folder: Path, fields: dict[str, Any], file: str = "generation_config.json") -> Path:
    """A copy of a checkpoint, with fields in one of its files."""
    shutil.copytree(checkpoint, folder)
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**values, **fields}))
    return folder


def answers(folder: Path) -> list[Any]:
    found = Engine(*resolve(folder).load()).answer(PROMPTS, GREEDY)
    return [(completion.text, completion.token_ids, completion.finish_reason) for completion in found]


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path) -> list[Any]:
    found = answers(tiny_checkpoint)
    assert len({text for text, *_ in found}) > 1
    return found


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: ",".join(fields))
def test_nothing_else_is_taken(fields: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path, expected: Any) -> None:
    folder = plant(tiny_checkpoint, tmp_path / "model", fields)
    assert answers(folder) == expected
    model, _ = glmtune.load(folder)
    assert model.generation_config.to_diff_dict().keys() <= {"eos_token_id", "pad_token_id", "transformers_version"}


OF_OLD = [fields for fields in FIELDS[:-3] if "compile_config" not in fields]  # which the library refuses, in a line


@pytest.mark.parametrize("fields", OF_OLD, ids=lambda fields: ",".join(fields))
def test_nor_of_the_configuration(fields: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path, expected: Any) -> None:
    """Old files have such fields in `config.json`."""
    fields = {name: value for name, value in fields.items() if not name.endswith("_token_id")}
    folder = plant(tiny_checkpoint, tmp_path / "model", fields, "config.json")
    (folder / "generation_config.json").unlink()
    assert answers(folder) == expected


def test_the_end_tokens_are(tiny_checkpoint: Path, tmp_path: Path, expected: Any) -> None:
    _, ids, reason = next(one for one in expected if one[1][0] not in one[1][1:3])
    assert reason == "length"
    folder = plant(tiny_checkpoint, tmp_path / "model", {"eos_token_id": [9, ids[1]], "suppress_tokens": [ids[1]]})
    found = next(one for one in answers(folder) if one[1][0] == ids[0])
    assert found[1] == ids[:2] and found[2] == "stop"
    resolved = resolve(folder)
    assert named_ends(folder, resolved.config) == [9, ids[1]]
    assert {9, ids[1]} <= set(resolved.stops)


@pytest.mark.parametrize("value", NO_TOKENS, ids=repr)
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_what_is_no_token_is_told(
    value: Any, file: str, tiny_checkpoint: Path, tmp_path: Path, refused: Callable[..., str], capsys: Any
) -> None:
    folder = plant(tiny_checkpoint, tmp_path / "model", {"eos_token_id": value}, file)
    if file == "config.json":
        (folder / "generation_config.json").unlink()
    told = refused("chat", folder, "--question", "1+1=")
    assert "eos_token_id" in told and str(folder) in told
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", str(folder)])
    assert end.value.code == 2
    assert any("eos_token_id" in line for line in capsys.readouterr().out.splitlines() if "FAILS" in line)


def test_what_is_saved_holds_nothing_else(tiny_checkpoint: Path, tmp_path: Path, train_tiny: Any) -> None:
    """A field that the library refuses to write would end a training when all is learned."""
    folder = plant(tiny_checkpoint, tmp_path / "model", {"temperature": -1.0, "num_beams": 0, "suppress_tokens": [7]})
    run = train_tiny(tmp_path / "run", f"model.path={folder}", "method={name: full}")
    saved = json.loads((run.folder.model / "generation_config.json").read_text())
    assert not saved.keys() & {"temperature", "num_beams", "suppress_tokens"} and saved["eos_token_id"] == 9
