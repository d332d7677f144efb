"""Tables of the pages in docs/, made of the files in `results/` and put there: `python benchmarks/tables.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
# The official table of ChatGLM-6B (https://github.com/THUDM/ChatGLM-6B), GB: inference, fine-tuning.
OFFICIAL = {16: (13, 14), 8: (8, 9), 4: (6, 7)}


def read(name: str) -> dict[str, Any]:
    """A file of results."""
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return result


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# Commands of `startup.json` that are answered with what is wrong with them.
REFUSALS = [
    f"glmtune {words}"
    for words in (
        "train training.lr=1",
        "train training.output_dir=taken",
        "train task.name=instructions task.file=nowhere.jsonl",
        "train task.name=instructions task.file=faulty.jsonl",
        "evaluate nano --data faulty.jsonl",
        "chat runs/nowhere",
    )
]


def overview_table() -> str:
    """The figures that have no table of their own, with the files that they come from."""
    demo = {row["examples"]: row["accuracy"] for row in read("demo")["rows"]}
    speeds = {row["decoder"]: row["ratio"] for row in read("decode_throughput")["rows"]}
    data, load = read("data"), read("load_cpu")
    times, peaks = load["load_and_touch_against_plain"].values(), load["peak_against_plain"].values()
    whole, packed = read("packed_full_size")["rows"]
    startup = {row["command"]: row["median_s"] for row in read("startup")["rows"]}
    rows = [
        (
            "`+` and `-` on 1,000 held-out problems made and answered by Python's `decimal` instead of this project",
            f"{demo['after, foreign + and -']:.1%}",
            "demo",
        ),
        ("minutes of the demo's training", f"{read('demo')['training_seconds'] / 60:.1f}", ""),
        (
            "training, against a plain `Trainer` + peft loop",
            f"{read('train_throughput')['median_ratio']:.2f}x the tokens/s",
            "train_throughput",
        ),
        (
            "decoding in batches of 8 and 64, against `model.generate` one by one",
            ", ".join(f"{speeds[f'glmtune, batch {size}']:.1f}x" for size in (8, 64)),
            "decode_throughput",
        ),
        (
            "largest difference from the original ChatGLM-6B code, logits up to 20, fp32",
            f"{read('parity')['worst']:.1e}",
            "parity",
        ),
        (
            "records of alpaca_zh encoded a second with ChatGLM-6B's own tokenizer, the first time and from then on",
            ", ".join(f"{data['encoding'][f'encoding_{time}_records_per_s']:,.0f}" for time in ("first", "kept")),
            "data",
        ),
        (
            "packed rows against padded batches, and against batches of similar length, real tokens/s of training nano",
            ", ".join(f"{data['packing'][f'packed_against_{other}']:.2f}x" for other in ("padded", "grouped")),
            "",
        ),
        (
            "resident memory of 250,000 records of 200 tokens: read, encoded, gone through",
            f"{data['many_records']['peak_gib']:.2f} GiB",
            "",
        ),
        (
            "loading ChatGLM-6B (safetensors) and ChatGLM3-6B (safetensors, bin) at full size, every weight read once, "
            "against plain `from_pretrained` of a native class",
            f"{', '.join(f'{time:.2f}x' for time in times)} of its time; {max(peaks):.2f}x of its peak",
            "load_cpu",
        ),
        (
            "ChatGLM-6B at full size and 4 bits on two cores, random weights: loading fp16 files, loading a packed "
            "copy (`glmtune export --bits 4`), one token",
            f"{whole['touched_s']:.0f} s, {packed['touched_s']:.1f} s, {whole['token_s']:.2f} s",
            "packed_full_size",
        ),
        (
            "`import glmtune`, `glmtune --help`",
            ", ".join(f"{startup[command]:.2f} s" for command in ("import glmtune", "glmtune --help")),
            "startup",
        ),
        (
            "what is wrong with a setting, a folder or a file of records is told, the slowest of six commands",
            f"{max(startup[command] for command in REFUSALS):.2f} s",
            "",
        ),
    ]
    link = "[{0}.json](../benchmarks/results/{0}.json)"
    return markdown(
        ["what", "figure", "from"], [[what, figure, file and link.format(file)] for what, figure, file in rows]
    )


def general_table() -> str:
    """What models know before any training."""
    head = ["model", "choices", "by guessing", "short answers", "arithmetic"]
    rows = []
    for row in read("forgetting")["rows"]:
        parts = [f"{right} of {n}" for right, n in (row[name] for name in ("choices", "short answers", "arithmetic"))]
        rows.append([row["model"], parts[0], f"{row['choices'][1] / 4:.0f}", *parts[1:]])
    return markdown(head, rows)


def forgetting_table() -> str:
    """A run at the default rate and a planted loss, with the verdict on each."""
    head = ["run", "rate", "task, before → after", "choices", "short answers", "arithmetic", "verdict", "decision"]
    rows = []
    for run in read("forgetting")["runs"]:
        parts = [
            f"{run['before'][name][0]} → {run['after'][name][0]} of {run['after'][name][1]}"
            for name in ("choices", "short answers", "arithmetic")
        ]
        task = " → ".join(f"{accuracy:.1%}" for accuracy in run["accuracy"])
        decision = run["headline"].partition(":")[0]
        rows.append([run["run"], f"{run['learning_rate']:.1e}", task, *parts, run["level"], decision])
    return markdown(head, rows)


def methods_table() -> str:
    """Each method on the same task."""
    head = ["method", "right before", "right after", "`+`", "`-`", "`*`", "`/`", "learn", "of all", "seconds", "saved"]
    rows = [
        [
            row["method"],
            f"{row['before']:.1%}",
            f"{row['after']:.1%}",
            *(f"{row[operator]:.1%}" for operator in "+-*/"),
            f"{row['trainable']:,}",
            f"{row['share']:.1%}",
            f"{row['seconds']:.0f}",
            f"{row['adapter_kib']:,.0f} KiB",
        ]
        for row in read("methods")["rows"]
    ]
    return markdown(head, rows)


def memory_table(name: str = "memory_cpu_full_depth") -> str:
    """ChatGLM-6B at its real size: peak of training and inference, the estimate, and plain libraries."""
    rows = read(name)["rows"]
    plain = {key_of(row): row for row in rows if row["who"] == "plain" and row["peak_gib"]}
    table = []
    for row in rows:
        if row["who"] != "ours" or not row["peak_gib"]:
            continue
        training = row["method"] != "inference"
        other = plain.get(key_of(row))
        bits = str(row["bits"]) + (", embedding 8" if row["quantize_embedding"] else "")
        table.append(
            [
                row["method"],
                bits,
                f"{row['batch']} x {row['length']}",
                f"{row['peak_gib']:.2f}",
                f"{row['estimate_gib']:.2f} ({row['estimate_error']:+.1%})",
                f"{other['peak_gib']:.2f}" if other else "",
                f"{row['load_gib']:.2f}",
                f"{other['load_gib']:.2f}" if other else "",
                f"{other['seconds'] / row['seconds']:.2f}x" if other else "",
                str(OFFICIAL[row["bits"]][training]),
            ]
        )
    head = ["", "bits", "tokens", "peak", "estimate", "plain", "loading", "plain", "speed", "official, GB"]
    return markdown(head, table)


def speed_table(name: str = "memory_cpu") -> str:
    """Ours against plain libraries at reduced depth: speed and peak."""
    result = read(name)
    speed, peak = result["speed_against_plain"], result["peak_against_plain"]
    rows: dict[str, dict[str, str]] = {}
    for key in speed:
        method, bits, shape = key.split(", ", 2)
        rows.setdefault(f"{method}, {bits}", {})[shape] = f"{speed[key]:.2f}x, {peak[key]:.2f}"
    shapes = list(dict.fromkeys(shape for row in rows.values() for shape in row))
    return markdown(["", *shapes], [[name, *(row.get(shape, "") for shape in shapes)] for name, row in rows.items()])


def demo_table() -> str:
    """The demo: each operator and kind of numbers, before and after."""
    shares = {row["examples"]: row for row in read("demo")["rows"]}
    head = ["", *(f"{kind}, {when}" for kind in ("integers", "decimals") for when in ("before", "after"))]
    rows = [
        [
            f"`{operator}`",
            *(
                f"{shares[f'{when}, {operator} {kind}']['accuracy']:.1%}"
                for kind in ("integer", "decimal")
                for when in ("before", "after")
            ),
        ]
        for operator in "+-*/"
    ]
    return markdown(head, rows)


def preferences_table() -> str:
    """What nano gains from pairs of its own answers, and from further targets."""
    rows = [
        [
            row["way"],
            f"{row['seconds']:.0f}",
            str(row["steps"]),
            f"{row['right']:.1%} ({row['low']:.1%} to {row['high']:.1%})",
            f"{row['preferred']:.1%}",
        ]
        for row in read("preferences")["rows"]
    ]
    return markdown(["learned from", "s", "steps", "right, of 1,000 held-out (95 %)", "right answer likelier"], rows)


def styles_table() -> str:
    """Direct answers, steps and the calculator, within the lengths that were trained and one and two digits beyond."""
    result = read("styles")
    trained = 4

    def share(style: str, longest: int, name: str = "accuracy", operator: str | None = None) -> str:
        chosen = [
            row
            for row in result["rows"]
            if row["style"] == style
            and operator in (None, row["operator"])
            and (
                max(row["left"], row["right"]) == longest
                if longest > trained
                else max(row["left"], row["right"]) <= trained
            )
        ]
        return f"{sum(row[name] * row['n'] for row in chosen) / sum(row['n'] for row in chosen):.1%}"

    head = [
        "",
        "`+`",
        "`-`",
        "`*`",
        "`/`",
        "5 digits, all",
        "6 digits, all",
        "faithful calls, 4, 5, 6 digits",
        "minutes",
    ]
    rows = []
    for style in ("direct", "steps", "tool"):
        calls = ", ".join(share(style, longest, "faithful_calls") for longest in (4, 5, 6)) if style == "tool" else ""
        seconds = result["training_seconds"][style]
        within = [share(style, trained, operator=operator) for operator in "+-*/"]
        rows.append([style, *within, share(style, 5), share(style, 6), calls, f"{seconds / 60:.1f}"])
    return markdown(head, rows)


def long_table() -> str:
    """Long sums and differences by their digits."""
    rows = read("long_sums")["rows"]
    lengths = sorted({row["left"] for row in rows})
    shares = {(row["operator"], row["left"]): f"{row['accuracy']:.0%}" for row in rows}
    return markdown(
        ["digits", *map(str, lengths)],
        [[f"`{operator}`", *(shares[operator, length] for length in lengths)] for operator in "+-"],
    )


def wide_table(name: str = "wide") -> str:
    """arithmetic-wide on problems of MathGLM's kind."""
    rows = read(name)["rows"]
    head = ["problems", "n", "right", "95 %"]
    return markdown(
        head, [[r["problems"], str(r["n"]), f"{r['right']:.1%}", f"{r['low']:.1%} to {r['high']:.1%}"] for r in rows]
    )


