# SPDX-License-Identifier: Apache-2.0
"""Damaged files for every reader of files that users bring.

An input is a kind and a number, which seeds its damage; it is made from a good file, read, and
removed. A worker is a process of its own, limited in time and memory, that writes one line of JSON
an input. What kills the worker is a finding, too, and the next worker goes on behind it.
"""

import faulthandler
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from mutations import damage

LONGEST_S = 20
MEMORY = 2 << 30  # bytes that a reader may take beside what the process holds already
LARGEST_FILE = 256 << 20  # bytes that a reader may write
SECONDS = 1.0  # of sounds and videos
HASH = "0123456789abcdef"


@dataclass(frozen=True)
class Kind:
    "Files of one kind: how good ones are made, and who reads them."

    make: Callable[[Path], None]  # writes good files to a folder
    read: Callable[[Path], object]  # reads a folder of them


@dataclass(frozen=True)
class Outcome:
    "What came of one input."

    kind: str
    number: int
    what: str  # "read", "refused", or what is wrong

    @property
    def is_finding(self) -> bool:
        return self.what not in ("read", "refused")


def notes():
    "A second of music with pedal."
    from cop_repro.data.notes import make_notes

    on = np.array([0.0, 0.1, 0.3, 0.6])
    return make_notes([60, 64, 21, 108], on, on + 0.2, [64, 1, 127, 90], [(0.05, 0.5)])


def tone():
    "A second of a sine."
    return (0.3 * np.sin(np.arange(24_000) / 9)).astype(np.float32)


def pictures():
    "A second of a moving pattern."
    rng = np.random.default_rng(0)
    base = rng.integers(0, 255, (48, 64, 3), np.uint8)
    return np.stack([np.roll(base, i, axis=1) for i in range(10)])


def make_midi(folder: Path) -> None:
    from cop_repro.benchmark.exchange import write_grid_midi
    from cop_repro.data.notes import write_midi

    write_midi(notes(), folder / "a.mid")
    write_grid_midi(notes(), folder / "b.mid")


def read_midis(folder: Path) -> None:
    from cop_repro.benchmark.submissions import midi_faults
    from cop_repro.data.notes import read_midi

    for path in folder.iterdir():
        midi_faults(path, SECONDS)
        read_midi(path)


def make_wav(folder: Path) -> None:
    import soundfile

    soundfile.write(folder / "a.wav", tone(), 24_000, subtype="PCM_16")
    stereo = np.stack([tone(), tone()], 1)[:6000]
    soundfile.write(folder / "b.wav", stereo, 44_100, subtype="FLOAT")


def make_flac(folder: Path) -> None:
    import soundfile

    soundfile.write(folder / "a.flac", tone(), 24_000)


def read_sounds(folder: Path) -> None:
    from cop_repro.benchmark.checks import sound_faults
    from cop_repro.evaluation.folders import read_sound

    for path in folder.iterdir():
        sound_faults(path, SECONDS)
        read_sound(path)


def make_mp4(folder: Path) -> None:
    from cop_repro.data.video import write_video

    write_video(folder / "a.mp4", pictures(), 10.0, tone())


def make_mkv(folder: Path) -> None:
    import av

    make_mp4(folder)
    with av.open(str(folder / "a.mp4")) as source, av.open(str(folder / "a.mkv"), "w") as target:
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    (folder / "a.mp4").unlink()


def read_videos(folder: Path) -> None:
    from cop_repro.benchmark.submissions import track_faults
    from cop_repro.data.video import iter_video, probe_video, read_audio

    for path in folder.iterdir():
        track_faults(path, SECONDS)
        probe_video(path)
        read_audio(path)
        for _ in iter_video(path, 25.0):
            pass


def make_safetensors(folder: Path) -> None:
    from cop_repro.model.roll import RollConfig, build_roll, save_roll

    save_roll(folder / "a.safetensors", build_roll(RollConfig(width=1)), {"split_hash": HASH})


def read_weights(folder: Path) -> None:
    from cop_repro.model.roll import load_roll

    load_roll(folder / "a.safetensors")


def root() -> Path:
    return Path(__file__).resolve().parents[1]


def make_json(folder: Path) -> None:
    from cop_repro.evaluation.listening import FORMAT, QUESTIONS

    results = json.loads((root() / "reports" / "results.json").read_text("utf-8"))
    few = results["lines"][:3]
    made_by = {line["made_by"]: results["made_by"][line["made_by"]] for line in few}
    (folder / "results.json").write_text(json.dumps({"lines": few, "made_by": made_by}))
    scenes = json.loads((root() / "data" / "scenes.json").read_text("utf-8"))
    (folder / "scenes.json").write_text(json.dumps(scenes))
    rating = {"clip": "c", "row": "r", "question": QUESTIONS[0].name, "score": 3}
    ratings = {"format": FORMAT, "page": "p", "rater": "a", "ratings": [rating]}
    (folder / "ratings.json").write_text(json.dumps(ratings))


