"The command line: the only place that knows paths, YAML files, progress and exit codes."

import argparse
import ast
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import yaml

from cop_repro.benches import bench
from cop_repro.core import (
    CopError,
    ParamsError,
    code_fingerprint,
    die_with_parent,
    load_weights,
    project_root,
    save_weights,
    write_json,
)
from cop_repro.parameters import check_params, load_params, merge

_last = {"at": 0.0}


def progress(done: int, total: int, message: str = "", beside: bool = False) -> None:
    "One plain line at a time: at most one every five seconds, and the last; beside an output that others read: on stderr, and none for a short run."
    now = time.monotonic()
    if (done < total or beside) and now - _last["at"] < 5:
        return
    _last["at"] = now
    print(f"[{done:>5}/{total}] {message}", flush=True, file=sys.stderr if beside else sys.stdout)


# ---------------------------------------------------------------- stages

STAGE_PARAMETERS = {"params_file", "item"}


def _check_notebook(path: Path) -> None:
    "papermill only warns about an untagged or unknown parameter and then runs with the defaults; here it is an error."
    cells = json.loads(path.read_text())["cells"]
    tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise CopError(
            f"{path.name} has {len(tagged)} cells tagged 'parameters'; exactly one is needed (did nbdev_clean drop the tag?)"
        )
    names = {
        line.split("=")[0].split(":")[0].strip()
        for line in "".join(tagged[0]["source"]).splitlines()
        if "=" in line
    }
    if names != STAGE_PARAMETERS:
        raise CopError(
            f"{path.name} declares the parameters {sorted(names)}; stages declare {sorted(STAGE_PARAMETERS)}"
        )


# Large arrays come and go in every training step. glibc maps and unmaps each of them, and touching fresh pages costs up to a third of a step:
# memory is kept instead. Read at process start, so it acts on the kernel that runs the stage and on its workers.
MEMORY_KEPT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def _begin_kernel(root: Path):
    "A kernel for one stage, started and not waited for."
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import run_sync

    kernel = AsyncKernelManager(kernel_name="python3")
    run_sync(kernel.start_kernel)(cwd=str(root), extra_arguments=["--HistoryManager.enabled=False"])
    return kernel


def run_stage(args) -> int:
    "Execute a stage notebook with papermill; the executed copy goes to runs/."
    root = project_root()
    notebook = root / "nbs" / "stages" / f"{args.stage}.ipynb"
    stages = sorted(p.stem for p in notebook.parent.glob("*.ipynb"))
    if args.stage not in stages:
        raise CopError(f"no stage {args.stage!r}; stages are {', '.join(stages)}")
    params = load_params(root / args.params)
    if args.stage not in params:
        raise ParamsError(f"{args.params} has no section {args.stage!r}")
    _check_notebook(notebook)
    die_with_parent()
    settings = (
        root / "work" / "ipython" / "profile_default" / "ipython_kernel_config.py"
    )  # the kernel's own profile: a stage must not depend on a user's start-up files
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(
        "c.Application.log_level = 'ERROR'\nc.InteractiveShellApp.exec_lines = ['__import__(\"torch\") and None']\n"
    )
    os.environ["IPYTHONDIR"] = str(settings.parents[1])
    os.environ["PYTHONWARNINGS"] = (
        "ignore"  # a stage prints its progress, not the remarks of libraries
    )
    for name, value in {"OMP_WAIT_POLICY": "PASSIVE", **MEMORY_KEPT}.items():
        os.environ.setdefault(name, value)
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.getLogger("papermill").setLevel(logging.ERROR)
    sys.modules.setdefault(
        "rfc3987_syntax", None
    )  # jsonschema's check of non-ASCII web addresses: two seconds to load, no use here
    kernel = _begin_kernel(root)  # loads its libraries while we load ours
    import papermill
    from jupyter_core.utils import run_sync
    from papermill.exceptions import PapermillExecutionError

    name = args.stage + (f"-{args.item}" if args.item else "")
    out = root / "runs" / f"{name}.ipynb"
    out.parent.mkdir(exist_ok=True)
    began = time.monotonic()
    print(f"stage {name} begins", flush=True)
    try:
        papermill.execute_notebook(
            notebook,
            out,
            {"params_file": args.params, "item": args.item or ""},
            cwd=str(root),
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            kernel_name="python3",
            autosave_cell_every=0,
            km=kernel,
        )
    except PapermillExecutionError as error:
        if any(c.__name__ == error.ename for c in _subclasses(CopError)):
            raise CopError(f"stage {name}: {error.evalue}") from None
        raise CopError(
            f"stage {name} failed: {error.ename}: {error.evalue}\n  the executed notebook with the traceback is {out.relative_to(root)}"
        ) from None
    finally:
        run_sync(kernel.shutdown_kernel)(now=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"stage {name} took {time.monotonic() - began:.0f} s, {used:.1f} GB of memory at most",
        flush=True,
    )
    return 0


