# SPDX-License-Identifier: Apache-2.0
"""Faults in the stages of the pipeline, each met in a process of its own.

A server loads the libraries once and forks for every run, so that a cell costs its stage alone. A
run is `cop run STAGE`: its notebook, its signals, its line of error and its exit code; only the
kernel is left out, because the notebook's cells are executed in the forked process itself.
"""

import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

SECONDS = 3.0  # of the rendered clips
STEPS = {"steps": 4, "save_every": 2, "report_every": 1, "batch_size": 2, "warmup_steps": 1}
STRIP = {"height": 16, "width": 104}
ROLL = {"height": 16, "strip_width": 104}
CLIPS, ENCODED = "features/clips", "features/encoded"
KEPT = {
    "piano/train/nuisance": 4,
    "piano/train/pair": 2,
    "piano/test/nuisance": 2,
    "piano/test/clean": 0,
    "foley/train": 2,
    "foley/val": 1,
    "foley/test": 1,
}
ALONE = Path(__file__).resolve().parents[1]  # the checkout


@dataclass(frozen=True)
class Fault:
    "What happens to a run, and when."

    kind: str = "none"  # none, signal, full, nan
    event: str = ""  # progress, fsync, replace, mkstemp or mkdtemp: a call of it is the moment
    number: int = 0  # which call, from 0; -1 counts the calls and disturbs nothing
    signal: int = 0  # that the process gets


@dataclass(frozen=True)
class Ran:
    "How a run ended."

    code: int  # exit code; negative: the signal that ended the process
    said: str  # what it wrote to stderr
    events: dict  # event -> calls
    seconds: float  # of the processor


# The small run that the cells share


def tiny_params(checkout: Path) -> dict:
    "Parameters of the smoke profile with still smaller numbers and two rows to evaluate."
    from cop_repro.parameters import load_params, merge

    made = merge(
        load_params(checkout / "params.yaml"), load_params(checkout / "profiles/smoke.yaml")
    )
    few = {"steps": 1, "batch_size": 2, "warmup_steps": 1}
    changes = {
        "threads": 1,
        "prepare": {
            "keep": KEPT,
            "workers": 1,
            "strip": STRIP,
            "sets": {"AudioCaps": "sets/audiocaps"},
        },
        "train_codec": {"codec": {"width": 16}, "train": few},
        "train_encoders": {"train": few},
        "train_judges": {"data": {"t2a": 2, "piano": 2}, "train": {**few, "batch_size": 4}},
        "train_general": {"data": {"foley": 0, "t2a": 0}, "t2a_steps": 2, "train": STEPS},
        "train_renderer": {"data": {"clips": 2, "duration_s": SECONDS}, "train": few},
        "train_roll": {"init": None, "roll": {"width": 4, "touch": 16, **ROLL}, "train": STEPS},
        "train_piano": {"train": STEPS},
    }
    made = merge(made, changes)
    made["train_preference"]["variants"]["dpo"]["train"] |= STEPS
    made["train_systems"]["variants"]["video2roll"]["train"] |= STEPS
    made["train_systems"]["variants"]["video2roll"]["settings"] |= {"shrink": 1}
    read = made["evaluate"]["variants"]["read"]
    made["evaluate"]["variants"] = {
        "read": {name: read[name] for name in ("controls", "video2roll")}
    }
    return made


def tiny_items() -> tuple[list, dict]:
    "Clips of our own pieces, and the split of each piece."
    from cop_repro.data.clips import SetSizes, general_items, pair_items, piano_items
    from cop_repro.data.performance import etudes

    splits = ["train", "train", "val", "test", "test"]
    names = ("letter_home", "iron_bridge", "two_sparrows", "echo_valley", "paper_waltz")
    scores = [s for s in etudes(ALONE / "data" / "etudes") if s.work_id.endswith(names)]
    works = {score.work_id: split for score, split in zip(scores, splits)}
    items = []
    for score in scores:
        made = piano_items(score, works[score.work_id], SECONDS, 1, seed=0)
        if works[score.work_id] == "train":
            made += pair_items(score, SECONDS, seed=0)
        items += made
    counts = {"train": 2, "val": 1, "test": 2}
    sizes = SetSizes(windows={}, style_pairs=0, foley=dict.fromkeys(counts, 1), t2a=counts)
    return items + general_items(sizes, SECONDS, seed=0), works


