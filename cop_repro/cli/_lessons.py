# SPDX-License-Identifier: Apache-2.0
"""The parts of a lesson of the course.

A cell that begins with `# Exercise N` is to be written by the student; the solution is a Python
block with the same first line, in a folded `<details>` element.
"""

import re
from pathlib import Path

from cop_repro.core import CopError, needs_extra

FOLDED = re.compile(r"\n*<details>.*?</details>\n*", re.DOTALL)
SOLUTION = re.compile(r"^```python\n(# Exercise \d+\b.*?)^```", re.DOTALL | re.MULTILINE)
EXERCISE = re.compile(r"# Exercise (\d+)\b")


def lesson_files(
    folder: Path,  # nbs/course
) -> list[Path]:
    "The lessons in their order."
    return sorted(path for path in folder.glob("*.ipynb") if path.stem[0].isdigit())


def read_lesson(path: Path):  # a notebook of nbformat
    "One lesson."
    with needs_extra("pipeline"):
        import nbformat

    return nbformat.read(path, 4)


def exercises(notebook) -> dict[int, int]:  # number -> index of the cell
    "The cells that a student writes."
    found = {}
    for index, cell in enumerate(notebook.cells):
        number = EXERCISE.match(cell.source) if cell.cell_type == "code" else None
        if number:
            found[int(number[1])] = index
    return found


def solutions(notebook) -> dict[int, str]:  # number -> code
    "The code of the folded solutions."
    folded = [
        block
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for part in FOLDED.findall(cell.source)
        for block in SOLUTION.findall(part)
    ]
    return {int(EXERCISE.match(code)[1]): code.rstrip() for code in folded}


def with_solutions(notebook):  # the same notebook
    "A lesson in which every exercise is solved."
    cells, solved = exercises(notebook), solutions(notebook)
    if set(cells) != set(solved):
        raise CopError(f"exercises {sorted(cells)} have solutions {sorted(solved)}")
    for number, index in cells.items():
        notebook.cells[index].source = solved[number]
    return notebook


def without_solutions(notebook):  # the same notebook
    "A lesson to be handed out: nothing is folded, nothing has been executed."
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = FOLDED.sub("\n\n", cell.source).strip()
        else:
            cell.outputs, cell.execution_count = [], None
    notebook.cells = [cell for cell in notebook.cells if cell.source]
    return notebook