def read_jsons(folder: Path) -> None:
    from cop_repro.core import read_json
    from cop_repro.data.scenes import read_scene_list
    from cop_repro.evaluation.claims import read_results
    from cop_repro.evaluation.listening import check_ratings

    page = {"id": "p", "clips": ["c"], "rated": ["r"]}
    readers = {
        "results.json": read_results,
        "scenes.json": read_scene_list,
        "ratings.json": lambda path: check_ratings({path.name: read_json(path)}, page),
    }
    refused = [e for name, reader in readers.items() if (e := _refusal(reader, folder / name))]
    if refused:
        raise refused[0]


def _refusal(reader: Callable, path: Path) -> Exception | None:
    "The package's own error, so that the files beside are read as well."
    from cop_repro.core import CopError

    try:
        reader(path)
    except CopError as error:
        return error
    return None


def make_yaml(folder: Path) -> None:
    etude = sorted((root() / "data" / "etudes").glob("*.yaml"))[0]
    (folder / "etudes").mkdir()
    shutil.copy(etude, folder / "etudes" / "etude.yaml")
    shutil.copy(root() / "params.yaml", folder / "params.yaml")


def read_yamls(folder: Path) -> None:
    from cop_repro.data.performance import etudes
    from cop_repro.parameters import check_params, load_params

    refused = [
        _refusal(lambda path: check_params(load_params(path)), folder / "params.yaml"),
        _refusal(etudes, folder / "etudes"),
    ]
    for error in refused:
        if error is not None:
            raise error


def make_manifest(folder: Path) -> None:
    from cop_repro.data.clips import Item, write_manifest

    items = [
        Item(f"w{i}/a", f"w{i}", split, "piano", 2.0, recipe={"seed": i})
        for i, split in enumerate(("train", "val", "test"))
    ]
    works = {item.work_id: item.split for item in items}
    write_manifest(folder / "manifest.json", items, works)


def read_manifests(folder: Path) -> None:
    from cop_repro.data.clips import read_manifest

    read_manifest(folder / "manifest.json")


def _row(job: int) -> dict:
    rng = np.random.default_rng(job)
    return {"latents": rng.normal(size=(3, 4)), "index": {"clip_id": f"c{job}"}}


def make_shards(folder: Path) -> None:
    from cop_repro.data.shards import fill_shards

    jobs = {f"c{i}": i for i in range(4)}
    fill_shards(folder / "store", jobs, {"latents": ((3, 4), "float16")}, _row, 2)


def read_shards(folder: Path) -> None:
    from cop_repro.data.shards import open_store

    store = open_store(folder / "store")
    store.verify()
    for name in store.columns:
        store[name][:]


def make_submission(folder: Path) -> None:
    from cop_repro.benchmark.submissions import declare, write_submission

    about = declare("a system", bench(), ["L1", "general"])
    write_submission(folder / "sub", about, {"one": notes()}, {"two": tone()})


def bench():
    "A benchmark of two clips."
    from cop_repro.benchmark.exchange import Benchmark

    made = Benchmark(
        Path("bench"),
        {"split_hash": HASH, "clips": {"one": {"track": "piano"}, "two": {"track": "general"}}},
    )
    made.__dict__["annotations"] = dict.fromkeys(("one", "two"), {"duration_s": SECONDS})
    return made


def read_submission(folder: Path) -> None:
    from cop_repro.benchmark.submissions import check_submission

    check_submission(folder / "sub", bench())


def make_results(folder: Path) -> None:
    line = dict.fromkeys(("table", "row", "metric", "unit", "label", "profile", "extractor"), "a")
    line |= {"value": 0.5, "ci_low": None, "ci_high": None, "n": 2, "higher_is_better": True}
    line |= {"level": "L1", "mode": "cascade", "j": 0, "headline": True, "note": ""}
    from cop_repro.benchmark.submissions import declare

    scored = {"split": "test", **dict.fromkeys(("split_hash", "ids", "truth"), HASH)}
    result = {
        "format": "cop-bench-result/1",
        "system": declare("a system", bench(), ["L1"]),
        "scored": {"piano": {**scored, "clips": 2, "works": 2}},
        "files": HASH,
        "lines": [line],
        "per_clip": {"L1": {"one": {"a": 0.5}}},
    }
    (folder / "results").mkdir()
    (folder / "results" / "a.json").write_text(json.dumps(result))


def read_board(folder: Path) -> None:
    from cop_repro.benchmark.leaderboard import build_leaderboard

    try:
        build_leaderboard(folder / "results", folder / "page")
    finally:
        shutil.rmtree(folder / "page", ignore_errors=True)


