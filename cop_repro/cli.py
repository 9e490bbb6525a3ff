"The command line: the only place that knows paths, YAML files, progress and exit codes."
import argparse, ast, hashlib, importlib, json, os, resource, shutil, subprocess, sys, time
from pathlib import Path

import yaml

from cop_repro.core import CopError, ParamsError, code_fingerprint, die_with_parent, load_weights, project_root, save_weights, write_json

_last = {"at": 0.0}

def progress(done: int, total: int, message: str = "") -> None:
    "One plain line at a time: at most one every five seconds, and the last."
    now = time.monotonic()
    if done < total and now - _last["at"] < 5: return
    _last["at"] = now
    print(f"[{done:>5}/{total}] {message}", flush=True)

# ---------------------------------------------------------------- parameters

OPEN = {"keep", "sets"}  # mappings with free keys: a profile replaces them whole

SECTIONS = {"dit": "model.dit.DiTConfig", "train": "training.loop.TrainConfig", "roll": "model.roll.RollConfig", "codec": "model.codec.CodecConfig", "encoders": "model.encoders.EncodersConfig"}

def _has_field(section: str, key: str) -> bool:
    "Whether a section becomes a dataclass with this field, which params.yaml leaves at its default."
    if section not in SECTIONS: return False
    module, _, name = f"cop_repro.{SECTIONS[section]}".rpartition(".")
    return key in getattr(importlib.import_module(module), name).__dataclass_fields__

def _merge(base: dict, over: dict, where: str = "") -> dict:
    "A profile changes numbers of params.yaml; a key that neither the file nor the section's dataclass has is an error."
    made = dict(base)
    for key, value in over.items():
        if key not in base and _has_field(where.rstrip(".").rpartition(".")[2], key):
            made[key] = value
            continue
        if key not in base: raise ParamsError(f"profile: unknown parameter {where + key!r}; known are {', '.join(base)}")
        made[key] = _merge(base[key], value, f"{where}{key}.") if isinstance(base[key], dict) and isinstance(value, dict) and key not in OPEN else value
    return made

def load_params(path: Path) -> dict:
    "The whole parameters file."
    if not path.is_file(): raise ParamsError(f"no parameters file {path.name}")
    try: made = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error: raise ParamsError(f"{path.name} is not YAML: {error}") from None
    if not isinstance(made, dict): raise ParamsError(f"{path.name} holds no parameters")
    return made

# ---------------------------------------------------------------- stages

STAGE_PARAMETERS = {"params_file", "item"}

def _check_notebook(path: Path) -> None:
    "papermill only warns about an untagged or unknown parameter and then runs with the defaults; here it is an error."
    cells = json.loads(path.read_text())["cells"]
    tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1: raise CopError(f"{path.name} has {len(tagged)} cells tagged 'parameters'; exactly one is needed (did nbdev_clean drop the tag?)")
    names = {line.split("=")[0].split(":")[0].strip() for line in "".join(tagged[0]["source"]).splitlines() if "=" in line}
    if names != STAGE_PARAMETERS: raise CopError(f"{path.name} declares the parameters {sorted(names)}; stages declare {sorted(STAGE_PARAMETERS)}")

# Large arrays come and go in every training step. glibc maps and unmaps each of them, and touching fresh pages costs up to a third of a step:
# memory is kept instead. Read at process start, so it acts on the kernel that runs the stage and on its workers.
MEMORY_KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(8 << 30), "MALLOC_TOP_PAD_": str(64 << 20)}

def run_stage(args) -> int:
    "Execute a stage notebook with papermill; the executed copy goes to runs/."
    root = project_root()
    notebook = root / "nbs" / "stages" / f"{args.stage}.ipynb"
    stages = sorted(p.stem for p in notebook.parent.glob("*.ipynb"))
    if args.stage not in stages: raise CopError(f"no stage {args.stage!r}; stages are {', '.join(stages)}")
    params = load_params(root / args.params)
    if args.stage not in params: raise ParamsError(f"{args.params} has no section {args.stage!r}")
    _check_notebook(notebook)
    die_with_parent()
    settings = root / "work" / "ipython" / "profile_default" / "ipython_kernel_config.py"  # the kernel's own profile: a stage must not depend on a user's start-up files
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text("c.Application.log_level = 'ERROR'\n")
    os.environ["IPYTHONDIR"] = str(settings.parents[1])
    os.environ["PYTHONWARNINGS"] = "ignore"  # a stage prints its progress, not the remarks of libraries
    for name, value in {"OMP_WAIT_POLICY": "PASSIVE", **MEMORY_KEPT}.items(): os.environ.setdefault(name, value)
    import logging, warnings
    warnings.simplefilter("ignore")
    logging.getLogger("papermill").setLevel(logging.ERROR)
    sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema's check of non-ASCII web addresses: two seconds to load, no use here
    import papermill
    from papermill.exceptions import PapermillExecutionError
    name = args.stage + (f"-{args.item}" if args.item else "")
    out = root / "runs" / f"{name}.ipynb"
    out.parent.mkdir(exist_ok=True)
    began = time.monotonic()
    print(f"stage {name} begins", flush=True)
    try:
        papermill.execute_notebook(notebook, out, {"params_file": args.params, "item": args.item or ""}, cwd=str(root), progress_bar=False,
                                   stdout_file=sys.stdout, stderr_file=sys.stderr, kernel_name="python3", autosave_cell_every=0)
    except PapermillExecutionError as error:
        if any(c.__name__ == error.ename for c in _subclasses(CopError)): raise CopError(f"stage {name}: {error.evalue}") from None
        raise CopError(f"stage {name} failed: {error.ename}: {error.evalue}\n  the executed notebook with the traceback is {out.relative_to(root)}") from None
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"stage {name} took {time.monotonic() - began:.0f} s, {used:.1f} GB of memory at most", flush=True)
    return 0

def _subclasses(cls):
    yield cls
    for sub in cls.__subclasses__(): yield from _subclasses(sub)

def stage_modules(notebook: Path, root: Path) -> list[str]:
    "Every module of the project that a notebook needs, directly or through others."
    def imported(source: str, package: str) -> set[str]:
        found = set()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.ImportFrom): continue
            if node.level: found.add(".".join([*package.split(".")[:len(package.split(".")) - node.level + 1], *(node.module or "").split(".")]).strip("."))
            elif (node.module or "").startswith("cop_repro"): found.add(node.module)
        return found
    cells = json.loads(notebook.read_text())["cells"]
    todo = set().union(*(imported("".join(c["source"]), "") for c in cells if c["cell_type"] == "code"))
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        path = root / (name.replace(".", "/") + ".py")
        if name in seen or not path.exists() or name == "cop_repro.cli": continue
        seen.add(name)
        todo |= imported(path.read_text(), name.rpartition(".")[0])
    return sorted(seen)

def _stage_fingerprint(notebook: Path, root: Path) -> str:
    "Hash of a stage's own code cells and of every module it uses."
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    own = [ast.dump(ast.parse("".join(c["source"]))) for c in cells]
    return hashlib.sha256("\n".join([*own, code_fingerprint(*stage_modules(notebook, root))]).encode()).hexdigest()[:16]

