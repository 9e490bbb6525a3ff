# SPDX-License-Identifier: Apache-2.0
"""The source tree of the site: what Sphinx reads when `cop docs` builds it.

The tree has the folders of the repository, so that links between notebooks and Markdown pages hold
in both. `README.md` becomes the home page. A link to another file of the repository gets a page
with the file's text, or downloads it; a link to a folder leads to its README, or becomes plain text
where there is none.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cop_repro.core import BadInput

LAYERS = (
    "data",
    "measure",
    "model",
    "training",
    "judges",
    "systems",
    "evaluation",
    "benchmark",
    "course",
)
PROJECT = ("ARCHITECTURE", "DEVIATIONS", "LIMITATIONS", "LICENSES", "CONTRIBUTING", "CHANGELOG")
MAX_BYTES = 400_000  # of a linked file that is shown as a page

LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^()\s#]+)(#[^()\s]*)?\)")
MENTION = re.compile(r"(?<![\[`])`(?:nbs/)?(?:\w+/)?(\d+[a-z]?_\w+)(?:\.ipynb)?`(?!`)")
EMBEDDED = re.compile(r"""<(?:audio|video|source|img)\b[^>]*?\bsrc=["']([^"':]+)["']""")
CODE_OR_FORMULA = re.compile(
    r"(?P<code>^[ \t]*(`{3,})[^\n]*\n.*?^[ \t]*\2|`[^`\n]+`)|\$\$.+?\$\$|\$(?:[^$\n]|\n(?!\n))+\$",
    re.DOTALL | re.MULTILINE,
)
DIRECTIVE = re.compile(r"^#\s*\|\s*(\w+)(.*)$", re.M)
DEFINITION = re.compile(r"^(?:def|class) ([A-Za-z]\w*)", re.M)
OPENING = re.compile(r"\A(#[^\n]*\n?(?:>[^\n]*\n?)*)")


class Tree(NamedTuple):
    "Where pages come from and go to."

    root: Path  # the repository
    source: Path  # the tree for Sphinx
    extra: Path  # files that raw HTML names, such as sounds, copied as they are
    notebooks: dict[str, Path]  # stem -> library notebook


def prepare(
    root: Path,  # the repository
    source: Path,  # folder to replace with the pages
    extra: Path,  # folder to replace with the files that raw HTML names
) -> list[Path]:  # repository files that have a page
    "Write all pages, the pages they link to, and the tables of contents."
    for folder in (source, extra):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    library = library_notebooks(root / "nbs")
    tree = Tree(root, source, extra, {path.stem: path for path in library})
    notebooks = in_reading_order(library, root / "nbs")
    groups = markdown_pages(root)
    queue = [root / "README.md", *(page for pages in groups.values() for page in pages)]
    queue += [page for pages in notebooks.values() for page in pages]
    pages = []
    while queue:
        page = queue.pop(0)
        if page not in pages:
            pages.append(page)
            queue += _write_page(tree, page)
    for layer, members in notebooks.items():
        if layer:
            _write(source / "nbs" / layer / "index.md", layer_page(layer, members))
    with (source / "index.md").open("a", encoding="utf-8") as home:
        home.write(contents(root, groups, notebooks))
    return pages


def library_notebooks(folder: Path) -> list[Path]:
    "Notebooks that are neither stages nor slides, whose outputs `cop slides` makes."
    hidden = {"stages", ".ipynb_checkpoints", "lecture.ipynb"}
    return [p for p in sorted(folder.rglob("*.ipynb")) if not hidden & set(p.parts)]


def in_reading_order(
    notebooks: list[Path],  # all library notebooks
    folder: Path,  # `nbs`
) -> dict[str, list[Path]]:  # layer -> notebooks by number; the first layer has no name
    "Layers as their numbers ascend; unknown layers come last."
    layers = {"": [], **{name: [] for name in LAYERS}}
    for path in sorted(notebooks, key=lambda p: p.name):
        layers.setdefault("/".join(path.relative_to(folder).parts[:-1]), []).append(path)
    return {layer: paths for layer, paths in layers.items() if paths}


def markdown_pages(root: Path) -> dict[str, list[Path]]:
    "Caption -> Markdown pages beside the README, as far as they exist."
    known = [root / f"{name}.md" for name in PROJECT]
    others = [p for p in sorted(root.glob("*.md")) if p.name != "README.md" and p not in known]
    guides = {"Guides": []}
    for page in as_readme_names_them(root, (root / "docs").rglob("*.md")):
        is_guide = page.parent == root / "docs"
        guides.setdefault("Guides" if is_guide else page.parent.name.capitalize(), []).append(page)
    return {
        **guides,
        "Results": sorted((root / "reports").glob("*.md")),
        "Project": [path for path in known if path.exists()] + others,
    }


def as_readme_names_them(root: Path, pages: Iterable[Path]) -> list[Path]:
    "Pages in the order of the README's links to them; the others follow by name, READMEs first."
    home = (root / "README.md").read_text("utf-8")

    def place(page: Path) -> tuple:
        found = home.find(f"({page.relative_to(root).as_posix()}")
        return found < 0, found, page.parent, page.name != "README.md", page.name

    return sorted(pages, key=place)


def strip_directives(
    source: str,  # a code cell
) -> tuple[str, dict[str, str]]:  # the code, directive -> its argument
    "A cell without the comments that nbdev reads."
    found = {name: argument.strip(" :") for name, argument in DIRECTIVE.findall(source)}
    return DIRECTIVE.sub("", source).strip("\n"), found


def clean_notebook(
    notebook: dict,  # as in the file
    name: str,  # its path in the repository
) -> dict:  # the notebook that readers see
    "Without hidden cells and directives; exported cells are tagged, the module is named."
    cells, module = [], None
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            code, directives = strip_directives(_text(cell))
            module = directives.get("default_exp", module)
            if "hide" in directives or not code.strip():
                continue
            cell = {**cell, "source": code}
            if "export" in directives:
                cell["metadata"] = {**cell["metadata"], "tags": ["exported"]}
                cells += index_entries(code, module)
        cells.append(cell)
    if module:
        _name_module(cells, name, module)
    language = {"name": "python", "pygments_lexer": "ipython3"}
    return {**notebook, "cells": cells, "metadata": {"language_info": language}}


def index_entries(
    code: str,  # an exported cell
    module: str,  # the module's name in the package
) -> list[dict]:  # a cell that names its functions and classes, if it has any
    "Entries for the index of the site, which the search lists first."
    directives = [
        f"```{{index}} !single: {name}; cop_repro.{module}\n```\n"
        for name in DEFINITION.findall(code)
    ]
    if not directives:
        return []
    return [{"cell_type": "markdown", "metadata": {}, "source": "\n".join(directives)}]


def _name_module(cells: list[dict], name: str, module: str) -> None:
    "Say below the title which module the notebook writes."
    where = f"Notebook `{name}`; cells with a coloured edge are the module `cop_repro.{module}`."
    line = f"\n*{where}*\n"
    for i, cell in enumerate(cells):
        if cell["cell_type"] == "markdown":
            cells[i] = {**cell, "source": OPENING.sub(rf"\1{line}", _text(cell), count=1)}
            return


def title_and_subtitle(path: Path) -> tuple[str, str]:
    "The first heading of a notebook and the quotation below it."
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        opening = OPENING.match(_text(cell)) if cell["cell_type"] == "markdown" else None
        if opening:
            title, *subtitle = opening[1].splitlines()
            return title.lstrip("# "), " ".join(line.lstrip("> ") for line in subtitle)
    raise BadInput(f"{path.name} has no title: its first Markdown cell begins with `# `")


def numbered_title(path: Path) -> str:
    "A notebook's title after its number."
    number = path.stem.split("_")[0]
    title = title_and_subtitle(path)[0]
    return f"{number} {title}" if number[:1].isdigit() else title


def layer_page(
    layer: str,  # folder in `nbs`
    notebooks: list[Path],  # its notebooks in reading order
) -> str:
    "What the notebooks of a layer are about, and their order."
    lines = [f"# {layer.replace('/', ', ').capitalize()}\n"]
    for path in notebooks:
        subtitle = title_and_subtitle(path)[1]
        lines.append(f"- [{numbered_title(path)}]({path.name}): {subtitle}")
    entries = [f"{numbered_title(path)} <{path.stem}>" for path in notebooks]
    return "\n".join(lines) + _toctree(entries, hidden=True)


def contents(
    root: Path,  # the repository
    groups: dict[str, list[Path]],  # Markdown pages by caption
    notebooks: dict[str, list[Path]],  # notebooks by layer
) -> str:
    "The end of the home page: every page of the site in reading order."
    trees = {}
    for caption, pages in groups.items():
        entries = [_entry(page.relative_to(root).with_suffix("")) for page in pages]
        trees[caption] = _toctree(entries, hidden=True, caption=caption)
    entries = []
    for layer, paths in notebooks.items():
        first = [f"{numbered_title(path)} <nbs/{path.stem}>" for path in paths]
        entries += [f"nbs/{layer}/index"] if layer else first
    entries += ["Functions and classes <genindex>"]
    order = "\n## Notebooks in reading order\n" + _toctree(entries, caption="Notebooks")
    return trees.pop("Guides") + order + "".join(trees.values())


def _entry(page: Path) -> str:
    "A page in a table of contents; those with long titles are listed by their file names."
    name = page.as_posix()
    return f"{page.stem.capitalize()} <{name}>" if name in PROJECT else name


def _toctree(entries: list[str], hidden: bool = False, caption: str = "") -> str:
    "A directive that orders pages; none for no pages."
    if not entries:
        return ""
    options = [":maxdepth: 2"] + [":hidden:"] * hidden + [f":caption: {caption}"] * bool(caption)
    return "\n\n" + "\n".join(["```{toctree}", *options, "", *entries, "```"]) + "\n"


def _write_page(tree: Tree, page: Path) -> list[Path]:
    "One page in the tree; returns the files it links to that need a page, too."
    name = page.relative_to(tree.root)
    linked = []
    if page.suffix == ".ipynb":
        notebook = clean_notebook(json.loads(page.read_text("utf-8")), str(name))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                text = rewrite_links(tree, page, _text(cell), linked)
                cell["source"] = join_formulas(text)
        _write(tree.source / name, json.dumps(notebook))
    elif page.suffix == ".md":
        text = rewrite_links(tree, page, page.read_text("utf-8"), linked)
        _write(tree.source / page_name(tree.root, page), join_formulas(text))
    else:
        _write(tree.source / page_name(tree.root, page), source_page(name, page.read_text("utf-8")))
    return linked


def rewrite_links(
    tree: Tree,  # where files are copied to
    page: Path,  # the page
    text: str,  # its Markdown
    linked: list[Path],  # grows by files that need a page
) -> str:  # Markdown whose links hold in the site
    """Point links to pages of the site, and link the notebooks that a page names.

    A link to nothing stays, so that Sphinx refuses it.
    """

    def rewrite(match: re.Match) -> str:
        picture, label, target, anchor = match.groups(default="")
        path = Path(os.path.normpath(page.parent / target))
        if not path.exists() or not path.is_relative_to(tree.root):
            return match[0]
        if path.is_dir():
            path /= "README.md"
            if not path.is_file():
                return label
        if picture or not has_page(path):
            _copy(path, tree.source / path.relative_to(tree.root))
            return match[0]
        linked.append(path)
        return f"[{label}]({_way(tree, page, path)}{anchor})"

    def link(match: re.Match) -> str:
        notebook = tree.notebooks.get(match[1], page)
        return match[0] if notebook == page else f"[{match[0]}]({_way(tree, page, notebook)})"

    for target in EMBEDDED.findall(text):
        path = Path(os.path.normpath(page.parent / target))
        if not path.is_relative_to(tree.root) or not path.is_file():
            raise BadInput(f"{page.name} embeds {target}, which is no file of the repository")
        for folder in (tree.source, tree.extra):
            _copy(path, folder / path.relative_to(tree.root))
    return MENTION.sub(link, LINK.sub(rewrite, text))


def _way(tree: Tree, page: Path, path: Path) -> str:
    "The relative address of another page."
    return Path(os.path.relpath(tree.root / page_name(tree.root, path), page.parent)).as_posix()


def join_formulas(text: str) -> str:
    "Formulas on one line: a line that begins with a sign would be an item of a list."

    def join(match: re.Match) -> str:
        return match[0] if match["code"] else " ".join(match[0].split())

    return CODE_OR_FORMULA.sub(join, text)


def has_page(path: Path) -> bool:
    "Is this a page, or a file whose text can be shown as one?"
    if path.suffix in {".md", ".ipynb"}:
        return True
    if path.stat().st_size > MAX_BYTES:
        return False
    try:
        path.read_text("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def page_name(root: Path, path: Path) -> str:
    "A page's file in the tree."
    name = path.relative_to(root).as_posix()
    if name == "README.md":
        return "index.md"
    return name if path.suffix in {".md", ".ipynb"} else f"{name}.md"


def source_page(name: Path, text: str) -> str:
    "A page with the text of a file, highlighted as its name suggests."
    from pygments.lexers import get_lexer_for_filename
    from pygments.util import ClassNotFound

    try:
        language = get_lexer_for_filename(name.name).aliases[0]
    except ClassNotFound:
        language = "text"
    fence = "`" * 12
    return f"# `{name}`\n\n{fence}{language}\n{text}\n{fence}\n"


def _text(cell: dict) -> str:
    "A cell's source; files keep it as a list of lines."
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def _copy(path: Path, target: Path) -> None:
    "Copy a file into a folder that may not exist."
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def _write(path: Path, text: str) -> None:
    "Write a file into a folder that may not exist."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
