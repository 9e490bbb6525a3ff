# SPDX-License-Identifier: Apache-2.0
"`cop slides`: a lecture of the course as one page of slides, with sound and without a network."

from pathlib import Path

from cop_repro.cli._assets import checkout
from cop_repro.core import CopError, atomic_file, check_output_file

HELP = "write the lecture notebook of the course as slides, one HTML file"


def add_arguments(parser) -> None:
    "Which notebook, and where to write."
    parser.add_argument(
        "notebook", nargs="?", help="a notebook with slide types; default: nbs/course/lecture.ipynb"
    )
    parser.add_argument("-o", "--output", default="slides.html", help="file to write")


def run(args) -> int:
    "Execute the notebook and write its slides."
    root = checkout()
    if root is None:
        raise CopError("the course is part of the repository, not of the package: use a clone")
    path = Path(args.notebook) if args.notebook else root / "nbs" / "course" / "lecture.ipynb"
    if not path.is_file():
        raise CopError(f"{path} is no file: give a notebook")
    output = check_output_file(args.output)
    from cop_repro.cli._slides import execute, read_slides, slides_html

    notebook = read_slides(path)
    execute(notebook, path.resolve())
    font = root / "docs" / "_static" / "stix-two-math.woff2"
    page = slides_html(notebook, root / "docs" / "slides.html.j2", font)
    with atomic_file(output) as temporary:
        temporary.write_text(page, "utf-8")
    count, sounds = page.count('class="slide"'), page.count("<audio")
    print(f"{output}: {count} slides with {sounds} players; open it in a browser")
    return 0