def fingerprints(args) -> int:
    "Write fingerprints.yaml: one code fingerprint a stage, which dvc.yaml depends on."
    root = project_root()
    made = {p.stem: _stage_fingerprint(p, root) for p in sorted((root / "nbs" / "stages").glob("*.ipynb"))}
    text = "# Written by `make export`: hash of the syntax trees of a stage's cells and of all modules it uses. Prose does not change it.\n" + yaml.safe_dump(made)
    path = root / "fingerprints.yaml"
    if args.check:
        if not path.exists() or path.read_text() != text: raise CopError("fingerprints.yaml is stale: run `make export`")
    elif not path.exists() or path.read_text() != text: path.write_text(text)
    return 0

def profile(args) -> int:
    "Run the whole pipeline with a profile's numbers in a scratch copy of the work tree."
    root = project_root()
    over = load_params(root / "profiles" / f"{args.name}.yaml")
    params = _merge(load_params(root / "params.yaml"), over)
    scratch = root / "work" / "profiles" / args.name
    scratch.mkdir(parents=True, exist_ok=True)
    listed = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=root, capture_output=True, check=True).stdout.decode().split("\0")
    own = lambda name: name == "dvc.lock" or (name.startswith("reports/") and name != "reports/real.json")  # the scratch copy makes its own
    kept = {name for name in listed if name and not own(name) and (root / name).is_file()}
    for old in scratch.rglob("*.py"):
        if str(old.relative_to(scratch)) not in kept: old.unlink()
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
    if code: raise CopError(f"profile {args.name}: dvc repro failed with code {code}; the messages above say where")
    print(f"profile {args.name}: reports are in {(scratch / 'reports').relative_to(root)}", flush=True)
    if args.publish:
        target = root / "reports" / "profiles" / args.name
        shutil.copytree(scratch / "reports", target, dirs_exist_ok=True)
        print(f"published to {target.relative_to(root)}", flush=True)
    return 0

# ---------------------------------------------------------------- what a run will need

def make_plan(params: dict, machine, manifest_items: list | None = None) -> dict:
    "Counts, memory, operations, disk and hours of all training runs of one parameters file; a job that does not fit is an error."
    from dataclasses import asdict, replace
    from cop_repro.core import RATES, from_dict
    from cop_repro.data.real_sets import REAL_SETS
    from cop_repro.model.dit import DiTConfig, StreamConfig
    from cop_repro.model.encoders import EncodersConfig
    from cop_repro.model.roll import RollConfig
    from cop_repro.training import plan as P
    from cop_repro.training.contrast import ContrastConfig
    from cop_repro.training.guidance import GuidanceConfig
    from cop_repro.training.loop import TrainConfig
    def section(cls, value, where, drop=()): return from_dict(cls, {k: v for k, v in value.items() if k not in drop}, where)
    general, rolls, piano, later = (params[n] for n in ("train_general", "train_roll", "train_piano", "train_preference"))
    dit, stream = section(DiTConfig, general["dit"], "train_general.dit"), section(StreamConfig, piano["roll_stream"], "train_piano.roll_stream")
    reader, tokens = section(RollConfig, rolls["roll"], "train_roll.roll"), params["encode"]["max_tokens"]
    heads = section(ContrastConfig, later["variants"]["cl"]["settings"], "train_preference.variants.cl.settings")
    counts = P.published_counts(dit, stream, reader.width, heads.width)
    train = {"stage1": section(TrainConfig, general["train"], "train_general.train"), "roll": section(TrainConfig, rolls["train"], "train_roll.train"),
             "piano": section(TrainConfig, piano["train"], "train_piano.train"), **{n: section(TrainConfig, v["train"], f"train_preference.variants.{n}.train") for n, v in later["variants"].items()}}
    known: dict = {}
    def cost(kind, config, seconds, precision):
        key = (kind, config, seconds, precision)
        if key not in known: known[key] = P.dit_cost(config, RATES.latents(seconds), tokens, precision) if kind == "dit" else P.reader_cost(config, RATES.frames(seconds), precision)
        return known[key]
    grown = replace(dit, roll=stream, roll_keys=88)
    base = lambda seconds, cfg: cost("dit", dit, seconds, cfg.precision)
    both = lambda seconds, cfg: (cost("dit", grown, seconds, cfg.precision), cost("reader", reader, seconds, cfg.precision))
    first = replace(train["stage1"], steps=general["t2a_steps"], warmup_steps=0, ema=0.0)
    def jobs():
        yield P.stage1_job("train_general: sound and text", base(general["crop_s"], first), first)
        yield P.stage1_job("train_general", base(general["crop_s"], train["stage1"]), train["stage1"])
        yield P.stage1_job("train_roll", cost("reader", reader, rolls["crop_s"], train["roll"].precision), train["roll"])
        for n, v in piano["variants"].items():
            yield P.stage2_job(f"train_piano@{n}", *both(piano["crop_s"], train["piano"]), train["piano"], section(GuidanceConfig, v, f"train_piano.variants.{n}"), piano["general_items"])
        for n, v in later["variants"].items():
            if v["objective"] == "cl": yield P.contrast_job(f"train_preference@{n}", base(later["crop_s"], train[n]), train[n], dit.depth, counts["base_cl"] - counts["base"])
            else: yield P.preference_job(f"train_preference@{n}", *both(later["crop_s"], train[n]), train[n], v["settings"].get("joint_items"))
    listed = [(job, P.fit_job(job, machine)) for job in jobs()]  # a job that does not fit ends the plan at once
    jobs, fits = zip(*listed)
    real_encoders = params["train_encoders"]["encoders"]["kind"] == "real"
    clips = _planned_clips(params, manifest_items) if not real_encoders else {"film": REAL_SETS["VGGSound"].num_paper, "sound": sum(s.num_paper for s in REAL_SETS.values() if s.num_paper and s.name != "VGGSound"), "piano": 12 * 360}
    size = params["prepare"]["strip"]
    each = {n: P.feature_bytes(10.0, tokens, dit.text_width, dit.video_features, (size["height"], size["width"]) if n == "piano" else None, n != "sound") for n in clips}
    encoding = sum(n * P.encoder_flops(0 if kind == "sound" else RATES.frames(10.0), tokens) for kind, n in clips.items()) if real_encoders else 0
    sample_steps = params["evaluate"]["sample"]["num_steps"]
    at10 = known[key].flops if (key := ("dit", grown, 10.0, train["piano"].precision)) in known else P.dit_flops(grown, RATES.latents(10.0), tokens)
    return {"profile": params["profile"], "machine": asdict(machine), "parameters": {**counts, "reader": both(piano["crop_s"], train["piano"])[1].parameters, "piano": sum(c.parameters for c in both(piano["crop_s"], train["piano"]))},
            "jobs": [asdict(f) for f in fits], "memory_gb": max(f.memory["total"] for f in fits),
            "flops": {"training": sum(f.flops for f in fits), "frozen_encoders": encoding, "one_clip_forward": at10, "sampling_one_clip": 3 * sample_steps * at10},
            "clips": clips, "disk_gb": {"features": sum(n * each[k] for k, n in clips.items()) / 1e9, "checkpoints": max(P.checkpoint_bytes(j.trained, j.ema, 2) for j in jobs) / 1e9,
                                         "models": sum(4 * j.trained for j in jobs if "sound and text" not in j.name) / 1e9},
            "hours": {**{f.job: f.hours for f in fits}, "frozen_encoders": P.hours(encoding, machine), "total": sum(f.hours for f in fits) + P.hours(encoding, machine)},
            "assumptions": _plan_assumptions(machine, real_encoders)}

