# SPDX-License-Identifier: Apache-2.0
"""Every stage under every fault (docs/crashes.md).

After a restart a stage has made the same bytes as an undisturbed run. A run that ends by itself
says why in one line, with another exit code than 0, and leaves nothing half-written.
"""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import crashing
import pytest
from crashing import FAULTS, SMALL, Runs, Server

from cop_repro.core import AssetMismatch, BadInput
from cop_repro.data.clips import Store, fill_store

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="finds open files in /proc")


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    "The small run up to the stage that is asked for."
    folder = tmp_path_factory.mktemp("crash")
    others = [stage for stages in crashing.BEFORE.values() for stage in stages]
    stages = [small.stage for small in SMALL.values()] + others
    server = Server(sorted({stage.partition("@")[0] for stage in stages}))
    runs = Runs(server, folder)
    crashing.make_root(crashing.ALONE, runs.root)
    yield runs
    server.close()


@pytest.mark.crash
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", SMALL)
def test_cell(small, stage, fault):
    if crashing.outcome(stage, fault) == crashing.NONE:
        pytest.skip(SMALL[stage].no_loss)
    for name in SMALL:
        if name not in small.events:
            small.undisturbed(name)
        if name == stage:
            break
    assert small.findings(stage, fault) == []


@LINUX
def test_every_fault_in_stage_1(tmp_path):
    "The quick half: the atomic writes, the stores and the training loop that all stages share."
    server = Server(["train_general"])
    runs = Runs(server, tmp_path)
    crashing.make_root(crashing.ALONE, runs.root)
    crashing.make_features(runs.root)
    runs.undisturbed("general")
    faults = [fault for fault in FAULTS if fault != "INT"]  # takes the way of TERM
    found = [what for fault in faults for what in runs.findings("general", fault, few=True)]
    server.close()
    assert found == []


def test_the_table_shows_every_cell(root):
    "docs/crashes.md prints the cells that are tested."
    text = (root / "docs" / "crashes.md").read_text("utf-8")
    assert crashing.table() in text
    for name, what in FAULTS.items():
        assert f"- **{name}**: {what}" in text
    for small in SMALL.values():
        assert not small.no_loss or f"`{small.stage}`: {small.no_loss}" in text


def toy_store(folder, rows=4):
    "A store of a few numbers."
    index = [{"clip_id": f"c{i}", "split": "train"} for i in range(rows)]
    columns = {"wav": ((1000,), "int16")}
    return fill_store(folder, index, columns, lambda i: {"wav": i}, range(rows), 1, split_hash="x")


@pytest.mark.parametrize(
    "file, how, why",
    [
        ("wav.npy", "corrupt", "wav.npy is not what was written"),
        ("wav.npy", "truncated", "missing or cut short"),
        ("index.json", "truncated", "not a readable JSON file"),
    ],
)
def test_a_damaged_store(tmp_path, file, how, why):
    "Read once, refused by name; read again only after a change."
    store = toy_store(tmp_path / "store")
    assert store.verify_once() and not store.verify_once()
    crashing.damage(tmp_path / "store" / file, how)
    with pytest.raises((AssetMismatch, BadInput), match=why):
        Store(tmp_path / "store").verify_once()


def test_a_changed_index_is_refused(tmp_path):
    toy_store(tmp_path / "store")
    index = tmp_path / "store" / "index.json"
    index.write_text(index.read_text().replace('"c1"', '"c2"'))
    with pytest.raises(AssetMismatch, match="index.json is not what was written"):
        Store(tmp_path / "store").verify()


FULL_DISK = """
import sys
from cop_repro.data.clips import fill_store
def make(row):
    return {"wav": 1}
index = [{"clip_id": str(i)} for i in range(4)]
try:
    fill_store(sys.argv[1] + "/store", index, {"wav": ((1 << 19,), "int16")}, make, range(4), 1)
except OSError as error:
    print(error.errno)
"""


def test_a_disk_that_is_really_full(tmp_path):
    "The store's place is taken before its rows are made: no signal ends the process in the middle."
    place = tmp_path / "disk"
    place.mkdir()
    script = 'mount -t tmpfs -o size=2m tmpfs "$0" && "$1" -c "$2" "$0" && ls -A "$0"'
    command = ["unshare", "-Urm", "sh", "-c", script, place, sys.executable, FULL_DISK]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare")
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip("no small disk can be made here")
    assert (done.returncode, done.stdout) == (0, "28\n"), done.stderr


@pytest.mark.crash
@pytest.mark.xfail(strict=True, reason="a WAV that was cut short is read up to where it ends")
def test_a_sound_of_a_recorded_set_that_is_cut_short(small):
    if "prepare" not in small.events:
        small.undisturbed("prepare")
    assert small.damaged("prepare", "truncated", "sets/audiocaps/aa.wav", again=True) == []


@pytest.mark.crash
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_kernel(small, number):
    "`cop run` with its kernel: the stage cleans up before it ends."
    ran, left = real_run(small, number, to_kernel=False)
    code = 130 if number == signal.SIGINT else 143
    assert ran.returncode == code and len(ran.stderr.splitlines()) == 1, ran.stderr
    assert not left


@pytest.mark.crash
def test_a_kernel_that_vanishes(small):
    "One line; what it has left is gone after the next run."
    ran, left = real_run(small, signal.SIGKILL, to_kernel=True)
    assert ran.returncode == 2 and len(ran.stderr.splitlines()) == 1, ran.stderr
    assert "ended from outside" in ran.stderr and left


def real_run(small, number, to_kernel):
    "`cop run prepare`, struck while it fills its first store."
    root = small.folder / f"real-{int(number)}"
    crashing.make_root(crashing.ALONE, root)
    command = [sys.executable, "-m", "cop_repro.cli", "run", "prepare"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    handle = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # jobs behind & ignore it
    with subprocess.Popen(command, cwd=root, text=True, preexec_fn=handle, **pipes) as process:
        until = time.monotonic() + 300
        while not crashing.unfinished(root) and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.05)
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        target = int(Path(children).read_text().split()[0]) if to_kernel else process.pid
        os.kill(target, number)
        said = process.communicate(timeout=120)[1]
    done = subprocess.CompletedProcess(command, process.returncode, None, said)
    return done, crashing.unfinished(root)