def make_recorded(folder: Path) -> None:
    "Three captioned sounds as AudioCaps has them."
    import numpy as np
    import soundfile

    folder.mkdir(parents=True)
    columns = "audiocap_id,youtube_id,start_time,caption\n"
    rows = {
        "train": "1,aa,0,a tone rises\n",
        "val": "2,bb,0,a tone\n",
        "test": "3,cc,0,a tone falls\n",
    }
    for split, row in rows.items():
        (folder / f"{split}.csv").write_text(columns + row)
    for name, pitch in (("aa", 9), ("bb", 8), ("cc", 7)):
        tone = 0.3 * np.sin(np.arange(240_000) / pitch)
        soundfile.write(folder / f"{name}.wav", tone.astype(np.float32), 24_000)


def make_root(checkout: Path, root: Path) -> None:
    "A folder in which the stages run: parameters, manifest, recordings."
    from cop_repro.data.clips import write_manifest

    root.mkdir(parents=True)
    for name in ("settings.ini", "fingerprints.yaml"):
        shutil.copy(checkout / name, root / name)
    for name in ("nbs", "refs"):
        (root / name).symlink_to(checkout / name)
    (root / "data").mkdir()
    (root / "data" / "etudes").symlink_to(checkout / "data" / "etudes")
    write_manifest(root / "data" / "manifest.json", *tiny_items())
    make_recorded(root / "sets" / "audiocaps")
    (root / "commit.json").write_text('{"commit": null, "clean": null}')
    (root / "params.yaml").write_text(yaml.safe_dump(tiny_params(checkout), sort_keys=False))


def make_features(root: Path) -> None:
    "Encoded clips of noise in a root, for stage 1 alone."
    import numpy as np

    from cop_repro.core import RATES, numpy_rng
    from cop_repro.data.clips import fill_store

    latents, frames = RATES.latents(SECONDS), RATES.frames(SECONDS)
    columns = {
        "latents": ((latents, 128), "float16"),
        "video": ((frames, 128), "float16"),
        "has_video": ((), "bool"),
        "text": ((4, 96), "float16"),
        "text_mask": ((4,), "bool"),
    }

    def make(row: int) -> dict:
        rng = numpy_rng(0, "features", row)
        noise = {name: rng.standard_normal(shape) for name, (shape, _) in columns.items()}
        return noise | {"has_video": True, "text_mask": np.ones(4, bool)}

    about = {"split_hash": "0" * 16, "latents": "0" * 16}
    for name, domain in (("piano", "piano"), ("general", "t2a")):
        clip = {"split": "train", "domain": domain, "rendering": "nuisance"}
        index = [{"clip_id": f"{name}{i}", **clip} for i in range(4)]
        fill_store(root / ENCODED / name, index, columns, make, range(4), 1, **about)


# The cells


@dataclass(frozen=True)
class Small:
    "A stage of the small run: where it is struck, and which of its inputs are damaged."

    stage: str  # as DVC names it, with its item
    moment: tuple[str, int]  # event and number of a signal
    corrupt: str  # a file of a store that it reads, one bit of which is flipped
    truncated: tuple[str, ...]  # inputs that are cut in half, one after the other
    no_loss: str = ""  # why there is no loss that could be NaN