def _planned_clips(params: dict, items: list | None) -> dict[str, int]:
    "Clips of the rendered corpus by what they bring."
    found = {"film": 0, "sound": 0, "piano": 0}
    for item in items or []: found[{"foley": "film", "t2a": "sound"}.get(item.domain, item.domain)] += 1
    return found

def _plan_assumptions(machine, real_encoders: bool) -> list[str]:
    "What the plan does not know."
    return [f"counted: parameters, operations (products, convolutions, attention; a training step is 3 forward passes), kept tensors, features, checkpoints",
            f"assumed: a step reaches {machine.mfu:.0%} of the peak of a {machine.kind} ({', '.join(f'{k} {v:g} TFLOP/s' for k, v in _peaks(machine.kind).items())}); --mfu changes it",
            f"assumed: the allocator wastes {machine.waste:.0%} and context and workspaces take {machine.context_gb} GB; {'weights, gradients and moments are divided among the GPUs' if machine.sharded else 'every GPU holds all weights (--sharded divides them)'}",
            "clips: Table 1 of arXiv 2503.22200 and twelve hours of piano (PianoYT 2 h, Piano-10h) in windows of 10 s" if real_encoders else "clips: those of the manifest that prepare.keep leaves; embedded encoders are too small to count",
            "not counted: loading, communication between GPUs, evaluation, the decoded recordings themselves"]

def _peaks(kind: str) -> dict[str, float]:
    from cop_repro.training.plan import PEAK_TFLOPS
    return PEAK_TFLOPS[kind]

def plan(args) -> int:
    "Say what the training runs of a profile will need, before anything starts."
    from cop_repro.data.clips import keep_items, read_manifest
    from cop_repro.training.plan import Machine
    root = project_root()
    params = load_params(root / "params.yaml")
    if args.profile != "default":
        path = root / "profiles" / f"{args.profile}.yaml"
        if not path.is_file(): raise ParamsError(f"no profile {args.profile!r}; profiles are default, {', '.join(sorted(p.stem for p in path.parent.glob('*.yaml')))}")
        params = _merge(params, load_params(path))
    manifest = root / params["prepare"]["manifest"]
    items = keep_items(read_manifest(manifest)[0], params["prepare"]["keep"]) if manifest.exists() else None
    made = make_plan(params, Machine(args.gpus, args.gpu_memory, args.gpu, args.mfu, args.sharded), items)
    print(json.dumps(made, indent=1) if args.json else plan_text(made))
    return 0

def plan_text(made: dict) -> str:
    "A plan as tables."
    m = made["machine"]
    lines = [f"profile {made['profile']} on {m['gpus']} x {m['kind']} with {m['memory_gb']:g} GB", "", f"{'network':22s} {'parameters':>14s}"]
    lines += [f"{n:22s} {c:14,d}" for n, c in made["parameters"].items()]
    lines += ["", f"{'training run':32s} {'steps':>8s} {'clips/GPU':>10s} {'accumulate':>10s} {'recompute':>10s} {'GB/GPU':>8s} {'PFLOP':>12s} {'hours':>9s}"]
    for j in made["jobs"]:
        lines.append(f"{j['job']:32s} {j['steps']:8d} {j['clips_per_gpu']:10d} {j['accumulate']:10d} {'yes' if j['checkpointing'] else 'no':>10s} {j['memory']['total']:8.2f} {j['flops'] / 1e15:12,.3f} {j['hours']:9.3f}")
    full = max(made["jobs"], key=lambda j: j["memory"]["total"])
    lines += ["", f"memory of one GPU in {full['job']}: " + ", ".join(f"{k} {v:.2f} GB" for k, v in full["memory"].items())]
    lines += [f"disk: " + ", ".join(f"{k} {v:,.2f} GB" for k, v in made["disk_gb"].items()) + f" ({', '.join(f'{n:,} {k}' for k, n in made['clips'].items())} clips)"]
    lines += [f"hours: training {made['hours']['total'] - made['hours']['frozen_encoders']:.2f}, frozen encoders {made['hours']['frozen_encoders']:.2f}, together {made['hours']['total']:.2f}"]
    return "\n".join([*lines, "", *(f"- {a}" for a in made["assumptions"])])

# ---------------------------------------------------------------- other people's networks

def weights(args) -> int:
    "List, fetch, lock or check the networks of others that the published model uses; `use` makes assets of them."
    from cop_repro.model import weights as W
    folder = Path(args.folder) if args.folder else project_root() / "weights"
    if args.action == "list":
        rows = W.weights_rows(folder)
        if args.json: print(json.dumps(rows, indent=1)); return 0
        for r in rows:
            print(f"{r['name']:14s} {r['state']:16s} {r['gigabytes']:7.3f} GB  {r['purpose']}\n{'':14s} from {r['source']} at {r['revision']}" + (f" ({r['unconfirmed']}: not confirmed)" if r["unconfirmed"] else "") +
                  f"\n{'':14s} files {', '.join(r['files'])}\n{'':14s} licence {r['licence']}\n{'':14s} looked for in {r['looked_for']}")
        lack = [r for r in rows if not r["state"].startswith("present")]
        print(f"{len(rows) - len(lack)} of {len(rows)} present" + (f"; to fetch: {sum(r['gigabytes'] for r in lack):.1f} GB, e.g. `cop weights fetch {lack[0]['name']}`" if lack else ""))
        return 0
    if args.action == "convert":
        from cop_repro.judges.pretrained import convert_checkpoint
        print(f"wrote {convert_checkpoint(args.name).name}")
        return 0
    if args.action == "use": return _use_weights(folder, Path(args.clips), Path(args.output))
    for name in [args.name] if args.name else list(W.WEIGHTS):
        if args.action == "fetch": W.fetch_weights(name, folder, progress)
        elif args.action == "lock": W.lock_weights(name, folder)
        print(f"{name}: {len(W.verify_weights(name, folder))} files as they should be" + ("" if (W.weights_folder(name, folder) / W.LOCK).is_file() else "; no lock yet, so only format and shapes were checked: `cop weights lock`"))
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
    if not len(rows): raise CopError(f"{clips} holds no training clips to fit EnCodec's statistics on")
    save_encoders(output / "encoders.safetensors", build_encoders(real_encoders(folder)), split)
    save_codec(output / "codec.safetensors", real_codec(folder, (store_wav(store, rows[i:i + 4]) for i in range(0, min(len(rows), 512), 4))), split)
    print(f"{output}/encoders.safetensors and {output}/codec.safetensors: name them in train_encoders.asset and train_codec.asset")
    return 0

