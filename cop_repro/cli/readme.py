# SPDX-License-Identifier: Apache-2.0
"`cop readme`: the claims in README.md and the numbers in docs/results.md, from reports/."

from pathlib import Path

from cop_repro.cli._marks import refresh
from cop_repro.core import project_root, read_json
from cop_repro.parameters import load_params

HELP = "write (or check) the tables of README.md and docs/results.md"


def add_arguments(parser) -> None:
    "Write or check."
    parser.add_argument(
        "--check", action="store_true", help="fail if they are stale; write nothing"
    )


def run(args) -> int:
    "Write each table between its two marks, or fail where one is stale."
    root = project_root()
    for page, mark, table in _tables(root):
        refresh(root, page, mark, table, "cop readme", args.check)
    return 0


def _tables(root: Path) -> list[tuple[str, str, str]]:
    "(page, mark, table) of every table that is made from the reports."
    from cop_repro.evaluation.claims import read_results
    from cop_repro.evaluation.report import (
        claims_table,
        comparison_table,
        numbers_table,
        verdict_page,
    )
    from cop_repro.evaluation.tables import load_tables

    reports = root / "reports"
    results = read_results(reports / "results.json").lines
    verdicts = read_json(reports / "verdicts.json")
    definitions = load_params(root / load_params(root / "params.yaml")["report"]["tables"])
    reasons = load_params(root / "refs" / "reasons.yaml")
    tables = load_tables(definitions)
    return [
        ("README.md", "claims", claims_table(verdicts, reasons)),
        ("docs/results.md", "verdicts", verdict_page(verdicts, reasons).strip()),
        ("docs/results.md", "numbers", numbers_table(results, tables)),
        ("docs/results.md", "pianos", comparison_table(verdicts, tables, "C6")),
    ]
