# SPDX-License-Identifier: Apache-2.0
"""Slides from a notebook: nbconvert groups the cells, and one template makes them a page.

The page is one file that loads nothing: pictures and sounds are part of the notebook, formulas are
MathML, and a short script turns the pages. (nbconvert's own template loads reveal.js, MathJax,
RequireJS and jQuery from the network.)
"""

import base64
import os
import re
import tempfile
from pathlib import Path

from cop_repro.cli._formulas import to_mathml
from cop_repro.cli._kernel import kernel_manager
from cop_repro.cli._site import CODE_OR_FORMULA
from cop_repro.core import BadInput, CopError, needs_extra

MARK = "formula{}end"  # stands for a formula while Markdown is converted
LOADED = re.compile(
    r"""<(?:script|img|audio|video|source|link|iframe)\b[^>]*?(?:src|href)=["'](?!data:)"""
)


def read_slides(path: Path):  # a notebook of nbformat
    "A notebook with slide types."
    with needs_extra("pipeline"):
        import nbformat

    try:
        notebook = nbformat.read(path, 4)
    except (ValueError, AttributeError, nbformat.ValidationError) as error:
        raise BadInput(f"{path.name} is no notebook: {type(error).__name__}") from None
    kinds = [cell.metadata.get("slideshow", {}).get("slide_type") for cell in notebook.cells]
    if "slide" not in kinds:
        raise BadInput(f"no cell of {path.name} begins a slide: give one the slide type `slide`")
    return notebook


def execute(
    notebook,  # of nbformat; its cells get their outputs
    path: Path,  # its file
) -> None:
    "Run a notebook in its own folder, under this Python."
    with needs_extra("pipeline"):
        from nbconvert.preprocessors import CellExecutionError, ExecutePreprocessor

    runner, place = ExecutePreprocessor(timeout=600), {"metadata": {"path": str(path.parent)}}
    with tempfile.TemporaryDirectory() as settings:
        quiet = Path(settings, "profile_default", "ipython_kernel_config.py")
        quiet.parent.mkdir()
        quiet.write_text("c.Application.log_level = 'ERROR'\n", "utf-8")
        os.environ["IPYTHONDIR"] = settings  # no start-up files of a user
        try:
            runner.preprocess(notebook, place, km=kernel_manager())
        except CellExecutionError as error:
            raise CopError(f"{path.name} fails: {error.ename}: {error.evalue}") from None


def split_formulas(
    text: str,  # Markdown
) -> tuple[str, list[str]]:  # Markdown with a mark for each formula, and the formulas as MathML
    "Take the formulas out, because Markdown would read their underscores and stars."
    found = []

    def take(match: re.Match) -> str:
        if match["code"]:
            return match[0]
        latex, display = match[0].strip("$"), match[0].startswith("$$")
        found.append(to_mathml(latex, display))
        return MARK.format(len(found) - 1)

    return CODE_OR_FORMULA.sub(take, text), found


def markdown_html(text: str) -> str:
    "A Markdown cell as HTML, its formulas as MathML."
    with needs_extra("pipeline"):
        from nbconvert.filters import markdown2html

    marked, formulas = split_formulas(text)
    made = markdown2html(marked)
    for number, formula in enumerate(formulas):
        made = made.replace(MARK.format(number), formula)
    return made


def slides_html(
    notebook,  # executed; its cells have slide types (`slideshow` in their metadata)
    template: Path,  # a Jinja template
    font: Path,  # WOFF2 with a MATH table, for the formulas
) -> str:
    "One page that holds everything it needs."
    with needs_extra("pipeline"):
        from nbconvert import SlidesExporter

    exporter = SlidesExporter(template_file=str(template))
    exporter.register_filter("markdown_html", markdown_html)
    titles = [found[1] for cell in notebook.cells if (found := re.match("# (.+)", cell.source))]
    given = {"font": base64.b64encode(font.read_bytes()).decode(), "title": [*titles, "Slides"][0]}
    page, _ = exporter.from_notebook_node(notebook, given)
    if found := LOADED.search(page):
        raise BadInput(f"a slide would load a file: {found[0][:80]}")
    return page