def shards(args) -> int:
    "Read every byte of a sharded store; say what it holds and which clips were refused."
    from cop_repro.data.shards import ShardedStore
    store = ShardedStore(args.folder)
    files, rejects = store.verify(progress), store.rejects
    print(f"{store.folder.name}: {len(store)} clips in {len(store.names)} shards, {files} files as they were written; columns " + ", ".join(f"{n} {c.shape[1:]} {c.dtype}" for n, c in store.columns.items()))
    print(f"{len(rejects)} clips refused" + "".join(f"\n  {name}: {why}" for name, why in list(rejects.items())[:args.show]))
    return 0

# ---------------------------------------------------------------- results

def compare(args) -> int:
    "Hold two result files against each other, with a tolerance per metric."
    from cop_repro.benchmark.report import compare_results
    tables = []
    for name in (args.a, args.b):
        path = Path(name)
        if not path.is_file(): raise CopError(f"no result file {name}")
        try: tables.append(json.loads(path.read_text()))
        except json.JSONDecodeError as error: raise CopError(f"{name} is not JSON: {error}") from None
    lines, worst = compare_results(*tables)
    print("\n".join(lines))
    return 0 if worst == 0 else 1

def release(args) -> int:
    "Copy trained models into data/assets (large ones in bfloat16), track them, push their objects into the store inside the repository."
    root = project_root()
    for target, source in load_params(root / "params.yaml")["release"]["assets"].items():
        source = {"model": source} if isinstance(source, str) else source
        for path in source.values():
            if not (root / path).exists(): raise CopError(f"no trained model at {path}: run the pipeline or the profile that makes it first")
        tensors, meta = load_weights(root / source["model"])
        if "reader" in source:
            reader, about = load_weights(root / source["reader"])
            if about.get("config") != meta.get("reader"): raise CopError(f"{source['reader']} is not of the configuration of the reader in {source['model']}")
            tensors |= {f"reader.{k}": v for k, v in reader.items()}
        large = sum(v.numel() for v in tensors.values()) > 1_000_000  # a small model, or a small part of one, gains nothing
        half = {k: v.bfloat16() if large and v.is_floating_point() and not k.startswith("reader.") else v for k, v in tensors.items()}
        save_weights(root / "data" / "assets" / target, half, {**meta, "released_from": source})
        print(f"{' + '.join(source.values())} -> data/assets/{target}")
    for command in (["dvc", "add", "data"], ["dvc", "push", "data.dvc"]): subprocess.run(command, cwd=root, check=True)
    return 0

def lock(args) -> int:
    "Print what settings.ini asks for, one requirement a line."
    from configparser import ConfigParser
    parser = ConfigParser(delimiters=["="])
    parser.read(project_root() / "settings.ini", encoding="utf-8")
    print("\n".join((parser["DEFAULT"]["requirements"] + " " + parser["DEFAULT"]["dev_requirements"]).split()))
    return 0