def memory_real_table() -> str:
    """Peaks on the real model and what was expected."""
    rows = [
        [
            row["what"],
            f"`{row['settings']}`",
            f"{row['peak_gib']:.2f}",
            f"{row['estimate_gib']:.2f} ({row['error']:+.1%})",
        ]
        for row in read("memory_real")["rows"]
    ]
    return markdown(["", "settings", "peak", "estimate"], rows)


def demo_real_table() -> str:
    """The demo on the real model: each operator, before and after."""
    shares = {row["examples"]: row["accuracy"] for row in read("demo_real")["rows"]}
    rows = [
        [f"`{name}`" if name != "all" else name, *(f"{shares[f'{when}, {name}']:.1%}" for when in ("before", "after"))]
        for name in ("+", "-", "all")
    ]
    return markdown(["", "before", "after"], rows)


def prefix_table() -> str:
    """P-Tuning v2 beside LoRA: the first loss against the bare model's, and what was learned."""
    result = read("prefix")
    rows = []
    for run, first in result["first_losses"].items():
        own = [row for row in result["rows"] if row["run"] == run]
        loss, accuracy = ([row[name] for row in own if row[name] is not None][-1] for name in ("loss", "accuracy"))
        rows.append([run, f"{first['ratio']:.2f}", f"{loss:.2f}", f"{accuracy:.0%}"])
    steps = result["settings"]["steps"]
    return markdown(["", "first loss / bare model's", f"loss after {steps} steps", "right"], rows)


