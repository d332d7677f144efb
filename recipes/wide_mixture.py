"""Draws the problems that the fourth stage of `arithmetic_wide` mixes in.

python recipes/wide_mixture.py runs
"""

from __future__ import annotations

import sys

from glmtune.commands import data

COMMON = [
    "task.style=steps",
    "task.operators=+-*/",
    "task.trailing_zeros=0",
    "task.round_all=true",
    "task.working_decimals=6",
    "task.longest_working=1500",
    "task.equals_sign=always",
]
SMALL = [
    "task.kinds=[integer, integer, integer, decimal]",
    "task.digits=3",
    "task.operand_decimals=3",
    "task.num_operands={2: 5, 3: 4, 4: 3, 5: 2, 6: 1}",
    "task.brackets=0.5",
    "task.signed_brackets=0.2",
    "task.negatives=0.3",
    "task.percents=0.15",
    "task.fractions=0.4",
]
DECIMALS = [
    "task.kinds=[decimal]",
    "task.maximum=9999",
    "task.operand_decimals=10",
    "task.num_operands={2: 3, 3: 4, 4: 3, 5: 2, 6: 1}",
    "task.brackets=0.3",
    "task.signed_brackets=0.1",
    "task.negatives=0.5",
    "task.percents=0.4",
]


def main(folder: str) -> None:
    """Write both files."""
    for name, count, settings in (("small", 20_000, SMALL), ("decimals", 15_000, DECIMALS)):
        file = f"{folder}/arithmetic-wide-{name}.jsonl"
        data.run("arithmetic", count, file, overrides=["seed=5", *COMMON, *settings])


if __name__ == "__main__":
    main(*sys.argv[1:])