KINDS = {
    "midi": Kind(make_midi, read_midis),
    "wav": Kind(make_wav, read_sounds),
    "flac": Kind(make_flac, read_sounds),
    "mp4": Kind(make_mp4, read_videos),
    "mkv": Kind(make_mkv, read_videos),
    "safetensors": Kind(make_safetensors, read_weights),
    "json": Kind(make_json, read_jsons),
    "yaml": Kind(make_yaml, read_yamls),
    "manifest": Kind(make_manifest, read_manifests),
    "shards": Kind(make_shards, read_shards),
    "submission": Kind(make_submission, read_submission),
    "leaderboard": Kind(make_results, read_board),
}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _names(*folders: Path) -> set[str]:
    "Everything below some folders."
    return {str(path) for folder in folders for path in folder.rglob("*")}


def _where(error: BaseException) -> str:
    "The line of the package or of a library that raised."
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "cop_repro" in f.filename and "tests" not in f.filename]
    last = (own or frames)[-1]
    return f"{Path(last.filename).name}:{last.lineno} {last.name}"


def _outcome(kind: Kind, folder: Path, watched: Sequence[Path]) -> str:
    "What a reader does with a folder; refused is what the command line says in one line."
    from cop_repro.cli._failures import MEMORY, failure

    before = _names(*watched)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read(folder)
        what = "read"
    except Exception as error:
        text = f"{type(error).__name__} at {_where(error)}: {' '.join(str(error).split())[:150]}"
        what = text if failure(error) in (None, MEMORY) else "refused"
    left = sorted(_names(*watched) - before)
    return f"left {Path(left[0]).name}" if left else what


def work(names: Sequence[str], numbers: range, place: Path) -> None:
    "Try inputs in this process; one line of JSON each."
    from cop_repro.cli._process import skip_unused

    skip_unused()
    folders = {name: place / name for name in ("good", "input", "tmp", "cwd")}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    tempfile.tempdir = str(folders["tmp"])
    os.environ["TMPDIR"] = str(folders["tmp"])
    os.chdir(folders["cwd"])
    for name in names:
        good = folders["good"] / name
        if not good.is_dir():
            good.mkdir()
            KINDS[name].make(good)
        said = _outcome(KINDS[name], good, [place])  # loads what the reader needs
        if said != "read":
            raise RuntimeError(f"the good files of {name} are not read: {said}")
    _limit()
    for name in names:
        for number in numbers:
            (place / "at").write_text(json.dumps([name, number]))
            what = _try(name, number, folders)
            print(json.dumps(asdict(Outcome(name, number, what))), flush=True)


def _limit() -> None:
    "Bounds on memory and files from here on."
    held = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))
    resource.setrlimit(resource.RLIMIT_DATA, ((held << 10) + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _try(name: str, number: int, folders: dict[str, Path]) -> str:
    "One input."
    folder = folders["input"]
    shutil.rmtree(folder)
    shutil.copytree(folders["good"] / name, folder)
    rng = np.random.default_rng([list(KINDS).index(name), number])
    files = _files(folder)
    damage(files[int(rng.integers(len(files)))], rng)
    faulthandler.dump_traceback_later(LONGEST_S, exit=True)
    try:
        return _outcome(KINDS[name], folder, [folders["input"], folders["tmp"], folders["cwd"]])
    finally:
        faulthandler.cancel_dump_traceback_later()


def outcomes(names: Sequence[str], numbers: range, place: Path) -> Iterator[Outcome]:
    "Try all inputs in workers, each of which ends with the first input that kills it."
    todo = [(name, numbers) for name in names]
    while todo:
        group = [name for name, rest in todo if rest == todo[0][1]]
        rest = todo[0][1]
        made, said = _worker(group, rest, place)
        yield from made
        if said is None:
            todo = [(n, r) for n, r in todo if n not in group]
            continue
        name, number = json.loads((place / "at").read_text())
        yield Outcome(name, number, said)
        later = [(n, r) for n, r in todo if n not in group[: group.index(name) + 1]]
        left = range(number + 1, rest.stop)
        todo = ([(name, left)] if left else []) + later


def _worker(names: Sequence[str], numbers: range, place: Path) -> tuple[list[Outcome], str | None]:
    "What one process has tried, and how it was killed."
    place.mkdir(exist_ok=True)
    command = [sys.executable, __file__, ",".join(names), str(numbers.start), str(numbers.stop)]
    ran = subprocess.run([*command, str(place)], capture_output=True, text=True, errors="replace")
    lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    made = [Outcome(**json.loads(line)) for line in lines]
    if ran.returncode == 0:
        return made, None
    if not (place / "at").exists():
        raise RuntimeError(f"the worker could not begin: {ran.stderr[-2000:]}")
    if "Timeout" in ran.stderr:
        return made, f"hangs: {_last_own_line(ran.stderr)}"
    return made, f"ends the process with code {ran.returncode}: {ran.stderr[-300:]}"


def _last_own_line(dump: str) -> str:
    "Where a dump of stacks was in the package."
    own = re.findall(r'File "[^"]*/(cop_repro/[^"]*)", line (\d+) in (\S+)', dump)
    return ":".join(own[0]) if own else dump[-300:]


if __name__ == "__main__":
    kinds, start, stop, where = sys.argv[1:]
    work(kinds.split(","), range(int(start), int(stop)), Path(where))