def doctor(args) -> int:
    "Say what this machine has and what is missing, with the remedy."
    from cop_repro.systems.cop import ASSETS
    import importlib.metadata as metadata, torch
    root = project_root()
    bad = 0
    def say(ok: bool, what: str, remedy: str = "") -> None:
        nonlocal bad
        bad += not ok
        print(f"{'ok     ' if ok else 'MISSING'} {what}" + (f" -- {remedy}" if not ok and remedy else ""))
    say(sys.version_info[:2] == (3, 11), f"Python {sys.version.split()[0]}", "the lock file is made for 3.11")
    for name in ("torch", "torchaudio", "encodec", "open_clip_torch", "librosa", "pretty_midi", "matplotlib", "jupyterlab", "papermill", "dvc", "nbdev", "basic-pitch", "music21"):
        try: say(True, f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError: say(False, name, "run `make setup`")
    say((root / "data" / "manifest.json").exists(), "data folder", "run `make setup`")
    for name in ASSETS: say((root / "data" / "assets" / name).exists(), f"asset {name}", "run `make setup`")
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
    out = perform_video(Path(args.video), Path(args.output), performer, text=args.text, seed=args.seed, corners=args.corners, progress=progress)
    for name, what in out.items(): print(f"{name:8s} {what}")
    return 0

def real(args) -> int:
    "Score shipped models on real piano videos against a transcription of their own sound."
    from cop_repro.systems.cop import load_performer, score_real_video
    root = project_root(Path(__file__).parent)
    performer = load_performer(root / "data" / "assets")
    made = [score_real_video(Path(v), performer, picture=Path(args.picture) if args.picture else None, progress=progress) for v in args.videos]
    write_json(args.output, made)
    print(json.dumps(made, indent=1))
    return 0

def _mapping(name: str | None) -> dict | None:
    "A JSON file that maps ids to something."
    if name is None: return None
    try: made = json.loads(Path(name).read_text())
    except (OSError, ValueError) as error: raise CopError(f"{Path(name).name} is not a readable JSON file: {error}") from None
    if not isinstance(made, dict): raise CopError(f"{Path(name).name} must hold one JSON object, id -> value")
    return made

def _judge(args):
    "The extractor that was asked for; the shipped judges where none was and a checkout is at hand."
    from cop_repro.judges.pretrained import load_extractor
    if args.judges:
        kind, _, path = args.judges.partition("=")  # a path may hold the sign too
        return load_extractor("embedded", args.judges) if not path or Path(args.judges).exists() else load_extractor(kind, path)
    try: shipped = project_root(Path(__file__).parent) / "data" / "assets" / "judges.safetensors"
    except CopError: return None
    return load_extractor("embedded", shipped) if shipped.is_file() else None

def score(args) -> int:
    "Score a folder of sounds, MIDI files or films against the true ones."
    from cop_repro.benchmark.score import score_folders
    works, texts = _mapping(args.works), _mapping(args.texts)
    made = score_folders(args.ref, args.est, [n for part in args.metrics for n in part.split(",") if n] if args.metrics else None, _judge(args), works, texts, args.cut, args.seed)
    if args.output: write_json(args.output, made)
    if args.json: print(json.dumps(made, indent=1, allow_nan=False))
    elif not args.output:
        print(f"{made['clips']} clips of {made['works']} works (ids {made['ids']}), {made['sample_rate']} Hz")
        for name, line in made["metrics"].items():
            value = line.get("note", "") if line["value"] is None else f"{line['value']:.4f}" + (f" [{line['interval'][0]:.4f}, {line['interval'][1]:.4f}]" if line["interval"] else "")
            better = {True: "higher is better", False: "lower is better", None: f"closer to {line['reference']:.4f}" if "reference" in line else "neither"}[line["higher_is_better"]]
            print(f"{name:28s} {value} {line['unit']} n={line['n']} ({better}){' ' + line['extractor'] if line['extractor'] else ''}" + (f" undefined: {line['undefined']}" if line["undefined"] else ""))
    return 0

def manifest(args) -> int:
    "Make data/manifest.json anew: works, split, clips, seeds."
    from cop_repro.data.clips import SetSizes, rendered_items, write_manifest
    from cop_repro.data.performance import DEFAULT_WORKS, corpus_scores, etudes, group_works, split_works
    from cop_repro.core import from_dict
    root = project_root()
    cfg = load_params(root / "params.yaml")["manifest"]
    scores = [*etudes(root / "data" / "etudes"), *corpus_scores(DEFAULT_WORKS, progress)]
    works = split_works(group_works(scores), cfg["seed"], cfg["fractions"])
    items = rendered_items(scores, works, from_dict(SetSizes, cfg["sizes"], "manifest.sizes"), cfg["duration_s"], cfg["seed"])
    write_manifest(root / "data" / "manifest.json", items, works, seed=cfg["seed"], fractions=cfg["fractions"], sizes=cfg["sizes"])
    print(f"{len(items)} clips of {len(works)} works")
    return 0

HEADLINES = (("table4", "no_guidance", "si_sdr_spec"), ("table4", "cop_piano", "si_sdr_spec"), ("table5", "cop_velocity", "si_sdr_spec"), ("table5", "cop_velocity_dpo", "si_sdr_spec"), ("table5", "cop_shipped", "si_sdr_spec"),
             ("table4", "audeo_style", "si_sdr_spec"), ("table4", "audeo_style_same_soundfont", "si_sdr_spec"), ("controls", "codec", "si_sdr_spec"), ("controls", "shuffled", "si_sdr_spec"),
             ("table4", "no_guidance", "transcription_f1"), ("table4", "cop_piano", "transcription_f1"), ("table5", "cop_shipped", "transcription_f1"), ("table4", "audeo_style", "transcription_f1"), ("controls", "truth", "transcription_f1"),
             ("roll", "video2roll_clean", "onset_f1"), ("roll", "video2roll", "onset_f1"), ("real", "cop_perform", "onset_f1"), ("real", "random_notes", "onset_f1"),
             ("real", "cop_perform", "lag_onset_f1"), ("real", "random_notes", "lag_onset_f1"))

def readme_table(results: list[dict]) -> str:
    "The README's table: headline numbers of reports/results.json, ours beside the paper's."
    found = {(r["table"], r["row"], r["metric"], r["label"] == "paper"): r for r in results}
    lines = ["| table | row | metric | ours (95 % interval) | n | label | paper |", "|---|---|---|---|---|---|---|"]
    for table, row, metric in HEADLINES:
        ours, paper = found.get((table, row, metric, False)), found.get((table, row, metric, True))
        if ours is None: continue
        interval = "" if ours["ci_low"] is None else f" [{ours['ci_low']:.2f}, {ours['ci_high']:.2f}]"
        value = "not run" if ours["value"] is None else f"{ours['value']:.2f}{interval}"
        lines.append(f"| {table} | {row} | {metric}{' [' + ours['unit'] + ']' if ours['unit'] else ''} | {value} | {ours['n'] or ''} | {ours['label']} | {'' if paper is None else format(paper['value'], '.2f')} |")
    return "\n".join(lines)

def readme(args) -> int:
    "Write the results table into README.md, between its two marks."
    root = project_root()
    text = (root / "README.md").read_text()
    head, _, rest = text.partition("<!-- results -->\n")
    _, _, tail = rest.partition("<!-- end of results -->")
    if not tail: raise CopError("README.md lacks the marks '<!-- results -->' and '<!-- end of results -->'")
    made = f"{head}<!-- results -->\n{readme_table(json.loads((root / 'reports' / 'results.json').read_text()))}\n<!-- end of results -->{tail}"
    if args.check:
        if made != text: raise CopError("the README's table is not that of reports/results.json: run `cop readme`")
    else: (root / "README.md").write_text(made)
    return 0

def docs(args) -> int:
    "All library notebooks as HTML pages with an index, in _docs/."
    from nbconvert import HTMLExporter
    from cop_repro.core import atomic_file
    root, links = project_root(), []
    for path in sorted((root / "nbs").rglob("*.ipynb")):
        if "stages" in path.parts or ".ipynb_checkpoints" in path.parts: continue
        target = root / "_docs" / f"{path.stem}.html"
        with atomic_file(target) as temporary: temporary.write_text(HTMLExporter().from_filename(str(path))[0])
        links.append(f'<li><a href="{target.name}">{path.parent.name}/{path.stem}</a></li>')
        print(target.relative_to(root), flush=True)
    with atomic_file(root / "_docs" / "index.html") as temporary:
        temporary.write_text(f"<!doctype html><meta charset=utf-8><title>cop_repro</title><h1>cop_repro: the notebooks</h1><ul>{''.join(links)}</ul>")
    return 0

LOADER_SECONDS = (1.0, 2.0, 5.0, 10.0)

def bench_loader(folder: Path, clips: int = 64, batch: int = 16, repeats: int = 5) -> list[dict]:
    "Clips a second that the training batches of stage 1 are read with, from one folder and from shards, by length of the window."
    import numpy as np
    from cop_repro.core import RATES, torch_rng
    from cop_repro.data.clips import fill_store
    from cop_repro.data.shards import fill_shards
    from cop_repro.training.general import general_batch
    rng = np.random.default_rng(0)
    columns = {"latents": ((RATES.latents(10.0), 128), "float16"), "video": ((RATES.frames(10.0), 128), "float16"), "has_video": ((), "bool"), "text": ((40, 96), "float16"), "text_mask": ((40,), "bool")}
    make = lambda i: {n: rng.standard_normal(shape).astype(kind) if kind == "float16" else np.ones(shape, bool) for n, (shape, kind) in columns.items()}
    stores = {"one folder": fill_store(folder / "one", [{}] * clips, columns, make, range(clips), 1), "shards": fill_shards(folder / "shards", {str(i): i for i in range(clips)}, columns, make, 16)}
    rows = [int(r) for r in rng.permutation(clips)[:batch]]
    made = []
    for seconds in LOADER_SECONDS:
        line = {"window_s": seconds, "bytes": 4 * (RATES.latents(seconds) * (128 + 128) + 40 * 96)}
        for name, store in stores.items():
            times = []
            for i in range(repeats + 1):
                began = time.perf_counter()
                general_batch(store, rows, torch_rng(0, "bench", i), RATES.latents(seconds))
                times.append(time.perf_counter() - began)
            line[name] = batch / min(times[1:])
        made.append(line)
    return made

def _print_loader(made: list[dict]) -> None:
    "Clips a second by window, and how the seconds of a clip grow with its length."
    print(f"\n{'loading features: window':26s} {'from one folder':>16s} {'from shards':>14s}  MB/clip")
    for r in made: print(f"{r['window_s']:24g} s {r['one folder']:10.0f} clips/s {r['shards']:8.0f} clips/s  {r['bytes'] / 1e6:7.2f}")
    first, last = made[0], made[-1]
    print(f"a window {last['window_s'] / first['window_s']:g} times as long takes {first['one folder'] / last['one folder']:.1f} times as long to load ({first['shards'] / last['shards']:.1f} from shards)")

def _clip_scorings() -> dict[str, tuple]:
    "One quantity of a clip twice: name -> (what it is of, ours, theirs, library)."
    import librosa, numpy as np, torch
    from mir_eval import transcription, transcription_velocity
    from sklearn.metrics import precision_recall_fscore_support
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio as their_si_sdr
    from cop_repro.measure import audio_metrics as m, music_metrics
    n_fft, both = int(2048 * 24_000 / 44_100), lambda f, a, b: (f(a), f(b))
    tensors = lambda a, b: (torch.from_numpy(np.ascontiguousarray(b)), torch.from_numpy(np.ascontiguousarray(a)))
    spectrum = lambda x: np.abs(librosa.stft(x, n_fft=n_fft, hop_length=240, pad_mode="constant")).ravel()
    mel = lambda x: librosa.amplitude_to_db(librosa.feature.melspectrogram(S=np.abs(librosa.stft(x, n_fft=1024, hop_length=240, pad_mode="constant")) / 256, sr=24_000, n_mels=80, norm=None), amin=1e-4, top_db=None)
    def chroma(a, b):
        a, b = both(lambda x: librosa.feature.chroma_stft(y=x, sr=24_000, n_fft=4096, hop_length=960, tuning=0.0, norm=None, pad_mode="constant"), a, b)
        return float(((a * b).sum(0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))).mean())
    def notes(ref, est):
        intervals = lambda n: (np.stack([n.onsets_s, n.offsets_s], 1), librosa.midi_to_hz(n.pitches))
        return [f(*intervals(ref), *([ref.velocities] if v else []), *intervals(est), *([est.velocities] if v else []), offset_ratio=ratio)[2] for ratio in (None, .2) for v, f in ((0, transcription.precision_recall_f1_overlap), (1, transcription_velocity.precision_recall_f1_overlap))]
    def our_notes(ref, est):
        made = music_metrics.note_scores(ref, est)
        return [made[k] for k in ("onset_f1", "onset_velocity_f1", "note_f1", "note_velocity_f1")]
    made = {"si_sdr": ("sounds", m.si_sdr, lambda a, b: float(their_si_sdr(*tensors(a, b))), "torchmetrics"),
            "si_sdr_spec": ("sounds", m.si_sdr_spec, lambda a, b: float(their_si_sdr(*tensors(*both(spectrum, a, b)))), "librosa, torchmetrics"),
            "mel_distance": ("sounds", m.mel_distance, lambda a, b: float(np.abs(mel(a) - mel(b)).mean()), "librosa"),
            "chroma_similarity": ("sounds", m.chroma_similarity, chroma, "librosa"),
            "note_scores": ("notes", our_notes, notes, "mir_eval"),
            "frame_scores": ("rolls", lambda a, b: [v for k, v in music_metrics.frame_scores(a, b).items() if "accuracy" not in k],
                             lambda a, b: [v for how in ("samples", "weighted", "micro") for v in precision_recall_fscore_support(a, b, average=how, zero_division=1)[:3]], "scikit-learn")}
    try: import auraloss
    except ImportError: return made  # for development only
    loss = auraloss.time.SISDRLoss(zero_mean=False, eps=0)
    return {"si_sdr ": ("sounds", m.si_sdr, lambda a, b: -float(loss(*(t[None, None] for t in tensors(a, b)))), "auraloss"), **made}

