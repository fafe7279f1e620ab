"""``python -m bench.evidence``: makes the results of a table, or the page from all results."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.evidence.pages import write_page
from bench.evidence.registry import TABLES
from bench.evidence.running import Runner
from sre_triton.training.runs.interruption import Interrupted

RESULTS = Path(__file__).parents[1] / "results" / "evidence"
DATA_VARIABLE = "EVIDENCE_DATA"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.evidence", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make what is missing of a table's results, then the page")
    run.add_argument("--networks", nargs="+", default=(), help="those to make (default: all of the table)")
    run.add_argument("--seeds", nargs="+", type=int, default=(), help="those to make (default: all of the table)")
    costs = commands.add_parser("costs", help="measure a table's costs anew, on a quiet machine, then make the page")
    for command in (run, costs):
        command.add_argument("table", choices=sorted(TABLES))
        command.add_argument(
            "--data",
            type=Path,
            default=os.environ.get(DATA_VARIABLE),
            help=f"folder of the published data (default: the variable {DATA_VARIABLE})",
        )
        command.add_argument(
            "--work", type=Path, default=Path("build/evidence"), help="folder of trainings (%(default)s)"
        )
    tables = commands.add_parser("tables", help="make the page and its figures from the results that there are")
    for command in (run, costs, tables):
        command.add_argument("--results", type=Path, default=RESULTS, help="folder of results and page")
    options = parser.parse_args(arguments)
    try:
        if options.command != "tables":
            if options.data is None:
                parser.error(f"--data is needed, or the variable {DATA_VARIABLE}")
            table = TABLES[options.table]
            runner = Runner(table, options.data, options.results, options.work, lambda line: print(line, flush=True))
            if options.command == "run":
                runner.everything(options.networks, options.seeds)
            else:
                runner.costs()
        write_page(TABLES.values(), options.results)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