SMALL = {
    "prepare": Small(
        "prepare",
        ("progress", 0),
        "features/real/audiocaps_t2a/shard-00000/wav.npy",
        ("data/manifest.json",),
        "nothing is trained",
    ),
    "encode": Small(
        "encode",
        ("progress", 0),
        f"{CLIPS}/foley/frames.npy",
        ("models/train_codec/codec.safetensors", f"{CLIPS}/t2a/index.json"),
        "its networks are frozen",
    ),
    "general": Small(
        "train_general",
        ("progress", 3),
        f"{ENCODED}/general/latents.npy",
        (f"{ENCODED}/piano/text.npy", f"{ENCODED}/general/index.json"),
    ),
    "roll": Small(
        "train_roll",
        ("progress", 2),
        f"{CLIPS}/piano/strips.npy",
        (f"{CLIPS}/piano/onset.npy", "models/train_renderer/renderer.safetensors"),
    ),
    "piano": Small(
        "train_piano@cop_piano",
        ("progress", 2),
        "features/rolls/render_presence.npy",
        ("models/train_roll/roll.safetensors", "models/train_general/general.safetensors"),
    ),
    "preference": Small(
        "train_preference@dpo",
        ("progress", 2),
        f"{ENCODED}/piano/latents.npy",
        ("models/train_piano/cop_velocity/piano.safetensors",),
    ),
    "systems": Small(
        "train_systems@video2roll",
        ("progress", 2),
        f"{CLIPS}/piano/presence.npy",
        ("models/train_roll/roll.safetensors",),
    ),
    "evaluate": Small(
        "evaluate@read",
        ("progress", 0),
        f"{CLIPS}/piano/wav.npy",
        ("models/train_codec/codec.safetensors",),
        "it predicts and scores",
    ),
    "report": Small(
        "report",
        ("fsync", 4),
        f"{CLIPS}/t2a/wav.npy",
        (
            "models/evaluate/read/rows/controls/scores.json",
            "models/evaluate/read/rows/controls/0-true_sound.flac",
        ),
        "it only draws and prints",
    ),
}
BEFORE = {  # stages that run before the first cell, and between others
    "encode": ("train_codec", "train_encoders", "train_judges"),
    "roll": ("train_renderer",),
    "preference": ("train_piano@cop_velocity",),
}
SIGNALS = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "KILL": signal.SIGKILL}
FAULTS = {
    "INT": "Ctrl-C in the middle of the work",
    "TERM": "`kill`, `docker stop`, the end of a batch job",
    "KILL": "the process vanishes: out of memory, a power failure",
    "disk full": "no file can grow any more",
    "rename": "killed between writing a file and renaming it, in the middle and at the last one",
    "NaN": "the loss of one step is not a number",
    "corrupt": "one bit of a store is flipped",
    "truncated": "an input is cut in half",
}
STOPPED, REFUSED, NONE = "stops", "refuses", "-"


def outcome(stage: str, fault: str) -> str:
    "What a cell of the table says."
    if fault == "NaN" and SMALL[stage].no_loss:
        return NONE
    return REFUSED if fault in ("disk full", "NaN", "corrupt", "truncated") else STOPPED


def table() -> str:
    "All cells in Markdown."
    lines = [f"| stage | {' | '.join(FAULTS)} |", f"|---|{'---|' * len(FAULTS)}"]
    for name in SMALL:
        cells = " | ".join(outcome(name, fault) for fault in FAULTS)
        lines.append(f"| `{SMALL[name].stage}` | {cells} |")
    return "\n".join(lines)


# The server and the runs in its forks

WATCHED = ("features", "models", "reports", "work/checkpoints")  # below the root of a run
EVENTS = ("progress", "fsync", "replace", "mkstemp", "mkdtemp")
FULL = 64  # bytes that a file may have once the disk is full


LAZY = {  # what a run of a stage imports when it gets there
    "": "torch._dynamo torchvision matplotlib.backends.backend_agg",
    "prepare": "pretty_midi tinysoundfont cv2 av",
    "encode": "transformers.models.t5.modeling_t5 open_clip torchaudio",
    "evaluate": "librosa.core.audio librosa.feature.spectral librosa.core.pitch librosa.util.utils "
    "basic_pitch.inference sklearn.linear_model sklearn.pipeline timm open_clip.model",
}