def _set_scorings() -> dict[str, tuple]:
    "One quantity of a set twice, from features or class logits."
    import numpy as np, torch
    from sklearn.metrics.pairwise import polynomial_kernel
    from torchmetrics.functional import kl_divergence
    from torchmetrics.image.fid import _compute_fid
    from cop_repro.measure import audio_metrics as m
    statistics = lambda x: (torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x, rowvar=False)))
    kernel = lambda x, y: polynomial_kernel(x, y, degree=3, gamma=1 / x.shape[1], coef0=1)
    within = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    cosine = torch.nn.functional.cosine_similarity
    return {"frechet_distance": ("windows", m.frechet_distance, lambda a, b: float(_compute_fid(*statistics(a), *statistics(b))), "torchmetrics"),
            "kid": ("clips", m.kid, lambda a, b: within(kernel(a, a)) + within(kernel(b, b)) - 2 * kernel(a, b).mean(), "scikit-learn"),
            "kl": ("clips", m.kl, lambda a, b: float(kl_divergence(*(torch.from_numpy(x).softmax(1) for x in (a, b)))), "torchmetrics"),
            "clap_score": ("clips", m.clap_score, lambda a, b: float(cosine(*map(torch.from_numpy, (a, b))).mean()), "torch")}

def _clip_inputs(i: int, base) -> dict[str, tuple]:
    "Two sounds, note lists and rolls of 10 s, different for every clip."
    import numpy as np
    from cop_repro.data.notes import make_notes, notes_to_roll
    rng = np.random.default_rng(i)
    t, pitches, velocities = np.sort(rng.uniform(0, 9, 80)), rng.integers(40, 90, 80), rng.integers(30, 110, 80)
    notes = make_notes(pitches, t, t + .4, velocities), make_notes(pitches + rng.integers(0, 2, 80), t + rng.normal(0, .02, 80).clip(-t[0]), t + .4, velocities)
    return {"sounds": tuple(np.roll(b, 7 * i) for b in base), "notes": notes, "rolls": tuple(notes_to_roll(n, 10.0, 25.0).presence > .5 for n in notes)}

def bench_scoring(clips: int = 100) -> list[dict]:
    "Seconds to score clips of 10 s one at a time, with our arithmetic and with libraries that define the same quantities, and how far the two values are apart."
    import numpy as np
    rng = np.random.default_rng(0)
    base = (.1 * rng.standard_normal((2, 240_000)) * np.array([[1.0], [.7]]) + .05 * rng.standard_normal(240_000)).astype(np.float32)
    apart = lambda values: float((abs(np.asarray(values[0]) - values[1]) / np.maximum(abs(np.asarray(values[1])), 1e-3)).max())
    made: dict[str, dict] = {}
    each, sets = _clip_scorings(), _set_scorings()
    for i in range(-1, clips):
        given = _clip_inputs(abs(i), base)
        for name, (kind, ours, theirs, library) in each.items():
            row, values = made.setdefault(name, {"what": f"{name.strip()}, {clips} clips", "ours": 0.0, "other": 0.0, "apart": 0.0, "library": library}), []
            for side, call in (("ours", ours), ("other", theirs)):
                began = time.perf_counter()
                values.append(call(*given[kind]))
                if i >= 0: row[side] += time.perf_counter() - began  # the first run loads libraries and does not count
            row["apart"] = max(row["apart"], apart(values))
    features = lambda n: tuple(rng.standard_normal((n, 128)) + .1 * side for side in (0, 1))
    given = {"clips": features(clips), "windows": features(10 * max(clips, 13))}
    for name, (kind, ours, theirs, library) in sets.items():
        made[name] = {"what": f"{name}, features of {clips} clips", "ours": _seconds(lambda: ours(*given[kind])), "other": _seconds(lambda: theirs(*given[kind])), "apart": apart([ours(*given[kind]), theirs(*given[kind])]), "library": library}
    return list(made.values())

