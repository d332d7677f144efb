"""`glmtune predict`: answer a file of prompts."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from glmtune.commands._arguments import add_ray, add_settings, add_target, add_trust, cluster_of, trust_of
from glmtune.terminal import counted, say
from glmtune.trust import REMEMBERED, Trust

if TYPE_CHECKING:
    from glmtune.cluster import Cluster
    from glmtune.prediction import OnError
    from glmtune.resolution import Target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the files, and what becomes of records that cannot be answered."""
    add_target(parser)
    parser.add_argument(
        "--input", required=True, metavar="FILE", help="records of any known format: JSONL, CSV, Parquet, a folder"
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="OUT",
        help="the records again, with completion: .jsonl, .json, .csv, .tsv, .parquet or .arrow",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    parser.add_argument("--resume", action="store_true", help="go on with an output that was cut off")
    parser.add_argument(
        "--on-error",
        choices=("stop", "record"),
        default="stop",
        help="at a record that cannot be answered: stop before any is (default), or give it an `error`",
    )
    parser.add_argument(
        "--safe-cells", action="store_true", help="in CSV, write as texts what a spreadsheet would run as formulas"
    )
    add_ray(parser)
    add_trust(parser)
    add_settings(parser)


def main(options: argparse.Namespace) -> None:
    """Predict and print how many."""
    from glmtune.libraries import quiet_libraries

    quiet_libraries()
    how = (options.overwrite, options.resume, options.on_error, trust_of(options), options.safe_cells)
    cluster = cluster_of(options)
    show(run(options.target, options.input, options.output, options.settings, *how, cluster=cluster), options)


def run(
    target: Target,
    input: str,
    output: str,
    overrides: Iterable[str] = (),
    overwrite: bool = False,
    resume: bool = False,
    on_error: OnError = "stop",
    trust: Trust = REMEMBERED,
    safe_cells: bool = False,
    *,
    cluster: Cluster | None = None,
) -> int:
    """Write every record again with its `completion`, in order.

    Args:
        target: run folder, adapter, checkpoint directory, GGUF file, hub name or `nano`.
        input: records in any known format, with or without answers: JSONL, JSON, CSV, Parquet, a folder of these, or a
            data set of the hub.
        output: its suffix says what is written: `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, `.arrow`, `.feather`;
            JSONL without one.
        overrides: `section.setting=value` texts; `data.columns` and `data.encoding` say how the input is read.
        overwrite, resume, on_error, safe_cells, cluster: see `glmtune.prediction.predict`.
        trust: what becomes of code that the target's recipe names.

    Returns:
        The number of records.

    Raises:
        UserError: no such model, malformed records, an output that cannot be written or of another suffix, or a
            cluster that cannot be asked.
    """
    from glmtune.prediction import predict
    from glmtune.resolution import resolve

    how = (overwrite, resume, on_error, safe_cells, cluster)
    return predict(resolve(target, overrides, trust), input, output, *how)


def show(count: int, options: argparse.Namespace) -> None:
    """Print how many records were answered."""
    say(f"{counted(count, 'record')} written to {options.output}")
