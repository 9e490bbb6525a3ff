# SPDX-License-Identifier: Apache-2.0
"Made tables inside pages that are written by hand, each between two marks."

from pathlib import Path

from cop_repro.core import CopError, atomic_file


def with_table(name: str, text: str, mark: str, table: str) -> str:
    "The page with another table between `<!-- mark -->` and `<!-- end of mark -->`."
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    head, _, rest = text.partition(f"{begin}\n")
    _, _, tail = rest.partition(end)
    if not tail:
        raise CopError(f"{name} lacks the marks '{begin}' and '{end}'")
    return f"{head}{begin}\n{table}\n{end}{tail}"


def refresh(root: Path, page: str, mark: str, table: str, command: str, check: bool) -> None:
    "Write the table into its page, or with `check` refuse a stale one and write nothing."
    path = root / page
    text = path.read_text(encoding="utf-8")
    made = with_table(page, text, mark, table)
    if made == text:
        return
    if check:
        raise CopError(f"the {mark} in {page} are stale: run `{command}`")
    with atomic_file(path) as temporary:
        temporary.write_text(made, encoding="utf-8")