def speed_real_table() -> str:
    """The real model against plain libraries: training, and decoding one stream at 8 and 4 bits."""
    trained = read("train_throughput_real")
    rows = [
        [
            "LoRA in bfloat16, tokens a CPU-second, against plain `Trainer` + peft",
            f"{trained['median_speed']:.2f}x, peak {trained['median_peak']:.2f}",
        ]
    ]
    decoded = {(row["who"], row["bits"]): row for row in read("decode_quantized")["rows"]}
    for bits in (8, 4):
        ours, theirs = decoded["glmtune", bits], decoded["bitsandbytes", bits]
        rows.append(
            [
                f"one stream at {bits} bits, tokens a CPU-second, against ours at 16 bits and against bitsandbytes",
                f"{ours['cpu_ratio_to_16']:.2f}x, {ours['tokens_per_cpu_s'] / theirs['tokens_per_cpu_s']:.2f}x",
            ]
        )
    return markdown(["SmolLM2-135M-Instruct", "figure"], rows)


def laptop_table() -> str:
    """GGUF files of the demo on the real model, as llama.cpp runs them."""
    rows = [
        [
            f"`{row['precision']}`",
            f"{row['accuracy']:.1%} ({row['low']:.1%} to {row['high']:.1%})",
            f"{row['size_mib']:.0f}",
            f"{row['memory_gib']:.2f}",
            f"{row['llama_cpp_tokens_per_cpu_s']:.1f}",
            f"{row['ours_tokens_per_cpu_s']:.1f} ({row['ours_against_llama_cpp']:.2f}x)",
        ]
        for row in read("laptop")["rows"]
    ]
    head = ["precision", "right (95 %)", "MiB", "memory, GiB", "tokens a CPU-second", "`--engine torch`"]
    return markdown(head, rows)