def _subclasses(cls):
    yield cls
    for sub in cls.__subclasses__():
        yield from _subclasses(sub)


def stage_modules(notebook: Path, root: Path) -> list[str]:
    "Every module of the project that a notebook needs, directly or through others."

    def imported(source: str, package: str) -> set[str]:
        found = set()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.ImportFrom):
                continue
            if node.level:
                found.add(
                    ".".join(
                        [
                            *package.split(".")[: len(package.split(".")) - node.level + 1],
                            *(node.module or "").split("."),
                        ]
                    ).strip(".")
                )
            elif (node.module or "").startswith("cop_repro"):
                found.add(node.module)
        return found

    cells = json.loads(notebook.read_text())["cells"]
    todo = set().union(
        *(imported("".join(c["source"]), "") for c in cells if c["cell_type"] == "code")
    )
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        path = root / (name.replace(".", "/") + ".py")
        if name in seen or not path.exists() or name == "cop_repro.cli":
            continue
        seen.add(name)
        todo |= imported(path.read_text(), name.rpartition(".")[0])
    return sorted(seen)


def _stage_fingerprint(notebook: Path, root: Path) -> str:
    "Hash of a stage's own code cells and of every module it uses."
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    own = [ast.dump(ast.parse("".join(c["source"]))) for c in cells]
    return hashlib.sha256(
        "\n".join([*own, code_fingerprint(*stage_modules(notebook, root))]).encode()
    ).hexdigest()[:16]


def fingerprints(args) -> int:
    "Write fingerprints.yaml: one code fingerprint a stage, which dvc.yaml depends on."
    root = project_root()
    made = {
        p.stem: _stage_fingerprint(p, root)
        for p in sorted((root / "nbs" / "stages").glob("*.ipynb"))
    }
    text = (
        "# Written by `make export`: hash of the syntax trees of a stage's cells and of all modules it uses. Prose does not change it.\n"
        + yaml.safe_dump(made)
    )
    path = root / "fingerprints.yaml"
    if args.check:
        if not path.exists() or path.read_text() != text:
            raise CopError("fingerprints.yaml is stale: run `make export`")
    elif not path.exists() or path.read_text() != text:
        path.write_text(text)
    return 0


def profile_params(root: Path, name: str) -> dict:
    "All parameters of a profile, checked; `default` is params.yaml as it is."
    params = load_params(root / "params.yaml")
    if name != "default":
        path = root / "profiles" / f"{name}.yaml"
        if not path.is_file():
            raise ParamsError(
                f"no profile {name!r}; profiles are default, {', '.join(sorted(p.stem for p in path.parent.glob('*.yaml')))}"
            )
        params = merge(params, load_params(path))
    check_params(params)
    return params


PUBLISHED = (
    "results.json",
    "tables.md",
    "verdicts.json",
    "figures",
)  # what a profile's own run makes; the other reports in its copy are the default run's


def publish(reports: Path, target: Path) -> None:
    "Copy what a profile's run has made, and nothing that it was given."
    for name in PUBLISHED:
        if (reports / name).is_dir():
            shutil.copytree(reports / name, target / name, dirs_exist_ok=True)
        elif (reports / name).is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(reports / name, target / name)