def bench_scoring_memory(folder: Path, counts: tuple[int, int]) -> list[dict]:
    "Largest memory of this process, MB, after `cop score` of folders with few and with many clips: ten sounds a side under many names."
    import numpy as np, soundfile
    from cop_repro.benchmark.score import score_folders
    made, rng = [], np.random.default_rng(0)
    for count in (min(10, *counts), *counts):  # the first run loads libraries and does not count
        for side in ("ref", "est"):
            (folder / str(count) / side).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                path, first = (folder / str(count) / side / f"{n:05d}.wav" for n in (i, i % 10))
                if i < 10: soundfile.write(path, .1 * rng.standard_normal(240_000), 24_000)
                else: os.link(first, path)
        began = time.perf_counter()
        score_folders(folder / str(count) / "ref", folder / str(count) / "est", ["si_sdr_spec", "si_sdr", "mel_distance", "chroma_similarity"])
        made.append({"clips": count, "seconds": time.perf_counter() - began, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})
    return made[1:]

def _print_scoring(rows: list[dict], memory: list[dict]) -> None:
    "Ratios, and memory by number of clips."
    print(f"{'scoring':45s} {'ours':>8s} {'other':>8s}  ratio  apart")
    for r in rows: print(f"{r['what']:45s} {r['ours']:8.3f} {r['other']:8.3f}  {r['ours'] / r['other']:5.2f}  {r['apart']:.0e}  s, {r['library']}")
    for r in memory: print(f"`cop score`, {r['clips']} pairs of WAV files of 10 s: {r['seconds']:.1f} s, peak memory {r['peak_mb']:.0f} MB")

BENCH_LENGTHS_S = (2.5, 5.0, 10.0)

def _seconds(call, repeats: int = 3) -> float:
    "The fastest of some runs, after one that does not count."
    call()
    times = []
    for _ in range(repeats): began = time.perf_counter(); call(); times.append(time.perf_counter() - began)
    return min(times)

def _bench_clips(performer) -> list[tuple]:
    "Seconds a guided step and a clip, and training tokens a second, for clips of several lengths: (name, values by length, unit)."
    import torch
    from cop_repro.core import RATES, torch_rng
    from cop_repro.model.flow import Conditions, SampleConfig, draw_noise_and_time, fm_loss, sample
    steps, model, rows = performer.sample.num_steps, performer.piano, {"guided step": {}, "clip": {}, "training": {}}
    for length_s in BENCH_LENGTHS_S:
        n = RATES.latents(length_s)
        x = torch.randn(1, n, model.dit.config.latent_channels, generator=torch_rng(0, "bench"))
        cond = Conditions(text=torch.zeros(1, 8, model.dit.config.text_width), video=torch.zeros(1, n, model.dit.config.video_features), roll=torch.zeros(1, n, 88))
        with torch.inference_mode(): rows["guided step"][length_s] = _seconds(lambda: sample(model, x, cond, SampleConfig(num_steps=2)), 2) / 2
        rows["clip"][length_s] = steps * rows["guided step"][length_s]
        def learn():
            noise, t = draw_noise_and_time(x, torch_rng(0, "bench", "t"))
            fm_loss(model, x, cond, noise, t).backward()
            model.zero_grad(set_to_none=True)
        rows["training"][length_s] = n / _seconds(learn, 2)
    return [("guided step (both branches in one batch)", rows["guided step"], "s"), (f"clip, {steps} guided steps", rows["clip"], "s"), ("training, forward and backward", rows["training"], "tokens/s")]

def _bench_paper_layer() -> tuple:
    "One layer of the published three-stream network, full width: seconds for both branches of a guided step, by clip length."
    import torch
    from dataclasses import replace
    from cop_repro.core import RATES, torch_rng
    from cop_repro.model.dit import MultiStreamDiT, paper_config
    from cop_repro.model.flow import Conditions
    found = {}
    for clamp in (None, 50.0):
        model = MultiStreamDiT(replace(paper_config(roll=True, roll_keys=88), depth=1, soft_clamp=clamp)).eval()
        for length_s in BENCH_LENGTHS_S:
            n = RATES.latents(length_s)
            cond = Conditions(torch.zeros(2, 16, 1024), video=torch.zeros(2, n, 1280), roll=torch.zeros(2, n, 88))
            x = torch.randn(2, n, 128, generator=torch_rng(0, "bench"))
            with torch.inference_mode(): found.setdefault(clamp, {})[length_s] = _seconds(lambda: model(x, torch.zeros(2), cond), 1)
    return found[None], found[50.0], sum(p.numel() for p in model.layers.parameters())