def load_libraries(checkout: Path, stages: list[str]) -> None:
    "Import what some stages import, before the first fork."
    import ast

    import torch

    for stage in stages:
        notebook = checkout / "nbs" / "stages" / f"{stage}.ipynb"
        for source in code_cells(notebook):
            nodes = [
                n for n in ast.parse(source).body if isinstance(n, (ast.Import, ast.ImportFrom))
            ]
            exec(compile(ast.Module(nodes, []), notebook.name, "exec"), {})
    for name in ("", *stages):
        for module in LAZY.get(name, "").split():
            importlib.import_module(module)
    torch.set_num_threads(1)


def code_cells(notebook: Path) -> list[str]:
    "Sources of a notebook's code cells."
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def execute(notebook: Path, out: Path, parameters: dict, kernel: None) -> None:
    "The cells of a stage in this process, in place of papermill and its kernel."
    from cop_repro.cli import run

    first, *others = code_cells(notebook)
    names = {"__name__": "__main__", **parameters}
    for source in others:
        try:
            exec(compile(source, notebook.name, "exec"), names)
        except Exception as error:
            error.ename, error.evalue = type(error).__name__, str(error)
            raise run._stage_error(error, out) from None


class Calls:
    "Counts calls below a folder, and lets the fault happen at one of them."

    def __init__(self, root: Path, fault: Fault):
        self.places = tuple(str(root / name) for name in WATCHED)
        self.fault, self.counts = fault, dict.fromkeys(EVENTS, 0)

    def count(self, event: str, path: object = None) -> None:
        "One call, about to happen."
        if path is not None and not str(path).startswith(self.places):
            return
        number = self.counts[event]
        self.counts[event] += 1
        if (event, number) == (self.fault.event, self.fault.number):
            self.happen()

    def happen(self) -> None:
        "The fault."
        if self.fault.kind == "signal":
            os.kill(os.getpid(), self.fault.signal)
        elif self.fault.kind == "full":
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, hard))

    def watch(self) -> None:
        "Put the counter before the calls."
        import tempfile

        from cop_repro import pipeline

        shown, fsync, replace = pipeline.progress, os.fsync, os.replace
        mkstemp, mkdtemp = tempfile.mkstemp, tempfile.mkdtemp

        def progress(*given):
            self.count("progress")
            return shown(*given)

        def counted_fsync(file):
            self.count("fsync", os.readlink(f"/proc/self/fd/{file}"))
            return fsync(file)

        def counted_replace(source, target, **options):
            self.count("replace", source)
            return replace(source, target, **options)

        def counted_mkstemp(suffix=None, prefix=None, dir=None, text=False):
            self.count("mkstemp", dir)
            return mkstemp(suffix, prefix, dir, text)

        def counted_mkdtemp(suffix=None, prefix=None, dir=None):
            self.count("mkdtemp", dir)
            return mkdtemp(suffix, prefix, dir)

        pipeline.progress, pipeline.Stage.progress = progress, staticmethod(progress)
        os.fsync, os.replace = counted_fsync, counted_replace
        tempfile.mkstemp, tempfile.mkdtemp = counted_mkstemp, counted_mkdtemp


def spoil_loss(at: int) -> None:
    "NaN in the loss of one step of whatever is trained."
    from cop_repro.training import loop

    gradients = loop._gradients

    def spoilt(run, step_fn):
        def step(number, part, parts):
            loss, logs = step_fn(number, part, parts)
            return (loss * float("nan") if number == at else loss), logs

        return gradients(run, step)

    loop._gradients = spoilt


def run_stage(root: Path, stage: str, item: str, fault: Fault, events: int) -> int:
    "`cop run STAGE` in this process, with a fault; the exit code."
    from cop_repro.cli import main, run

    os.chdir(root)
    calls = Calls(root, fault)
    calls.watch()
    if fault.kind == "nan":
        spoil_loss(fault.number)
    run._kernel, run._execute = lambda root: nullcontext(), execute
    run._quiet_process = lambda root: None
    try:
        code = main(["run", stage, *(["--item", item] if item else [])])
    except BaseException:
        traceback.print_exc()
        code = 1
    os.write(events, json.dumps(calls.counts).encode())
    return code


