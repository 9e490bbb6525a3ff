# SPDX-License-Identifier: Apache-2.0
"`cop run STAGE`: one stage notebook, executed strictly by papermill."

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cop_repro.cli._kernel import kernel_manager, quiet_libraries, write_kernel_profile
from cop_repro.cli._process import CHILD_S
from cop_repro.core import (
    CopError,
    ParamsError,
    check_output_file,
    did_you_mean,
    die_with_parent,
    needs_extra,
    project_root,
)
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


def add_arguments(parser) -> None:
    "A stage, its matrix entry and its parameters."
    parser.add_argument("stage", help="e.g. train_roll")
    parser.add_argument("--item", default="", help="variant of the stage, e.g. cop_piano")
    parser.add_argument("--params", default="params.yaml", help="parameter file")


def run(args) -> int:
    "Execute a stage notebook; the executed copy goes to runs/."
    root = project_root()
    notebook = _stage_notebook(root, args.stage, args.params)
    _check_item(load_params(root / args.params), args.stage, args.item)
    name = args.stage + (f"-{args.item}" if args.item else "")
    out = check_output_file(root / "runs" / f"{name}.ipynb")
    die_with_parent()
    _quiet_process(root)
    out.parent.mkdir(exist_ok=True)
    with _kernel(root) as kernel:
        began = time.monotonic()
        _execute(notebook, out, {"params_file": args.params, "item": args.item or ""}, kernel)
    seconds = time.monotonic() - began
    print(f"stage {name} took {seconds:.0f} s{_memory_used()}", flush=True)
    return 0


def _memory_used() -> str:
    "Peak memory of the stage's processes, where the system tells it."
    try:
        import resource
    except ImportError:  # Windows
        return ""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit
    return f", {used:.1f} GB of memory at most"


def _stage_notebook(root: Path, stage: str, params_file: str) -> Path:
    "The notebook of a stage that exists and has parameters."
    notebook = root / "nbs" / "stages" / f"{stage}.ipynb"
    stages = sorted(p.stem for p in (root / "nbs" / "stages").glob("*.ipynb"))
    if stage not in stages:
        hint = did_you_mean(stage, stages)
        raise CopError(f"no stage {stage!r}{hint}; stages are {', '.join(stages)}")
    if stage not in load_params(root / params_file):
        raise ParamsError(f"{params_file} has no section {stage!r}")
    check_notebook(notebook)
    return notebook


def _check_item(params: dict, stage: str, item: str) -> None:
    "Refuse an item that the stage's matrix lacks, one without a matrix, and a matrix without one."
    section = params[stage]
    variants = section.get("variants") if isinstance(section, dict) else None
    if not variants:
        if item:
            raise CopError(f"stage {stage} has no variants: leave --item {item} out")
        return
    names = list(map(str, variants))
    if not item:
        raise CopError(f"stage {stage} needs --item, one of {', '.join(names)}")
    if item not in names:
        hint = did_you_mean(item, names)
        raise CopError(f"stage {stage} has no variant {item!r}{hint}; they are {', '.join(names)}")


def check_notebook(path: Path) -> None:
    "Refuse unknown parameters: papermill only warns of them and runs with the defaults."
    cells = json.loads(path.read_text("utf-8"))["cells"]
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
    os.environ["IPYTHONDIR"] = str(write_kernel_profile(root))
    os.environ["PYTHONWARNINGS"] = "ignore"
    for name, value in MEMORY_KEPT.items():
        os.environ.setdefault(name, value)
    quiet_libraries()


@contextmanager
def _kernel(root: Path) -> Iterator:
    "A kernel for one stage, started and not waited for: it loads its libraries while we load ours."
    with needs_extra("pipeline"):
        from jupyter_core.utils import run_sync

    kernel = kernel_manager()
    try:
        options = ["--HistoryManager.enabled=False"]
        run_sync(kernel.start_kernel)(cwd=str(root), extra_arguments=options)
        yield kernel
    except KeyboardInterrupt:
        _interrupt(kernel, run_sync)
        raise
    finally:
        run_sync(kernel.shutdown_kernel)(now=True)


def _interrupt(kernel, run_sync: Callable) -> None:
    "Interrupt a stage, and wait until it has removed what is half-written: then it answers again."
    client = kernel.client()
    client.start_channels()
    with suppress(RuntimeError):  # it has not begun, is gone, or takes too long
        run_sync(kernel.interrupt_kernel)()
        run_sync(client.wait_for_ready)(timeout=CHILD_S)
    client.stop_channels()


def _execute(notebook: Path, out: Path, parameters: dict[str, str], kernel) -> None:
    "Run all cells of a stage; an exception in one of them becomes a `CopError`."
    with needs_extra("pipeline"):
        import papermill
        from nbclient.exceptions import DeadKernelError
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
    except DeadKernelError:
        raise CopError(
            f"stage {out.stem}: its process was ended from outside (by the system, for want of "
            "memory?) or crashed; run it again: finished parts are kept"
        ) from None


def _stage_error(error, out: Path) -> CopError:
    "An expected failure with its message alone, any other with the way to its traceback."
    if error.ename in {c.__name__ for c in _subclasses(CopError)}:
        return CopError(f"stage {out.stem}: {error.evalue}")
    return CopError(
        f"stage {out.stem} failed: {error.ename}: {error.evalue} "
        f"(the executed notebook with the traceback is {out.relative_to(out.parents[1])})"
    )


def _subclasses(cls: type) -> Iterator[type]:
    "A class and all that derive from it."
    yield cls
    for sub in cls.__subclasses__():
        yield from _subclasses(sub)
