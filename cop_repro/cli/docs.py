# SPDX-License-Identifier: Apache-2.0
"`cop docs`: all library notebooks as HTML pages with an index."

from pathlib import Path

from cop_repro.core import atomic_file, check_output_folder, needs_extra, project_root

HELP = "write the notebooks as HTML pages to _docs/"

INDEX = (
    "<!doctype html><meta charset=utf-8><title>cop_repro</title>"
    "<h1>cop_repro: the notebooks</h1><ul>{links}</ul>"
)


def add_arguments(parser) -> None:
    "It takes no arguments."


def run(args) -> int:
    "Write one page a library notebook, and the index."
    root = project_root()
    check_output_folder(root / "_docs")
    links = []
    for path in library_notebooks(root / "nbs"):
        page = _write_page(path, root / "_docs")
        print(page.relative_to(root), flush=True)
        links.append(f'<li><a href="{page.name}">{path.parent.name}/{path.stem}</a></li>')
    _write(root / "_docs" / "index.html", INDEX.format(links="".join(links)))
    return 0


def library_notebooks(folder: Path) -> list[Path]:
    "Notebooks that are no stages."
    hidden = {"stages", ".ipynb_checkpoints"}
    return [p for p in sorted(folder.rglob("*.ipynb")) if not hidden & set(p.parts)]


def _write_page(notebook: Path, folder: Path) -> Path:
    "One notebook as HTML."
    with needs_extra("pipeline"):
        from nbconvert import HTMLExporter

    html, _ = HTMLExporter().from_filename(str(notebook))
    return _write(folder / f"{notebook.stem}.html", html)


def _write(path: Path, text: str) -> Path:
    "A file, whole or not at all."
    with atomic_file(path) as temporary:
        temporary.write_text(text, "utf-8")
    return path
