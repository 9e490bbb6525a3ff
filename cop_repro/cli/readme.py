# SPDX-License-Identifier: Apache-2.0
"`cop readme`: the README's results table, from reports/results.json."

import json

from cop_repro.core import CopError, project_root
from cop_repro.parameters import load_params

HELP = "write (or check) the README's results table"

BEGIN = "<!-- results -->"
END = "<!-- end of results -->"


def add_arguments(parser) -> None:
    "Write or check."
    parser.add_argument("--check", action="store_true")


def run(args) -> int:
    "Write the results table into README.md, between its two marks, or fail where it is stale."
    from cop_repro.evaluation.report import readme_table
    from cop_repro.evaluation.tables import load_tables

    root = project_root()
    path = root / "README.md"
    text = path.read_text()
    results = json.loads((root / "reports" / "results.json").read_text())
    definitions = load_params(root / load_params(root / "params.yaml")["report"]["tables"])
    made = _with_table(text, readme_table(results, load_tables(definitions)))
    if not args.check:
        path.write_text(made)
    elif made != text:
        raise CopError("the README's table is not that of reports/results.json: run `cop readme`")
    return 0


def _with_table(text: str, table: str) -> str:
    "The README with another table."
    head, _, rest = text.partition(f"{BEGIN}\n")
    _, _, tail = rest.partition(END)
    if not tail:
        raise CopError(f"README.md lacks the marks '{BEGIN}' and '{END}'")
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"