def bench(args) -> int:
    "Speed as ratios against an alternative measured in the same run, and how it grows with the clip."
    import tempfile
    if args.scoring:
        if args.clips < 10: raise CopError(f"--clips {args.clips}: at least 10 are needed")
        with tempfile.TemporaryDirectory() as folder: memory = bench_scoring_memory(Path(folder), (max(args.clips // 10, 10), args.clips))
        rows = bench_scoring(args.clips)
        print(json.dumps({"scoring": rows, "memory": memory}, indent=1)) if args.json else _print_scoring(rows, memory)
        return 0
    with tempfile.TemporaryDirectory() as folder: loaded = bench_loader(Path(folder))
    if args.loader:
        print(json.dumps(loaded, indent=1)) if args.json else _print_loader(loaded)
        return 0
    import numpy as np, torch
    from cop_repro.core import torch_rng
    from cop_repro.model.flow import Conditions, SampleConfig, sample
    from cop_repro.systems.cop import load_performer
    performer = load_performer(project_root() / "data" / "assets")
    noise = torch.randn(1, 750, 128, generator=torch_rng(0, "bench"))
    frames = torch.zeros(1, 250, 48, 520, 3, dtype=torch.uint8)
    encode = lambda: (performer.encoders.text.encode(["the sound of playing piano"]), performer.encoders.image.encode(frames))
    tokens, mask = performer.encoders.text.encode(["the sound of playing piano"])
    cond = Conditions(text=tokens, text_mask=mask, video=torch.zeros(1, 750, 128), roll=torch.zeros(1, 750, 88))
    strips = np.zeros((250, 48, 520), np.uint8)
    with torch.inference_mode():
        guided = _seconds(lambda: sample(performer.piano, noise, cond, SampleConfig(num_steps=4)))
        single = _seconds(lambda: sample(performer.piano, noise, cond, SampleConfig(num_steps=4, cfg_strength=0.0)))
        once, roll, decode = _seconds(encode), _seconds(lambda: performer.rolls(strips)), _seconds(lambda: performer.codec.decode(noise))
    rows = (("guided step, both branches in one batch / two single passes", guided / 4, 2 * single / 4, "s a step"),
            ("conditions encoded once a clip / once a pass (16 steps)", once, 32 * once, "s a clip"),
            ("reading the roll / real time", roll, 10.0, "s a clip"), ("decoding sound / real time", decode, 10.0, "s a clip"))
    print(f"{'what / alternative':62s} {'ours':>8s} {'other':>8s}  ratio")
    for name, ours, other, unit in rows: print(f"{name:62s} {ours:8.3f} {other:8.3f}  {ours / other:5.2f}  {unit}")
    plain, clamped, weights = _bench_paper_layer()
    grown = [*_bench_clips(performer), (f"one published layer ({weights / 1e6:.0f}M), guided step", plain, "s"), ("the same with soft clamp (compat, no fused kernel)", clamped, "s")]
    print(f"\n{'by length of the clip':62s} " + " ".join(f"{f'{s:g} s':>8s}" for s in grown[0][1]))
    for name, values, unit in grown: print(f"{name:62s} " + " ".join(f"{v:8.3f}" if v < 1000 else f"{v:8.0f}" for v in values.values()) + f"  {unit}")
    _print_loader(loaded)
    if args.output: write_json(args.output, {"ratios": {n: {"ours": a, "other": b, "unit": u} for n, a, b, u in rows}, "by_clip_seconds": {n: {"values": {f"{k:g}": v for k, v in values.items()}, "unit": u} for n, values, u in grown}, "threads": torch.get_num_threads()})
    return 0

def build_parser() -> argparse.ArgumentParser:
    "All commands and options."
    parser = argparse.ArgumentParser(prog="cop", description="Chain-of-Perform: silent piano video in, sound and MIDI out; and the papers' tables, regenerated.")
    commands = parser.add_subparsers(dest="command", required=True)
    def command(name, function, text):
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(function=function)
        return made
    p = command("perform", perform, "turn a silent piano video into WAV, MIDI and a video with sound")
    p.add_argument("video"); p.add_argument("-o", "--output", required=True, help="folder to make")
    p.add_argument("--text", default="the sound of playing piano"); p.add_argument("--seed", type=int, default=0)
    p.add_argument("--corners", help="keyboard corners in pixels: 'x,y x,y x,y x,y' (top left, top right, bottom right, bottom left)")
    p.add_argument("--assets", help="folder with other weights")
    p = command("run", run_stage, "run one stage notebook of the pipeline")
    p.add_argument("stage"); p.add_argument("--item", default="", help="which entry of the stage's matrix"); p.add_argument("--params", default="params.yaml")
    p = command("profile", profile, "run the pipeline with a profile's numbers in a scratch copy")
    p.add_argument("name"); p.add_argument("targets", nargs="*"); p.add_argument("--publish", action="store_true", help="copy its reports to reports/profiles/NAME")
    p = command("compare", compare, "hold two result files against each other")
    p.add_argument("a"); p.add_argument("b")
    p = command("real", real, "score the shipped models on real piano videos that have sound")
    p.add_argument("videos", nargs="+"); p.add_argument("-o", "--output", default="reports/real.json"); p.add_argument("--picture")
    p = command("score", score, "score a folder of sounds, MIDI files or films against the true ones, matched by file name")
    p.add_argument("ref"); p.add_argument("est"); p.add_argument("--metrics", nargs="+", help="names, with spaces or commas between them; default: all that the files allow")
    p.add_argument("--json", action="store_true", help="print JSON"); p.add_argument("-o", "--output", help="write JSON to this file")
    p.add_argument("--judges", help="weights behind FAD and the like: PATH of embedded judges, or vggish=, panns=, passt=FILE.safetensors, ast=, clap=, openclip=, wav2clip=FOLDER; default: the shipped ones")
    p.add_argument("--works", help="JSON, id -> work: intervals are drawn over works"); p.add_argument("--texts", help="JSON, id -> caption, for clap_score")
    p.add_argument("--cut", action="store_true", help="score the common beginning of sounds of different lengths"); p.add_argument("--seed", type=int, default=0)
    p = command("plan", plan, "parameters, memory, operations, disk and hours of a profile's training runs, before anything starts")
    p.add_argument("--profile", default="default"); p.add_argument("--gpus", type=int, default=8); p.add_argument("--gpu-memory", type=float, default=80.0, help="GB of one GPU")
    p.add_argument("--gpu", default="a100", help="a100, a800 or h100: whose peak speed is meant"); p.add_argument("--mfu", type=float, default=0.35, help="assumed share of the peak, 0 to 1")
    p.add_argument("--sharded", action="store_true", help="divide weights, gradients and moments among the GPUs"); p.add_argument("--json", action="store_true")
    p = command("weights", weights, "list, fetch, lock or check EnCodec, FLAN-T5 and OpenCLIP; make assets of them; convert a pickled checkpoint")
    p.add_argument("action", choices=("list", "fetch", "lock", "verify", "use", "convert")); p.add_argument("name", nargs="?", default="", help="encodec, flan_t5_large, openclip_bigg; default all; for convert: a pickled checkpoint, which is read once, tensors only")
    p.add_argument("--folder", help="where they lie, default weights/ of the checkout"); p.add_argument("--json", action="store_true", help="for list")
    p.add_argument("--clips", default="features/clips/piano", help="for use: store whose training sound EnCodec's statistics are fitted on"); p.add_argument("-o", "--output", default="weights/assets", help="for use: folder of the assets")
    p = command("shards", shards, "check every byte of a sharded store, and list its refused clips")
    p.add_argument("folder"); p.add_argument("--show", type=int, default=20, help="refused clips to print")
    command("doctor", doctor, "say what this machine has and lacks")
    p = command("fingerprints", fingerprints, "write (or check) the code fingerprints of the stages")
    p.add_argument("--check", action="store_true")
    p = command("readme", readme, "write (or check) the README's results table")
    p.add_argument("--check", action="store_true")
    command("docs", docs, "write the notebooks as HTML pages to _docs/")
    p = command("bench", bench, "measure speed as ratios, by length of the clip, and how many clips a second are loaded")
    p.add_argument("--loader", action="store_true", help="only the loading of features"); p.add_argument("--json", action="store_true", help="with --loader or --scoring")
    p.add_argument("--scoring", action="store_true", help="only the metrics, against reference libraries, and the memory of `cop score`"); p.add_argument("--clips", type=int, default=100, help="with --scoring: clips of 10 s, 10 or more; 1000 take minutes")
    p.add_argument("-o", "--output", help="also write the numbers as JSON")
    command("release", release, "copy trained models into data/assets and track them")
    command("manifest", manifest, "make the corpus manifest anew from the installed scores and our études")
    command("lock", lock, "print the requirements of settings.ini")
    return parser

def main(argv: list[str] | None = None) -> int:
    "Run one command; a `CopError` is one line on stderr and exit code 2."
    args = build_parser().parse_args(argv)
    try: return args.function(args)
    except CopError as error:
        print(f"cop {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `cop ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print(f"cop {args.command}: interrupted", file=sys.stderr)
        return 130

if __name__ == "__main__": sys.exit(main())
