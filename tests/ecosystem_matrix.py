"""What the classes of the families do in other libraries: the cells of docs/ecosystem.md, and what the tests expect.

A cell is `works`, or the message that is read. What Llama, a family of transformers' own, does not do either is none of
ours. `python tests/ecosystem_matrix.py` writes the tables of the page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs/ecosystem.md"
FAMILIES = {"ChatGLM-6B": "ChatGLM-6B v1.1", "ChatGLM3-6B": "ChatGLM3-6B", "Llama": "Llama"}
WORKS = "works"
Row = Mapping[str, str]


def everywhere(cell: str) -> Row:
    """The same for all families."""
    return dict.fromkeys(FAMILIES, cell)


NO_TARGETS = "Please specify `target_modules` in `peft_config`"
# Of peft's types of adapters, those that are not trained everywhere.
PEFT: Mapping[str, Row] = {
    "ADAMSS": everywhere("scikit-learn is required for AdaMSS"),
    "ADAPTION_PROMPT": {
        "ChatGLM-6B": "Unsupported model type for adaption prompt: 'chatglm'.",
        "ChatGLM3-6B": "Unsupported model type for adaption prompt: 'glm'.",
        "Llama": WORKS,
    },
    "BEFT": {"ChatGLM-6B": NO_TARGETS, "ChatGLM3-6B": WORKS, "Llama": WORKS},
    "SHADOW": {
        "ChatGLM-6B": "no row of inputs_embeds is what get_input_embeddings() gives for them",
        "ChatGLM3-6B": WORKS,
        "Llama": WORKS,
    },
    "XLORA": everywhere("`use_cache` must be False"),
}
# What cannot be merged into the weights.
UNMERGED = {
    *("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "LILY", "MULTITASK_PROMPT_TUNING", "POLY", "PREFIX_TUNING"),
    *("PROMPT_TUNING", "P_TUNING", "SHADOW", "BEFT"),
}

SEEN = "before <sop>, which the model reads in both directions"
# Ways in which trl is given examples, by its trainer and what a record holds.
TRL: Mapping[str, Row] = {
    "SFT, `text`": {"ChatGLM-6B": SEEN, "ChatGLM3-6B": WORKS, "Llama": WORKS},
    "SFT, `text`, packed": {"ChatGLM-6B": SEEN, "ChatGLM3-6B": WORKS, "Llama": WORKS},
    "SFT, `prompt` and `completion` as texts": {"ChatGLM-6B": SEEN, "ChatGLM3-6B": WORKS, "Llama": WORKS},
    "SFT, `prompt` and `completion` as texts, packed": {"ChatGLM-6B": SEEN, "ChatGLM3-6B": WORKS, "Llama": WORKS},
    "SFT, `prompt` and `completion` as messages": everywhere(WORKS),
    "SFT, `prompt` and `completion` as messages, packed": everywhere(WORKS),
    "SFT, `prompt` and `completion` as messages, padding_free": everywhere(WORKS),
    "SFT, `messages`": {"ChatGLM-6B": SEEN, "ChatGLM3-6B": WORKS, "Llama": WORKS},
    "SFT, `messages`, packed": {"ChatGLM-6B": SEEN, "ChatGLM3-6B": WORKS, "Llama": WORKS},
    "SFT, `messages`, assistant_only_loss": everywhere(WORKS),
    "SFT, `messages`, assistant_only_loss, packed": everywhere(WORKS),
    "DPO, texts": {"ChatGLM-6B": SEEN, "ChatGLM3-6B": WORKS, "Llama": WORKS},
    "DPO, messages": everywhere(WORKS),
    "KTO, texts": {"ChatGLM-6B": SEEN, "ChatGLM3-6B": WORKS, "Llama": WORKS},
    "KTO, messages": everywhere(WORKS),
    "GRPO, texts": everywhere(WORKS),
    "GRPO, messages": everywhere(WORKS),
    "RLOO, messages": everywhere(WORKS),
    "reward model, texts": everywhere(WORKS),
    "reward model, messages": everywhere(WORKS),
}

PIECES = "The prompt is read as a whole, in both directions"
# Ways of calling `generate()`.
GENERATE: Mapping[str, Row] = {
    "greedy": everywhere(WORKS),
    "`use_cache=False`": everywhere(WORKS),
    "`DynamicCache` given": everywhere(WORKS),
    "`StaticCache` given": everywhere(WORKS),
    '`cache_implementation="static"`': everywhere(WORKS),
    "compiled decoding, `fullgraph=True`": everywhere(WORKS),
    "beam search": everywhere(WORKS),
    "beam search with sampling": everywhere(WORKS),
    "sampling: top_k, top_p, temperature": everywhere(WORKS),
    "sampling: min_p": everywhere(WORKS),
    "sampling: typical_p": everywhere(WORKS),
    "sampling: epsilon, eta": everywhere(WORKS),
    "sampling: several answers": everywhere(WORKS),
    "`repetition_penalty`, `no_repeat_ngram_size`": everywhere(WORKS),
    "`bad_words_ids`, `suppress_tokens`": everywhere(WORKS),
    "`sequence_bias`": everywhere(WORKS),
    "`exponential_decay_length_penalty`": everywhere(WORKS),
    "`forced_eos_token_id`": everywhere(WORKS),
    "`stop_strings`": everywhere(WORKS),
    "`logits_processor`": everywhere(WORKS),
    "`stopping_criteria`": everywhere(WORKS),
    "`max_time`": everywhere(WORKS),
    "`streamer`": everywhere(WORKS),
    "scores, logits and hidden states": everywhere(WORKS),
    "`renormalize_logits`": everywhere(WORKS),
    "`watermarking_config`": everywhere(WORKS),
    "`prompt_lookup_num_tokens`": everywhere(WORKS),
    "`assistant_model`": everywhere(WORKS),
    "`assistant_early_exit`": everywhere(WORKS),
    "`guidance_scale`": {"ChatGLM-6B": "Pass negative_prompt_ids", "ChatGLM3-6B": WORKS, "Llama": WORKS},
    "`guidance_scale`, `negative_prompt_ids`": everywhere(WORKS),
    "`inputs_embeds`": everywhere(WORKS),
    "`input_ids` and `inputs_embeds`": everywhere(WORKS),
    "`prefill_chunk_size`": {"ChatGLM-6B": PIECES, "ChatGLM3-6B": WORKS, "Llama": WORKS},
    "`token_healing`": {
        "ChatGLM-6B": PIECES,
        "ChatGLM3-6B": "where() received an invalid combination of arguments",  # it has no bos
        "Llama": WORKS,
    },
    "`generate_batch`": {
        "ChatGLM-6B": "Continuous batching (generate_batch) lets no token see what stands behind it",
        "ChatGLM3-6B": WORKS,
        "Llama": WORKS,
    },
}


def peft_rows() -> dict[str, Row]:
    """A row of each type of adapter that the installed peft has."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {kind.value: PEFT.get(kind.value, everywhere(WORKS)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING}


def table(title: str, rows: Mapping[str, Row]) -> str:
    """A table of docs/ecosystem.md, in Markdown."""
    lines = [[title, *FAMILIES], ["---"] * (1 + len(FAMILIES))]
    for name, row in rows.items():
        lines.append([name, *(cell if cell == WORKS else f"*{cell}*".replace("<", r"\<") for cell in row.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_tables(page: str) -> str:
    """The page with its tables as they are to be, each between two comments of its name."""
    for title, rows in {"peft": peft_rows(), "trl": TRL, "generate()": GENERATE}.items():
        first, last = f"<!-- {title} -->", f"<!-- /{title} -->"
        written = f"{first}\n{table(title, rows)}\n{last}"
        page, count = re.subn(f"{re.escape(first)}.*?{re.escape(last)}", lambda _, text=written: text, page, flags=re.S)
        assert count == 1, f"{DOCS} has no place for {title}"
    return page


if __name__ == "__main__":
    DOCS.write_text(with_tables(DOCS.read_text("utf-8")), "utf-8")
