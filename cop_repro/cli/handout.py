# SPDX-License-Identifier: Apache-2.0
"`cop handout`: the lessons of the course without their solutions and outputs."

import shutil
from pathlib import Path

from cop_repro.cli._assets import checkout
from cop_repro.cli._lessons import lesson_files, read_lesson, without_solutions
from cop_repro.core import CopError, atomic_folder, check_output_folder, did_you_mean, needs_extra

HELP = "copy the lessons of the course without their solutions, to be handed out"


def add_arguments(parser) -> None:
    "Which lessons, and where to write."
    parser.add_argument("lessons", nargs="*", help="stems, such as 0_hear_it; default: all")
    parser.add_argument("-o", "--output", default="handout", help="folder to make")


def run(args) -> int:
    "Write the lessons, and the module that they begin with."
    root = checkout()
    if root is None:
        raise CopError("the course is part of the repository, not of the package: use a clone")
    folder = check_output_folder(args.output)
    if folder.is_dir() and any(folder.iterdir()):
        raise CopError(f"{folder} is not empty: give another folder, or remove it")
    lessons = _chosen(root / "nbs" / "course", args.lessons)
    with needs_extra("pipeline"):
        import nbformat

    with atomic_folder(folder) as temporary:
        for path in lessons:
            nbformat.write(without_solutions(read_lesson(path)), temporary / path.name)
        shutil.copyfile(root / "nbs" / "course" / "start.py", temporary / "start.py")
    print(f"{folder}: {len(lessons)} lessons without solutions, and start.py, which they need")
    return 0


def _chosen(folder: Path, names: list[str]) -> list[Path]:
    "The lessons that were asked for."
    known = {path.stem: path for path in lesson_files(folder)}
    for name in names:
        if name not in known:
            raise CopError(f"no lesson {name!r}{did_you_mean(name, known)}")
    return [known[name] for name in names or known]
