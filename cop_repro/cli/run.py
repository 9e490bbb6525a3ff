# SPDX-License-Identifier: Apache-2.0
"`cop run STAGE`: one stage notebook, executed strictly by papermill."

import json
import logging
import os
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cop_repro.core import CopError, ParamsError, die_with_parent, project_root
from cop_repro.parameters import load_params

HELP = "run one stage notebook of the pipeline"

STAGE_PARAMETERS = {"params_file", "item"}

# Large arrays come and go in every training step. glibc maps and unmaps each of them, and touching
# fresh pages costs up to a third of a step: memory is kept instead. Read at process start, so it
# acts on the kernel that runs the stage and on its workers.
MEMORY_KEPT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}

KERNEL_CONFIG = """c.Application.log_level = 'ERROR'
c.InteractiveShellApp.exec_lines = ['__import__("torch") and None']
"""


def add_arguments(parser) -> None:
    "A stage, its matrix entry and its parameters."
    parser.add_argument("stage")
    parser.add_argument("--item", default="", help="which entry of the stage's matrix")
    parser.add_argument("--params", default="params.yaml")


def run(args) -> int:
    "Execute a stage notebook; the executed copy goes to runs/."
    root = project_root()
    notebook = _stage_notebook(root, args.stage, args.params)
    die_with_parent()
    _quiet_process(root)
    name = args.stage + (f"-{args.item}" if args.item else "")
    out = root / "runs" / f"{name}.ipynb"
    out.parent.mkdir(exist_ok=True)
    with _kernel(root) as kernel:
        began = time.monotonic()
        _execute(notebook, out, {"params_file": args.params, "item": args.item or ""}, kernel)
    seconds = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"stage {name} took {seconds:.0f} s, {used:.1f} GB of memory at most", flush=True)
    return 0


def _stage_notebook(root: Path, stage: str, params_file: str) -> Path:
    "The notebook of a stage that exists and has parameters."
    notebook = root / "nbs" / "stages" / f"{stage}.ipynb"
    stages = sorted(p.stem for p in notebook.parent.glob("*.ipynb"))
    if stage not in stages:
        raise CopError(f"no stage {stage!r}; stages are {', '.join(stages)}")
    if stage not in load_params(root / params_file):
        raise ParamsError(f"{params_file} has no section {stage!r}")
    check_notebook(notebook)
    return notebook


def check_notebook(path: Path) -> None:
    "Refuse unknown parameters: papermill only warns of them and runs with the defaults."
    cells = json.loads(path.read_text())["cells"]
    tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise CopError(
            f"{path.name} has {len(tagged)} cells tagged 'parameters'; exactly one is needed "
            "(did nbdev_clean drop the tag?)"
        )
    names = _assigned_names("".join(tagged[0]["source"]))
    if names != STAGE_PARAMETERS:
        raise CopError(
            f"{path.name} declares the parameters {sorted(names)}; "
            f"stages declare {sorted(STAGE_PARAMETERS)}"
        )


def _assigned_names(source: str) -> set[str]:
    "Left sides of a cell's assignments, one a line."
    lines = [line for line in source.splitlines() if "=" in line]
    return {line.split("=")[0].split(":")[0].strip() for line in lines}


def _quiet_process(root: Path) -> None:
    "Environment of the kernel, and silence: a stage prints its progress, not remarks of libraries."
    os.environ["IPYTHONDIR"] = str(_write_kernel_profile(root))
    os.environ["PYTHONWARNINGS"] = "ignore"
    for name, value in {"OMP_WAIT_POLICY": "PASSIVE", **MEMORY_KEPT}.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    logging.getLogger("papermill").setLevel(logging.ERROR)
    # jsonschema's check of non-ASCII web addresses takes two seconds to load and has no use here.
    sys.modules.setdefault("rfc3987_syntax", None)


def _write_kernel_profile(root: Path) -> Path:
    "The kernel's own IPython folder: a stage must not depend on a user's start-up files."
    folder = root / "work" / "ipython"
    config = folder / "profile_default" / "ipython_kernel_config.py"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(KERNEL_CONFIG)
    return folder


@contextmanager
def _kernel(root: Path) -> Iterator:
    "A kernel for one stage, started and not waited for: it loads its libraries while we load ours."
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import run_sync

    kernel = AsyncKernelManager(kernel_name="python3")
    run_sync(kernel.start_kernel)(cwd=str(root), extra_arguments=["--HistoryManager.enabled=False"])
    try:
        yield kernel
    finally:
        run_sync(kernel.shutdown_kernel)(now=True)


def _execute(notebook: Path, out: Path, parameters: dict[str, str], kernel) -> None:
    "Run all cells of a stage; an exception in one of them becomes a `CopError`."
    import papermill
    from papermill.exceptions import PapermillExecutionError

    root = out.parents[1]
    print(f"stage {out.stem} begins", flush=True)
    try:
        papermill.execute_notebook(
            notebook,
            out,
            parameters,
            cwd=str(root),
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            kernel_name="python3",
            autosave_cell_every=0,
            km=kernel,
        )
    except PapermillExecutionError as error:
        raise _stage_error(error, out) from None


def _stage_error(error, out: Path) -> CopError:
    "An expected failure with its message alone, any other with the way to its traceback."
    if error.ename in {c.__name__ for c in _subclasses(CopError)}:
        return CopError(f"stage {out.stem}: {error.evalue}")
    return CopError(
        f"stage {out.stem} failed: {error.ename}: {error.evalue}\n"
        f"  the executed notebook with the traceback is {out.relative_to(out.parents[1])}"
    )


def _subclasses(cls: type) -> Iterator[type]:
    "A class and all that derive from it."
    yield cls
    for sub in cls.__subclasses__():
        yield from _subclasses(sub)