def serving_table() -> str:
    """The engine and the server under load."""
    rows = []
    for row in read("serving")["rows"]:
        times = [row[name] for name in ("p50_ms", "p95_ms", "p99_ms")]
        rows.append(
            [
                row["measured"],
                row["who"],
                "" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:,.0f}",
                "" if row["ratio"] is None else f"{row['ratio']:.2f}x",
                "" if times[0] is None else " / ".join(f"{time:,.0f}" for time in times),
                "" if row["same"] is None else f"{row['same']} of {row['answers']}",
            ]
        )
    head = ["", "", "tokens/s", "ratio", "first token, ms: p50 / p95 / p99", "answers as alone"]
    return markdown(head, rows)


def rejection_table() -> str:
    """A model after a little supervised fine-tuning, and after equal time of more of it or of its own right answers."""
    rows = [
        [
            row["arm"],
            str(row["steps"]),
            "" if not row["rounds"] else f"{row['rounds']}, {row['first round']:.2f} to {row['last round']:.2f}",
            f"{row['right']:.3f} ({row['interval'][0]:.3f}-{row['interval'][1]:.3f})",
            f"{row['pass@1']:.3f}",
            f"{row['pass@8']:.3f}",
        ]
        for row in read("rejection")["rows"]
    ]
    head = ["", "steps", "rounds, their pass@1", "right (95 %)", "pass@1", "pass@8"]
    return markdown(head, rows)


def rl_table() -> str:
    """What each arm learns from the same weights in the same processor time."""
    result = read("rl")
    rows = [
        [
            row["arm"],
            f"{row['right before']:.3f}",
            f"{row['right after']:.3f}",
            f"{row['ci95'][0]:.3f} to {row['ci95'][1]:.3f}",
            f"{result['pass_at_8_before']:.3f}",
            f"{row['pass@8 after']:.3f}",
            str(row["steps"]),
            f"{row['wall s']:.0f}",
        ]
        for row in result["rows"]
    ]
    return markdown(
        ["arm", "right before", "right after", "95 %", "pass@8 before", "after", "steps", "s on the clock"], rows
    )


def ray_table() -> str:
    """Records answered on Ray, a worker killed on the way, against plain predict."""
    result = read("ray_predict")
    rows = [[row["who"], f"{row['seconds']:.0f} s", f"{row['records_per_s']:,.0f}"] for row in result["rows"]]
    counts = ("lost", "doubled", "out_of_order", "other_answers")
    told = ", ".join(f"{result[name]} {name.replace('_', ' ')}" for name in counts)
    rows.append([f"of {result['settings']['records']:,} answers", told, ""])
    return markdown(["nano", "time, start included", "records/s"], rows)


def devices_table() -> str:
    """Gradients of several processes against those of one, by method."""
    rows = [row for row in read("devices_cpu")["rows"] if row["processes"] > 1]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    ways: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        ways.setdefault((row["processes"], row["how"]), []).append(row)
    lines = [
        [f"{count}, {how}", f"{found[0]['local_share']:.1%}", *(f"{row['gradients_apart']:.1e}" for row in found)]
        for (count, how), found in ways.items()
    ]
    return markdown(["processes", "weights on each", *methods], lines)


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What ours and plain have in common."""
    return tuple(row[name] for name in ("method", "bits", "batch", "length", "target", "quantize_embedding"))


def put(name: str, table: str) -> None:
    """Let a table stand in the pages that have its marks."""
    for page in DOCS.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if begin in text and end in text:
            before, _, rest = text.partition(begin)
            page.write_text(f"{before}{begin}{table}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


if __name__ == "__main__":
    tables = (
        overview_table,
        general_table,
        forgetting_table,
        methods_table,
        memory_table,
        speed_table,
        memory_real_table,
        demo_table,
        styles_table,
        preferences_table,
        long_table,
        wide_table,
        demo_real_table,
        prefix_table,
        speed_real_table,
        laptop_table,
        serving_table,
        ray_table,
        devices_table,
        rejection_table,
        rl_table,
    )
    for table in tables:
        try:
            text = table()
            put(table.__name__.removesuffix("_table"), text)
            print(text, end="\n\n")
        except FileNotFoundError as error:
            print(f"{table.__name__}: {error.filename} is yet to be measured\n")
