# SPDX-License-Identifier: Apache-2.0
"`cop notebooks`: library notebooks are executed where their code has changed, outputs are stored."

import base64
import io
import os
import subprocess
import sys
from pathlib import Path

import yaml

from cop_repro.cli._kernel import kernel_manager, write_kernel_profile
from cop_repro.cli._site import library_notebooks
from cop_repro.cli.fingerprints import notebook_fingerprint
from cop_repro.core import (
    CopError,
    atomic_file,
    check_output_file,
    did_you_mean,
    needs_extra,
    project_root,
)

HELP = "execute library notebooks whose code has changed, and store their outputs"

HEADER = "# Written by `cop notebooks`: the code with which each notebook's outputs were made.\n"
NUM_COLORS = 64  # of a stored picture's palette
QUIET = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}


def add_arguments(parser) -> None:
    "Which notebooks; whether to look only."
    parser.add_argument("names", nargs="*", help="stems, such as 42_flow; default: the stale ones")
    parser.add_argument(
        "--check", action="store_true", help="fail if they are stale; write nothing"
    )


def run(args) -> int:
    "Execute stale or named notebooks, or fail where one is stale."
    root = project_root()
    paths = {path.stem: path for path in library_notebooks(root / "nbs")}
    unknown = [name for name in args.names if name not in paths]
    if unknown:
        raise CopError(f"no library notebook {unknown[0]!r}{did_you_mean(unknown[0], paths)}")
    record = root / "nbs" / "outputs.yaml"
    recorded = _recorded(record)
    now = {name: notebook_fingerprint(path, root) for name, path in paths.items()}
    stale = [name for name in paths if recorded.get(name) != now[name]]
    if args.check:
        if stale:
            raise CopError(f"stale outputs in {', '.join(stale)}: run `cop notebooks`")
        return 0
    check_output_file(record)
    for name in args.names or stale:
        print(f"{name} ...", flush=True)
        check_output_file(paths[name])
        execute(paths[name], root)
        recorded[name] = now[name]
        kept = {name: recorded[name] for name in paths if name in recorded}
        with atomic_file(record) as temporary:
            temporary.write_text(HEADER + yaml.safe_dump(kept), "utf-8")
    return 0


def _recorded(path: Path) -> dict:
    "The code with which each notebook's outputs were made."
    return (yaml.safe_load(path.read_text("utf-8")) if path.exists() else None) or {}


def execute(path: Path, root: Path) -> None:
    "Run a notebook from top to bottom; its outputs are stored if no cell fails."
    with needs_extra("pipeline"):
        import nbformat

    os.environ.update(QUIET, IPYTHONDIR=str(write_kernel_profile(root)))
    notebook = nbformat.read(path, 4)
    _run_cells(notebook, path)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = with_palette(output.data["image/png"])
    with atomic_file(path) as temporary:
        nbformat.write(notebook, temporary)
    clean = Path(sys.executable).parent / "nbdev_clean"
    subprocess.run([clean, "--fname", path], check=True)


def _run_cells(notebook, path: Path) -> None:
    "Execute the cells of a notebook in a kernel of this Python."
    with needs_extra("pipeline"):
        from nbconvert.preprocessors import CellExecutionError, ExecutePreprocessor

    runner, place = ExecutePreprocessor(timeout=900), {"metadata": {"path": path.parent}}
    try:
        runner.preprocess(notebook, place, km=kernel_manager())
    except CellExecutionError as error:
        why = f"{error.ename}: {error.evalue}"
        raise CopError(f"{path.name} fails, its outputs stay as they were: {why}") from None


def with_palette(picture: str) -> str:
    "A PNG with a palette: a third of the bytes. Both are in base 64."
    from PIL import Image

    coloured = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    buffer = io.BytesIO()
    indexed = coloured.quantize(NUM_COLORS, dither=Image.Dither.NONE)
    indexed.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