def profile(args) -> int:
    "Run the whole pipeline with a profile's numbers in a scratch copy of the work tree."
    root = project_root()
    params = profile_params(root, args.name)
    scratch = root / "work" / "profiles" / args.name
    scratch.mkdir(parents=True, exist_ok=True)
    listed = (
        subprocess.run(
            ["git", "ls-files", "-z", "-co", "--exclude-standard"],
            cwd=root,
            capture_output=True,
            check=True,
        )
        .stdout.decode()
        .split("\0")
    )
    own = lambda name: (
        name == "dvc.lock"
        or name.startswith(
            ("reports/results", "reports/tables", "reports/verdicts", "reports/figures/")
        )
    )  # the scratch copy makes its own
    kept = {name for name in listed if name and not own(name) and (root / name).is_file()}
    for old in scratch.rglob("*.py"):
        if str(old.relative_to(scratch)) not in kept:
            old.unlink()
    for name in kept:
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target)
    shutil.copytree(root / "data", scratch / "data", dirs_exist_ok=True)
    (scratch / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (scratch / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    env = {**os.environ, "PYTHONPATH": str(scratch)}
    print(f"profile {args.name}: scratch copy in {scratch.relative_to(root)}", flush=True)
    code = subprocess.run(["dvc", "repro", *args.targets], cwd=scratch, env=env).returncode
    if code:
        raise CopError(
            f"profile {args.name}: dvc repro failed with code {code}; the messages above say where"
        )
    print(
        f"profile {args.name}: reports are in {(scratch / 'reports').relative_to(root)}", flush=True
    )
    if args.publish:
        target = root / "reports" / "profiles" / args.name
        publish(scratch / "reports", target)
        print(f"published to {target.relative_to(root)}", flush=True)
    return 0


# ---------------------------------------------------------------- what a run will need


def plan(args) -> int:
    "Say what the training runs of a profile will need, before anything starts."
    from cop_repro.data.clips import keep_items, read_manifest
    from cop_repro.plans import Costs, make_plan, plan_text
    from cop_repro.training.planning import Machine

    root = project_root()
    params = profile_params(root, args.profile)
    manifest = root / params["prepare"]["manifest"]
    items = (
        keep_items(read_manifest(manifest)[0], params["prepare"]["keep"])
        if manifest.exists()
        else None
    )
    costs = Costs(root / "work" / "plan-costs.json")
    try:
        made = make_plan(
            params,
            Machine(args.gpus, args.gpu_memory, args.gpu, args.mfu, args.sharded),
            items,
            costs,
        )
    finally:
        costs.save()
    print(json.dumps(made, indent=1) if args.json else plan_text(made))
    return 0


# ---------------------------------------------------------------- other people's networks


def weights(args) -> int:
    "List, fetch, lock or check the networks of others that the published model uses; `use` makes assets of them."
    from cop_repro.model import weights as W

    folder = Path(args.folder) if args.folder else project_root() / "weights"
    if args.action == "list":
        rows = W.weights_rows(folder)
        if args.json:
            print(json.dumps(rows, indent=1))
            return 0
        for r in rows:
            print(
                f"{r['name']:14s} {r['state']:16s} {r['gigabytes']:7.3f} GB  {r['purpose']}\n{'':14s} from {r['source']} at {r['revision']}"
                + (f" ({r['unconfirmed']}: not confirmed)" if r["unconfirmed"] else "")
                + f"\n{'':14s} files {', '.join(r['files'])}\n{'':14s} licence {r['licence']}\n{'':14s} looked for in {r['looked_for']}"
            )
        lack = [r for r in rows if not r["state"].startswith("present")]
        print(
            f"{len(rows) - len(lack)} of {len(rows)} present"
            + (
                f"; to fetch: {sum(r['gigabytes'] for r in lack):.1f} GB, e.g. `cop weights fetch {lack[0]['name']}`"
                if lack
                else ""
            )
        )
        return 0
    if args.action == "convert":
        from cop_repro.judges.pretrained import convert_checkpoint

        print(f"wrote {convert_checkpoint(args.name).name}")
        return 0
    if args.action == "use":
        return _use_weights(folder, Path(args.clips), Path(args.output))
    for name in [args.name] if args.name else list(W.WEIGHTS):
        if args.action == "fetch":
            W.fetch_weights(name, folder, progress)
        elif args.action == "lock":
            W.lock_weights(name, folder)
        print(
            f"{name}: {len(W.verify_weights(name, folder))} files as they should be"
            + (
                ""
                if (W.weights_folder(name, folder) / W.LOCK).is_file()
                else "; no lock yet, so only format and shapes were checked: `cop weights lock`"
            )
        )
    return 0


def _use_weights(folder: Path, clips: Path, output: Path) -> int:
    "Assets that `train_codec.asset` and `train_encoders.asset` can name: EnCodec with statistics of these clips, and the real encoders' places."
    from cop_repro.data.clips import store_wav
    from cop_repro.data.shards import open_store
    from cop_repro.model.codec import save_codec
    from cop_repro.model.encoders import build_encoders, save_encoders
    from cop_repro.model.weights import real_codec, real_encoders

    store = open_store(clips)
    rows, split = store.select(split="train"), store.about.get("split_hash", "")
    if not len(rows):
        raise CopError(f"{clips} holds no training clips to fit EnCodec's statistics on")
    save_encoders(output / "encoders.safetensors", build_encoders(real_encoders(folder)), split)
    save_codec(
        output / "codec.safetensors",
        real_codec(
            folder, (store_wav(store, rows[i : i + 4]) for i in range(0, min(len(rows), 512), 4))
        ),
        split,
    )
    print(
        f"{output}/encoders.safetensors and {output}/codec.safetensors: name them in train_encoders.asset and train_codec.asset"
    )
    return 0


def shards(args) -> int:
    "Read every byte of a sharded store; say what it holds and which clips were refused."
    from cop_repro.data.shards import ShardedStore

    store = ShardedStore(args.folder)
    files, rejects = store.verify(progress), store.rejects
    print(
        f"{store.folder.name}: {len(store)} clips in {len(store.names)} shards, {files} files as they were written; columns "
        + ", ".join(f"{n} {c.shape[1:]} {c.dtype}" for n, c in store.columns.items())
    )
    print(
        f"{len(rejects)} clips refused"
        + "".join(f"\n  {name}: {why}" for name, why in list(rejects.items())[: args.show])
    )
    return 0


# ---------------------------------------------------------------- results


def compare(args) -> int:
    "Hold two result files against each other, with a tolerance per metric."
    from cop_repro.evaluation.report import compare_results

    tables = []
    for name in (args.a, args.b):
        path = Path(name)
        if not path.is_file():
            raise CopError(f"no result file {name}")
        try:
            tables.append(json.loads(path.read_text()))
        except json.JSONDecodeError as error:
            raise CopError(f"{name} is not JSON: {error}") from None
    lines, worst = compare_results(*tables)
    print("\n".join(lines))
    return 0 if worst == 0 else 1


def release(args) -> int:
    "Copy trained models into data/assets (large ones in bfloat16), track them, push their objects into the store inside the repository."
    root = project_root()
    assets = load_params(root / "params.yaml")["release"]["assets"]
    if unknown := [n for n in args.names if n not in assets]:
        raise ParamsError(f"no asset {unknown[0]!r}; assets are {', '.join(assets)}")
    for target in args.names or assets:
        source = assets[target]
        source = {"model": source} if isinstance(source, str) else source
        for path in source.values():
            if not (root / path).exists():
                raise CopError(
                    f"no trained model at {path}: run the pipeline or the profile that makes it first"
                )
        tensors, meta = load_weights(root / source["model"])
        if "predictor" in source:
            predictor, about = load_weights(root / source["predictor"])
            if about.get("config") != meta.get("predictor"):
                raise CopError(
                    f"{source['predictor']} is not of the configuration of the predictor in {source['model']}"
                )
            tensors |= {f"predictor.{k}": v for k, v in predictor.items()}
        large = (
            meta.get("asset") != "codec" and sum(v.numel() for v in tensors.values()) > 1_000_000
        )  # a small model gains nothing, and a codec's latents must not change
        half = {
            k: v.bfloat16()
            if large and v.is_floating_point() and not k.startswith("predictor.")
            else v
            for k, v in tensors.items()
        }
        save_weights(root / "data" / "assets" / target, half, {**meta, "released_from": source})
        print(f"{' + '.join(source.values())} -> data/assets/{target}")
    for command in (["dvc", "add", "data"], ["dvc", "push", "data.dvc"]):
        subprocess.run(command, cwd=root, check=True)
    return 0


def lock(args) -> int:
    "Print what settings.ini asks for, one requirement a line."
    from configparser import ConfigParser

    parser = ConfigParser(delimiters=["="])
    parser.read(project_root() / "settings.ini", encoding="utf-8")
    print(
        "\n".join(
            (
                parser["DEFAULT"]["requirements"] + " " + parser["DEFAULT"]["dev_requirements"]
            ).split()
        )
    )
    return 0


def doctor(args) -> int:
    "Say what this machine has and what is missing, with the remedy."
    import importlib.metadata as metadata

    import torch

    from cop_repro.systems.cop import ASSETS

    root = project_root()
    bad = 0

    def say(ok: bool, what: str, remedy: str = "") -> None:
        nonlocal bad
        bad += not ok
        print(
            f"{'ok     ' if ok else 'MISSING'} {what}"
            + (f" -- {remedy}" if not ok and remedy else "")
        )

    say(
        sys.version_info[:2] == (3, 11),
        f"Python {sys.version.split()[0]}",
        "the lock file is made for 3.11",
    )
    for name in (
        "torch",
        "torchaudio",
        "encodec",
        "open_clip_torch",
        "librosa",
        "pretty_midi",
        "matplotlib",
        "jupyterlab",
        "papermill",
        "dvc",
        "nbdev",
        "basic-pitch",
        "transkun",
        "music21",
    ):
        try:
            say(True, f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            say(False, name, "run `make setup`")
    say((root / "data" / "manifest.json").exists(), "data folder", "run `make setup`")
    for name in ASSETS:
        say((root / "data" / "assets" / name).exists(), f"asset {name}", "run `make setup`")
    free = shutil.disk_usage(root).free / 2**30
    say(free > 12, f"{free:.0f} GB of disk free", "the default run needs 12 GB")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    say(memory > 7.5, f"{memory:.0f} GB of memory", "the default run needs 8 GB")
    print(f"       {os.cpu_count()} CPU cores, {torch.cuda.device_count()} GPUs (none needed)")
    return 2 if bad else 0


# ---------------------------------------------------------------- sound from a video


def perform(args) -> int:
    "Silent piano video in; WAV, MIDI, video with sound, picture and report out."
    from cop_repro.systems.cop import load_performer, perform_video

    root = project_root(Path(__file__).parent)
    performer = load_performer(Path(args.assets) if args.assets else root / "data" / "assets")
    out = perform_video(
        Path(args.video),
        Path(args.output),
        performer,
        text=args.text,
        seed=args.seed,
        corners=args.corners,
        progress=progress,
    )
    for name, what in out.items():
        print(f"{name:8s} {what}")
    return 0


def real(args) -> int:
    "Score shipped models on real piano videos against a transcription of their own sound."
    from cop_repro.evaluation.real_videos import score_real_video
    from cop_repro.systems.cop import load_performer

    root = project_root(Path(__file__).parent)
    performer = load_performer(root / "data" / "assets")
    made = [
        score_real_video(
            Path(v),
            performer,
            picture=Path(args.picture) if args.picture else None,
            progress=progress,
        )
        for v in args.videos
    ]
    write_json(args.output, made)
    print(json.dumps(made, indent=1))
    return 0


def experiment(name: str):
    "A command that lies in `experiments.py`."

    def run(args) -> int:
        from cop_repro import experiments

        return getattr(experiments, name)(
            args, load_params(project_root() / "params.yaml"), progress
        )

    return run


def _mapping(name: str | None) -> dict | None:
    "A JSON file that maps ids to something."
    if name is None:
        return None
    try:
        made = json.loads(Path(name).read_text())
    except (OSError, ValueError) as error:
        raise CopError(f"{Path(name).name} is not a readable JSON file: {error}") from None
    if not isinstance(made, dict):
        raise CopError(f"{Path(name).name} must hold one JSON object, id -> value")
    return made


def _judge(args):
    "The extractor that was asked for; the shipped judges where none was and a checkout is at hand."
    from cop_repro.judges.pretrained import load_extractor

    if args.judges:
        kind, _, path = args.judges.partition("=")  # a path may hold the sign too
        return (
            load_extractor("embedded", args.judges)
            if not path or Path(args.judges).exists()
            else load_extractor(kind, path)
        )
    try:
        shipped = project_root(Path(__file__).parent) / "data" / "assets" / "judges.safetensors"
    except CopError:
        return None
    return load_extractor("embedded", shipped) if shipped.is_file() else None


def score(args) -> int:
    "Score a folder of sounds, MIDI files or videos against the true ones."
    from cop_repro.evaluation.folders import score_folders

    works, texts, _last["at"] = _mapping(args.works), _mapping(args.texts), time.monotonic()
    made = score_folders(
        args.ref,
        args.est,
        [n for part in args.metrics for n in part.split(",") if n] if args.metrics else None,
        _judge(args),
        works,
        texts,
        args.cut,
        args.seed,
        partial(progress, beside=True),
    )
    if args.output:
        write_json(args.output, made)
    if args.json:
        print(json.dumps(made, indent=1, allow_nan=False))
    elif not args.output:
        print(
            f"{made['clips']} clips of {made['works']} works (ids {made['ids']}), {made['sample_rate']} Hz"
        )
        for name, line in made["metrics"].items():
            value = (
                line.get("note", "")
                if line["value"] is None
                else f"{line['value']:.4f}"
                + (
                    f" [{line['interval'][0]:.4f}, {line['interval'][1]:.4f}]"
                    if line["interval"]
                    else ""
                )
            )
            better = {
                True: "higher is better",
                False: "lower is better",
                None: f"closer to {line['reference']:.4f}" if "reference" in line else "neither",
            }[line["higher_is_better"]]
            beside = "".join(
                f", {words} {line[k]:.4f}"
                for k, words in (("reference", "true sound"), ("shuffled", "another clip's sound"))
                if "shuffled" in line and k in line
            )
            print(
                f"{name:28s} {value} {line['unit']} n={line['n']} ({better}{beside}){' ' + line['extractor'] if line['extractor'] else ''}"
                + (f" undefined: {line['undefined']}" if line["undefined"] else "")
            )
    return 0


def manifest(args) -> int:
    "Make data/manifest.json anew: works, split, clips, seeds."
    from cop_repro.core import from_dict
    from cop_repro.data.clips import SetSizes, rendered_items, write_manifest
    from cop_repro.data.performance import (
        DEFAULT_WORKS,
        corpus_scores,
        etudes,
        group_works,
        split_works,
    )

    root = project_root()
    cfg = load_params(root / "params.yaml")["manifest"]
    scores = [*etudes(root / "data" / "etudes"), *corpus_scores(DEFAULT_WORKS, progress)]
    works = split_works(group_works(scores), cfg["seed"], cfg["fractions"])
    items = rendered_items(
        scores,
        works,
        from_dict(SetSizes, cfg["sizes"], "manifest.sizes"),
        cfg["duration_s"],
        cfg["seed"],
    )
    write_manifest(
        root / "data" / "manifest.json",
        items,
        works,
        seed=cfg["seed"],
        fractions=cfg["fractions"],
        sizes=cfg["sizes"],
    )
    print(f"{len(items)} clips of {len(works)} works")
    return 0


HEADLINES = (
    ("table4", "no_guidance", "si_sdr_spec"),
    ("table4", "cop_piano", "si_sdr_spec"),
    ("table5", "cop_velocity", "si_sdr_spec"),
    ("table5", "cop_velocity_dpo", "si_sdr_spec"),
    ("table5", "cop_shipped", "si_sdr_spec"),
    ("table4", "audeo_style", "si_sdr_spec"),
    ("table4", "audeo_style_same_soundfont", "si_sdr_spec"),
    ("controls", "codec", "si_sdr_spec"),
    ("controls", "shuffled", "si_sdr_spec"),
    ("table4", "no_guidance", "transcription_f1"),
    ("table4", "cop_piano", "transcription_f1"),
    ("table5", "cop_shipped", "transcription_f1"),
    ("table4", "audeo_style", "transcription_f1"),
    ("controls", "truth", "transcription_f1"),
    ("table2", "base", "label_accuracy"),
    ("table2", "base", "event_f1"),
    ("table2", "base_shuffled", "event_f1"),
    ("table3", "base", "label_accuracy"),
    ("table3", "base_direction", "pitch_direction"),
    ("table3", "base_direction", "pace_direction"),
    ("roll", "video2roll_clean", "onset_f1"),
    ("roll", "video2roll", "onset_f1"),
    ("real", "cop_perform", "onset_f1"),
    ("real", "random_notes", "onset_f1"),
    ("real", "cop_perform", "lag_onset_f1"),
    ("real", "random_notes", "lag_onset_f1"),
    ("real", "cop_perform_basic_pitch", "lag_onset_f1"),
    ("real", "basic_pitch", "onset_f1"),
)


def readme_table(results: list[dict]) -> str:
    "The README's table: headline numbers of reports/results.json, ours beside the paper's."
    found = {(r["table"], r["row"], r["metric"], r["label"] == "paper"): r for r in results}
    lines = [
        "| table | row | metric | ours (95 % interval) | n | label | paper |",
        "|---|---|---|---|---|---|---|",
    ]
    for table, row, metric in HEADLINES:
        ours, paper = found.get((table, row, metric, False)), found.get((table, row, metric, True))
        if ours is None:
            continue
        interval = (
            "" if ours["ci_low"] is None else f" [{ours['ci_low']:.2f}, {ours['ci_high']:.2f}]"
        )
        value = "not run" if ours["value"] is None else f"{ours['value']:.2f}{interval}"
        lines.append(
            f"| {table} | {row} | {metric}{' [' + ours['unit'] + ']' if ours['unit'] else ''} | {value} | {ours['n'] or ''} | {ours['label']} | {'' if paper is None else format(paper['value'], '.2f')} |"
        )
    return "\n".join(lines)


def readme(args) -> int:
    "Write the results table into README.md, between its two marks."
    root = project_root()
    text = (root / "README.md").read_text()
    head, _, rest = text.partition("<!-- results -->\n")
    _, _, tail = rest.partition("<!-- end of results -->")
    if not tail:
        raise CopError("README.md lacks the marks '<!-- results -->' and '<!-- end of results -->'")
    made = f"{head}<!-- results -->\n{readme_table(json.loads((root / 'reports' / 'results.json').read_text()))}\n<!-- end of results -->{tail}"
    if args.check:
        if made != text:
            raise CopError(
                "the README's table is not that of reports/results.json: run `cop readme`"
            )
    else:
        (root / "README.md").write_text(made)
    return 0


def docs(args) -> int:
    "All library notebooks as HTML pages with an index, in _docs/."
    from nbconvert import HTMLExporter

    from cop_repro.core import atomic_file

    root, links = project_root(), []
    for path in sorted((root / "nbs").rglob("*.ipynb")):
        if "stages" in path.parts or ".ipynb_checkpoints" in path.parts:
            continue
        target = root / "_docs" / f"{path.stem}.html"
        with atomic_file(target) as temporary:
            temporary.write_text(HTMLExporter().from_filename(str(path))[0])
        links.append(f'<li><a href="{target.name}">{path.parent.name}/{path.stem}</a></li>')
        print(target.relative_to(root), flush=True)
    with atomic_file(root / "_docs" / "index.html") as temporary:
        temporary.write_text(
            f"<!doctype html><meta charset=utf-8><title>cop_repro</title><h1>cop_repro: the notebooks</h1><ul>{''.join(links)}</ul>"
        )
    return 0


def build_parser() -> argparse.ArgumentParser:
    "All commands and options."
    parser = argparse.ArgumentParser(
        prog="cop",
        description="Chain-of-Perform: silent piano video in, sound and MIDI out; and the papers' tables, regenerated.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, function, text):
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(function=function)
        return made

    p = command(
        "perform", perform, "turn a silent piano video into WAV, MIDI and a video with sound"
    )
    p.add_argument("video")
    p.add_argument("-o", "--output", required=True, help="folder to make")
    p.add_argument("--text", default="the sound of playing piano")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--corners",
        help="keyboard corners in pixels: 'x,y x,y x,y x,y' (top left, top right, bottom right, bottom left)",
    )
    p.add_argument("--assets", help="folder with other weights")
    p = command("run", run_stage, "run one stage notebook of the pipeline")
    p.add_argument("stage")
    p.add_argument("--item", default="", help="which entry of the stage's matrix")
    p.add_argument("--params", default="params.yaml")
    p = command("profile", profile, "run the pipeline with a profile's numbers in a scratch copy")
    p.add_argument("name")
    p.add_argument("targets", nargs="*")
    p.add_argument(
        "--publish", action="store_true", help="copy its reports to reports/profiles/NAME"
    )
    p = command("compare", compare, "hold two result files against each other")
    p.add_argument("a")
    p.add_argument("b")
    p = command("real", real, "score the shipped models on real piano videos that have sound")
    p.add_argument("videos", nargs="+")
    p.add_argument("-o", "--output", default="reports/real.json")
    p.add_argument("--picture")
    p = command(
        "score",
        score,
        "score a folder of sounds, MIDI files or videos against the true ones, matched by file name",
    )
    p.add_argument("ref")
    p.add_argument("est")
    p.add_argument(
        "--metrics",
        nargs="+",
        help="names, with spaces or commas between them; default: all that the files allow",
    )
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument("-o", "--output", help="write JSON to this file")
    p.add_argument(
        "--judges",
        help="weights behind FAD and the like: PATH of embedded judges, or vggish=, panns=, passt=FILE.safetensors, ast=, clap=, openclip=, wav2clip=FOLDER; default: the shipped ones",
    )
    p.add_argument("--works", help="JSON, id -> work: intervals are drawn over works")
    p.add_argument("--texts", help="JSON, id -> caption, for clap_score")
    p.add_argument(
        "--cut",
        action="store_true",
        help="score the common beginning of sounds of different lengths",
    )
    p.add_argument("--seed", type=int, default=0)
    p = command(
        "plan",
        plan,
        "parameters, memory, operations, disk and hours of a profile's training runs, before anything starts",
    )
    p.add_argument("--profile", default="default")
    p.add_argument("--gpus", type=int, default=8)
    p.add_argument("--gpu-memory", type=float, default=80.0, help="GB of one GPU")
    p.add_argument("--gpu", default="a100", help="a100, a800 or h100: whose peak speed is meant")
    p.add_argument("--mfu", type=float, default=0.35, help="assumed share of the peak, 0 to 1")
    p.add_argument(
        "--sharded",
        action="store_true",
        help="divide weights, gradients and moments among the GPUs",
    )
    p.add_argument("--json", action="store_true")
    p = command(
        "weights",
        weights,
        "list, fetch, lock or check EnCodec, FLAN-T5 and OpenCLIP; make assets of them; convert a pickled checkpoint",
    )
    p.add_argument("action", choices=("list", "fetch", "lock", "verify", "use", "convert"))
    p.add_argument(
        "name",
        nargs="?",
        default="",
        help="encodec, flan_t5_large, openclip_bigg; default all; for convert: a pickled checkpoint, which is read once, tensors only",
    )
    p.add_argument("--folder", help="where they lie, default weights/ of the checkout")
    p.add_argument("--json", action="store_true", help="for list")
    p.add_argument(
        "--clips",
        default="features/clips/piano",
        help="for use: store whose training sound EnCodec's statistics are fitted on",
    )
    p.add_argument("-o", "--output", default="weights/assets", help="for use: folder of the assets")
    p = command("shards", shards, "check every byte of a sharded store, and list its refused clips")
    p.add_argument("folder")
    p.add_argument("--show", type=int, default=20, help="refused clips to print")
    command("doctor", doctor, "say what this machine has and lacks")
    p = command(
        "fingerprints", fingerprints, "write (or check) the code fingerprints of the stages"
    )
    p.add_argument("--check", action="store_true")
    p = command("readme", readme, "write (or check) the README's results table")
    p.add_argument("--check", action="store_true")
    command("docs", docs, "write the notebooks as HTML pages to _docs/")
    p = command(
        "bench",
        bench,
        "measure speed as ratios, by length of the clip, and how many clips a second are loaded",
    )
    p.add_argument("--loader", action="store_true", help="only the loading of features")
    p.add_argument("--json", action="store_true", help="with --loader or --scoring")
    p.add_argument(
        "--scoring",
        action="store_true",
        help="only the metrics, against reference libraries, and the memory of `cop score`",
    )
    p.add_argument(
        "--clips",
        type=int,
        default=100,
        help="with --scoring: clips of 10 s, 10 or more; 1000 take minutes",
    )
    p.add_argument("-o", "--output", help="also write the numbers as JSON")
    p = command(
        "nuisance",
        experiment("nuisance"),
        "which nuisance of the rendered videos buys what: one predictor for each group left out",
    )
    p.add_argument("videos", nargs="*", help="real piano videos with sound")
    p.add_argument("-o", "--output", default="reports/nuisance.json")
    p.add_argument("--clips", type=int, default=24, help="training videos of each variant")
    p.add_argument("--test-clips", type=int, default=8)
    p.add_argument("--steps", type=int, default=200)
    p.add_argument("--variants", nargs="+", help="e.g. all none without_hands; default: every one")
    p = command(
        "codecs",
        experiment("codecs"),
        "candidates for the codec, judged by what a fixed small DiT generates through each",
    )
    p.add_argument("candidates", nargs="*", help="NAME=FILE.safetensors")
    p.add_argument("-o", "--output", default="reports/codecs.json")
    p.add_argument("--clips", type=int, default=60, help="training clips")
    p.add_argument("--test-clips", type=int, default=8)
    p.add_argument("--steps", type=int, default=150)
    p = command(
        "verdicts",
        experiment("verdicts"),
        "judge the piano claims by a profile's scored rows: what another training seed says",
    )
    p.add_argument("name", help="a profile, e.g. seed1")
    p = command("release", release, "copy trained models into data/assets and track them")
    p.add_argument(
        "names",
        nargs="*",
        help="names of params.yaml's release.assets, e.g. general.safetensors; default all",
    )
    command(
        "manifest",
        manifest,
        "make the corpus manifest anew from the installed scores and our études",
    )
    command("lock", lock, "print the requirements of settings.ini")
    return parser


def with_own_programs(path: str) -> str:
    "A search path that begins with the folder of this Python: `dvc` lies there, also where no environment was activated."
    own = str(Path(sys.executable).parent)
    return (
        path if path.split(os.pathsep)[0] == own else os.pathsep.join(p for p in (own, path) if p)
    )


def main(argv: list[str] | None = None) -> int:
    "Run one command; a `CopError` is one line on stderr and exit code 2."
    args = build_parser().parse_args(argv)
    os.environ["PATH"] = with_own_programs(os.environ.get("PATH", ""))
    try:
        return args.function(args)
    except CopError as error:
        print(f"cop {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `cop ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print(f"cop {args.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
