# SPDX-License-Identifier: Apache-2.0
"`cop docs`: the notebooks and the Markdown pages as a site."

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from cop_repro.cli._site import prepare
from cop_repro.core import CopError, atomic_folder, project_root

HELP = "write notebooks and Markdown pages as a site with full-text search to _docs/"

NEEDED = ("sphinx", "myst_nb", "furo", "math_core")


def add_arguments(parser) -> None:
    "It takes no arguments."


def run(args) -> int:
    "Prepare and build in `work/docs`; a complete site replaces `_docs`."
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise CopError(f"{missing[0]} is not installed: run `make setup` or install the docs extra")
    root = project_root()
    work = root / "work" / "docs"
    shutil.rmtree(work, ignore_errors=True)
    pages = prepare(root, work / "source", work / "extra")
    print(f"{len(pages)} pages prepared in work/docs/source", flush=True)
    build(root / "docs", work)
    with atomic_folder(root / "_docs") as site:
        shutil.copytree(work / "html", site, dirs_exist_ok=True)
    print("_docs/index.html")
    return 0


def build(
    config: Path,  # folder of conf.py
    work: Path,  # folder with the prepared `source` and `extra`; the site goes to its `html`
) -> None:
    "Run Sphinx in a fresh folder: a page from a cache would keep its warnings to itself."
    command = [sys.executable, "-m", "sphinx", "--builder", "html", "--conf-dir", config]
    command += ["--fail-on-warning", "--keep-going", "--no-color"]
    command += ["--doctree-dir", work / "doctrees", "--define", f"html_extra_path={work / 'extra'}"]
    command += [work / "source", work / "html"]
    if subprocess.run(command, env={**os.environ, "PYTHONWARNINGS": "ignore"}).returncode:
        raise CopError("Sphinx names the faulty pages above; _docs stays as it was")
    (work / "html" / ".buildinfo").unlink(missing_ok=True)
