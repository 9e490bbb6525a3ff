# SPDX-License-Identifier: Apache-2.0
"`cop fingerprints`: one code fingerprint a stage, which dvc.yaml depends on."

import ast
import functools
import hashlib
import json
import re
from pathlib import Path

import yaml

from cop_repro.core import CopError, atomic_file, code_fingerprint, project_root

HELP = "write (or check) the code fingerprints of the stages"

HEADER = (
    "# Written by `make export`: hash of the syntax trees of a stage's cells and of all modules it "
    "uses. Prose does not change it.\n"
)
COMMAND_LINE = "cop_repro.cli"  # decides nothing about results


def add_arguments(parser) -> None:
    "Write or check."
    parser.add_argument(
        "--check", action="store_true", help="fail if they are stale; write nothing"
    )


def run(args) -> int:
    "Write fingerprints.yaml, or fail where it is stale."
    root = project_root()
    notebooks = sorted((root / "nbs" / "stages").glob("*.ipynb"))
    made = {p.stem: notebook_fingerprint(p, root) for p in notebooks}
    text = HEADER + yaml.safe_dump(made)
    path = root / "fingerprints.yaml"
    if path.exists() and path.read_text("utf-8") == text:
        return 0
    if args.check:
        raise CopError("fingerprints.yaml is stale: run `make export`")
    with atomic_file(path) as temporary:
        temporary.write_text(text, "utf-8")
    return 0


def notebook_fingerprint(notebook: Path, root: Path) -> str:
    "Hash of a notebook's own code cells, of the modules beside it, and of every module it uses."
    beside = [path.read_text("utf-8") for path in sorted(notebook.parent.glob("*.py"))]
    own = [ast.dump(ast.parse(source)) for source in [*_code_cells(notebook), *beside]]
    used = _fingerprint(notebook_modules(notebook, root), root)
    return hashlib.sha256("\n".join([*own, used]).encode()).hexdigest()[:16]


def notebook_modules(notebook: Path, root: Path) -> list[str]:
    "Every module of the project that a notebook needs, directly or through others."
    return _reached(set().union(*(_imported(source, "") for source in _code_cells(notebook))), root)


def module_fingerprint(name: str, root: Path) -> str:
    "Hash of a module and of every module it uses."
    return _fingerprint(_reached({name}, root), root)


def _fingerprint(names: list[str], root: Path) -> str:
    "Hash of some modules."
    hashes = [_own_fingerprint(name, _version(_file(name, root))) for name in names]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16]


@functools.cache
def _own_fingerprint(name: str, version: tuple[int, int]) -> str:
    "Hash of one module; a hundred notebooks use the same ones."
    return code_fingerprint(name)


def _file(name: str, root: Path) -> Path:
    "Where a module lies, or would lie."
    return root / (name.replace(".", "/") + ".py")


def _version(path: Path) -> tuple[int, int]:
    "What changes when a file is written."
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _reached(todo: set[str], root: Path) -> list[str]:
    "Modules of the project, and all that they need."
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        path = _file(name, root)
        if name in seen or not path.exists() or _is_command_line(name):
            continue
        seen.add(name)
        todo |= _imported(path.read_text("utf-8"), name.rpartition(".")[0])
    return sorted(seen)


def _code_cells(notebook: Path) -> list[str]:
    "Sources of a notebook's code cells, without magics."
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return [re.sub(r"(?m)^[%!].*", "", source) for source in sources]


@functools.cache
def _imported(source: str, package: str) -> frozenset[str]:
    "Modules of the project that a source imports from; `package` resolves relative imports."
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    relative = {_resolved(node, package) for node in nodes if node.level}
    absolute = {node.module for node in nodes if not node.level and node.module}
    return frozenset(relative | {name for name in absolute if name.startswith("cop_repro")})


def _resolved(node: ast.ImportFrom, package: str) -> str:
    "The absolute name of a relative import's module."
    parts = package.split(".")
    above = parts[: len(parts) - node.level + 1]
    return ".".join([*above, *(node.module or "").split(".")]).strip(".")


def _is_command_line(name: str) -> bool:
    "Whether a module belongs to this package."
    return name == COMMAND_LINE or name.startswith(f"{COMMAND_LINE}.")