def forked(request: dict) -> Ran:
    "One run in a fork of this process."
    said, telling = os.pipe()
    heard, events = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(telling, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        fault = Fault(**request["fault"])
        code = run_stage(Path(request["root"]), request["stage"], request["item"], fault, events)
        sys.stdout.flush()
        os._exit(code)
    for end in (telling, events):
        os.close(end)
    with open(said, "rb") as lines, open(heard, "rb") as counts:
        text, known = lines.read().decode("utf-8", "replace"), counts.read()
    _, status, used = os.wait4(child, 0)
    code, seconds = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
    return Ran(code, text, json.loads(known or b"{}"), seconds)


def serve(stages: list[str]) -> None:
    "Answer requests, one line of JSON each, until there are no more."
    load_libraries(ALONE, stages)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(forked(json.loads(line)))), flush=True)


class Server:
    "The process that forks."

    def __init__(self, stages: list[str]):
        command = [sys.executable, "-W", "ignore", __file__, *stages]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(self, root: Path, stage: str, fault: Fault = Fault()) -> Ran:
        "A stage, `train_piano@cop_piano` with its item, in a fork."
        name, _, item = stage.partition("@")
        request = {"root": str(root), "stage": name, "item": item, "fault": asdict(fault)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Ran(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


# A cell: a fault, what it has left, and the run that follows


def digest(path: Path) -> str:
    "Hash of a file; of JSON without the seconds that something took."
    import hashlib

    raw = path.read_bytes()
    if path.suffix == ".json" and b'"seconds' in raw:
        raw = json.dumps(_timeless(json.loads(raw)), sort_keys=True).encode()
    return hashlib.sha256(raw).hexdigest()


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not k.startswith("seconds")}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


KNOWN = (".lock", ".verified.json", "real.json")


def contents(root: Path) -> dict[str, str]:
    "Hashes of what stages make below a root, by name."
    files = [path for name in WATCHED[:3] for path in (root / name).rglob("*") if path.is_file()]
    names = {path: path.relative_to(root).as_posix() for path in files}
    return {name: digest(path) for path, name in names.items() if path.name not in KNOWN[:2]}


def unfinished(root: Path) -> list[str]:
    "Temporary files and folders below a root."
    paths = [path for name in WATCHED for path in (root / name).rglob(".*")]
    return sorted(str(p.relative_to(root)) for p in paths if p.name not in KNOWN)


def linked_copy(source: Path, target: Path) -> None:
    "A copy of a run's files in no time and space: they are only ever replaced, never changed."
    ignored = shutil.ignore_patterns("work", "runs")
    shutil.copytree(source, target, symlinks=True, copy_function=os.link, ignore=ignored)


def damage(path: Path, how: str) -> None:
    "Flip a bit in the middle of a file, or cut the file there."
    raw = bytearray(path.read_bytes())
    half = len(raw) // 2
    if how == "corrupt":
        raw[half] ^= 1
    path.unlink()  # other copies are links to the same file
    path.write_bytes(raw if how == "corrupt" else raw[:half])


class Runs:
    "The small run, undisturbed, and its cells."

    def __init__(self, server: Server, folder: Path):
        self.server, self.folder = server, folder
        self.root, self.events = folder / "undisturbed", {}
        self.made = 0

    def undisturbed(self, name: str) -> None:
        "Run the next stage; what was there before is kept for the cells, and what it made."
        for stage in BEFORE.get(name, ()):
            self.succeed(self.root, stage)
        linked_copy(self.root, self.folder / f"before-{name}")
        self.events[name] = self.succeed(self.root, SMALL[name].stage).events
        linked_copy(self.root, self.folder / f"after-{name}")

    def succeed(self, root: Path, stage: str) -> Ran:
        "A run that must succeed."
        ran = self.server.run(root, stage)
        if ran.code:
            raise AssertionError(f"{stage} ended with code {ran.code}: {ran.said}")
        return ran

    def findings(self, name: str, fault: str, few: bool = False) -> list[str]:
        "What is wrong in a cell, at every moment or in every input that it tries; nothing."
        small = SMALL[name]
        if fault in ("corrupt", "truncated"):
            files = (small.corrupt,) if fault == "corrupt" else small.truncated
            for file in files[:1] if few else files:
                found = self.damaged(name, fault, file, again=not few)
                if found:
                    return [f"{name}, {fault} {file}: {what}" for what in found]
            return []
        for struck in self._moments(name, fault, few):
            found = self._struck(name, fault, struck)
            if found:
                return [f"{name}, {struck}: {what}" for what in found]
        return []

    def _moments(self, name: str, fault: str, few: bool) -> list[Fault]:
        "The faults that a cell tries."
        if fault in SIGNALS:
            return [Fault("signal", *SMALL[name].moment, SIGNALS[fault])]
        if fault == "NaN":
            return [Fault("nan", number=2 if name == "general" else 3)]
        events = self.events[name]
        if fault == "disk full":
            return [Fault("full", "mkstemp", events["mkstemp"] // 2)]
        last = events["replace"] - 1
        numbers = [last] if few else [last // 2, last]
        return [Fault("signal", "replace", number, signal.SIGKILL) for number in numbers]

    def _copy(self, name: str, when: str = "before") -> Path:
        "A root for one cell."
        self.made += 1
        root = self.folder / f"cell-{self.made}"
        linked_copy(self.folder / f"{when}-{name}", root)
        return root

    def _struck(self, name: str, fault: str, struck: Fault) -> list[str]:
        "A fault in the middle of a run."
        root = self._copy(name)
        ran = self.server.run(root, SMALL[name].stage, struck)
        killed = struck.signal == signal.SIGKILL
        expected = -9 if killed else 128 + struck.signal if struck.signal else 2
        return self._ended(name, root, ran, expected) or self._again(name, root)

    def damaged(self, name: str, fault: str, file: str, again: bool) -> list[str]:
        "A damaged input; it is made good again before the restart."
        own = name == "prepare" and fault == "corrupt"  # of an earlier run of this stage
        root = self._copy(name, "after" if own else "before")
        damage(root / file, fault)
        ran = self.server.run(root, SMALL[name].stage)
        if own:
            shutil.rmtree((root / file).parent)  # as the message says
        else:
            (root / file).unlink()
            os.link(self.folder / f"before-{name}" / file, root / file)
        return self._ended(name, root, ran, 2) or (self._again(name, root) if again else [])

    def _ended(self, name: str, root: Path, ran: Ran, expected: int) -> list[str]:
        "What is wrong with the end of a disturbed run, and with what it has left."
        found = []
        if ran.code != expected:
            found.append(f"code {ran.code} instead of {expected}: {ran.said[-400:]}")
        if expected > 0 and not (ran.said.startswith("cop run: ") and ran.said.count("\n") == 1):
            found.append(f"not one line: {ran.said[-400:]!r}")
        if expected > 0:
            found += [f"left {path}" for path in unfinished(root)]
        whole = contents(self.folder / f"after-{name}")
        hidden = [path for path, made in contents(root).items() if whole.get(path) != made]
        found += [f"half-written {p}" for p in hidden if not any(x[0] == "." for x in p.split("/"))]
        return found

    def _again(self, name: str, root: Path) -> list[str]:
        "What is wrong after a restart."
        ran = self.server.run(root, SMALL[name].stage)
        if ran.code:
            return [f"the restart ended with code {ran.code}: {ran.said[-400:]}"]
        found = [f"left {path} after the restart" for path in unfinished(root)]
        whole, made = contents(self.folder / f"after-{name}"), contents(root)
        found += [f"{p} differs" for p in sorted(whole | made) if whole.get(p) != made.get(p)]
        if not found:
            shutil.rmtree(root)
        return found


if __name__ == "__main__":
    serve(sys.argv[1:])
