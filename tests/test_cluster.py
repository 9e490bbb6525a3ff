# SPDX-License-Identifier: Apache-2.0
"""Shards made by workers of a Dask cluster: the bytes of one process, and what is refused.

The quick tests use workers in threads; those marked `cluster` start scheduler and workers by their
own commands and kill them.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_encoders import SMALL

from cop_repro.cli._plan import Plan, _filling
from cop_repro.cli._plan_costs import Costs
from cop_repro.cli._profiles import profile_params
from cop_repro.core import (
    AssetMismatch,
    BadInput,
    CopError,
    DatasetMissing,
    MissingExtra,
    ParamsError,
    file_hash,
    from_dict,
)
from cop_repro.data import cluster, shards
from cop_repro.data.cluster import DaskMap, shard_map, software
from cop_repro.data.official_lists import RealClips
from cop_repro.data.shards import ShardedStore, fill_shards
from cop_repro.model.codec import CodecConfig, make_codec, prepare_wav, save_codec
from cop_repro.model.encoders import build_encoders, learn_words, save_encoders
from cop_repro.training import features
from cop_repro.training.features import EncodingFiles, encode_shards
from cop_repro.training.launch import Machines
from cop_repro.training.planning import Machine

COLUMNS = {"x": ((4,), "int32")}
TCP = {"protocol": "tcp", "dashboard_address": None}
SAID = ("the sound of a piano", "a dog barks", "rain")


def make(job):
    "A row; job 5 cannot be used."
    if job == 5:
        raise BadInput("clip 5 is empty")
    return {"x": np.arange(4) * job, "index": {"clip_id": f"c{job}"}}


def slow(job):
    "The same, and which process made it when."
    time.sleep(0.3)
    with open(os.environ["COP_TEST_MADE"], "a") as file:
        file.write(f"{job} {os.getpid()}\n")
    return make(job)


def jobs(count):
    return {f"c{i}": i for i in range(count)}


def content(folder):
    "Every file that a reader may open, by its path."
    files = (p for p in Path(folder).rglob("*") if p.is_file() and p.name[0] != ".")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def threads():
    "Scheduler and two workers in this process."
    from dask.distributed import LocalCluster

    with LocalCluster(2, processes=False, threads_per_worker=1, **TCP) as made:
        yield shard_map({"engine": "dask", "scheduler": made.scheduler_address})


def test_workers_make_what_one_process_makes(tmp_path, threads):
    one = fill_shards(tmp_path / "a" / "s", jobs(11), COLUMNS, make, 2, seed=0)
    seen = []
    note = lambda done, total, message: seen.append((done, message))
    many = fill_shards(tmp_path / "b" / "s", jobs(11), COLUMNS, make, 2, 1, note, threads, seed=0)
    assert content(one.folder) == content(many.folder)
    assert many.rejects == {"c5": "clip 5 is empty"}
    assert [done for done, _ in seen] == [0, 2, 4, 6, 8, 10, 11] and "1 refused" in seen[3][1]
    assert not list(many.folder.glob(".shard-*"))
    (many.folder / "shard-00002" / "x.npy").write_bytes(b"")
    with pytest.raises(AssetMismatch, match="shard-00002: column x"):
        fill_shards(many.folder, jobs(11), COLUMNS, make, 2, mapped=threads, seed=0)


def test_errors_of_the_work_arrive(tmp_path, threads):
    with pytest.raises(ZeroDivisionError):
        fill_shards(tmp_path / "s", jobs(4), COLUMNS, lambda job: 1 / 0, 2, mapped=threads)
    assert not list((tmp_path / "s").glob("shard-*"))
    with pytest.raises(BadInput, match="none of 1 clips"):
        fill_shards(tmp_path / "n", {"c5": 5}, COLUMNS, make, mapped=threads)


def sounds(folder):
    "A tiny recorded set as `prepare` stores it: three captioned sounds."
    rng = np.random.default_rng(0)
    waves = (rng.standard_normal((3, 24_000)) * 3000).astype(np.int16)
    entry = lambda i: {"clip_id": f"c{i}", "split": "train", "text": SAID[i]}
    row = lambda i: {"wav": waves[i], "index": entry(i)}
    return fill_shards(folder, jobs(3), {"wav": ((24_000,), "int16")}, row, 2, split_hash="s")


def networks(folder):
    "Codec and encoders in files, as the stages leave them."
    torch.manual_seed(0)
    codec = make_codec(CodecConfig(width=8, num_blocks=1)).eval()
    codec.fit_statistics([prepare_wav(torch.randn(1, 24_000) / 4)])
    encoders = build_encoders(SMALL, learn_words(SAID)).eval()
    save_codec(folder / "codec.safetensors", codec, "s")
    save_encoders(folder / "encoders.safetensors", encoders, "s")
    paths = (folder / "codec.safetensors", folder / "encoders.safetensors")
    return EncodingFiles(*paths, tuple(map(file_hash, paths)), "s")


def encode(folder, store, files, mapped=None):
    codec, encoders = files.open()
    return encode_shards(folder, store, codec, encoders, 8, 2, mapped=mapped, files=files)


def test_encoding_opens_the_networks_once(tmp_path, threads, monkeypatch):
    "A worker has one model; files that change under a run are refused, and so are no files."
    store, files = sounds(tmp_path / "clips"), networks(tmp_path)
    opened, load = [], features.load_codec
    one = encode(tmp_path / "a" / "s", store, files)
    monkeypatch.setattr(features, "load_codec", lambda *a: opened.append(a) or load(*a))
    many = encode(tmp_path / "b" / "s", store, files, threads)
    assert content(one.folder) == content(many.folder) and len(many) == 3
    assert len(opened) == 2, "once here, and once for the workers, which are one process"
    stale = EncodingFiles(files.codec, files.encoders, ("0", "0"), "s")
    with pytest.raises(AssetMismatch, match="codec.safetensors has changed"):
        stale.open()
    with pytest.raises(BadInput, match="`files` must say"):
        encode_shards(tmp_path / "c", store, *files.open(), 8, 2, mapped=threads)


def test_a_disk_that_a_worker_does_not_see(tmp_path, monkeypatch):
    "Not a single clip is refused for it: the stage ends, and names machine and folder."

    def elsewhere(fn, plans):
        "A machine on which the folder is another one."
        (tmp_path / "s" / ".lock").write_text("of another run")
        return map(fn, plans)

    name = socket.gethostname()
    with pytest.raises(DatasetMissing, match=f"{name} does not see the folder .*being filled"):
        fill_shards(tmp_path / "s", jobs(4), COLUMNS, make, 2, mapped=elsewhere)
    gone = RealClips(tmp_path / "unmounted")
    with pytest.raises(DatasetMissing, match=f"{name} does not see the folder .*unmounted"):
        fill_shards(tmp_path / "t", jobs(4), COLUMNS, gone, 2, mapped=map)
    monkeypatch.setattr(shards, "APPEAR_S", 0.1)
    with pytest.raises(CopError, match="u/shard-00000 was made by a worker, but is not seen here"):
        nothing = lambda fn, plans: [(0, 0) for _ in plans]
        fill_shards(tmp_path / "u", jobs(4), COLUMNS, make, 2, mapped=nothing)


def test_a_second_run_leaves_the_first_its_token(tmp_path):
    "The lock file of a run is not emptied by one that is refused."
    refusals = []

    def another_run_meanwhile(fn, plans):
        try:
            fill_shards(tmp_path / "s", jobs(4), COLUMNS, make, 2)
        except BadInput as error:
            refusals.append(str(error))
        return map(fn, plans)

    fill_shards(tmp_path / "s", jobs(4), COLUMNS, make, 2, mapped=another_run_meanwhile)
    assert len(refusals) == 1 and "another process is filling s" in refusals[0]


def test_what_is_refused_by_name(monkeypatch):
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    assert shard_map({}) is None and shard_map({"engine": "dask"}, needed=False) is None
    with pytest.raises(ParamsError, match="neither machines.scheduler nor"):
        shard_map({"engine": "dask"})
    with pytest.raises(ParamsError, match="engine is 'ray'; it must be one of"):
        from_dict(Machines, {"engine": "ray"}, "machines")
    with pytest.raises(CopError, match="answers at 'node1' .*missing port"):
        shard_map({"engine": "dask", "scheduler": "node1"})
    monkeypatch.setattr(cluster, "CONNECT_S", 0.3)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(CopError, match=f"no Dask scheduler answers at '{address}'"):
            shard_map({"engine": "dask", "scheduler": address})
    monkeypatch.setitem(sys.modules, "dask", None)
    with pytest.raises(MissingExtra, match=r"cop_repro\[cluster\]"):
        shard_map({"engine": "dask", "scheduler": "node1:8786"})


def test_workers_of_other_software():
    other = software() | {"numpy": "1.0", "cop_repro": "0.0.1 (code 0)"}
    broken = ModuleNotFoundError("No module named 'cop_repro.data.cluster'")
    found = {"tcp://a:1": software(), "tcp://b:2": other, "tcp://c:3": broken}
    with pytest.raises(CopError, match="2 of 3 workers would not make the same bytes") as raised:
        cluster._refuse_others(found)
    said = str(raised.value)
    assert "tcp://b:2: cop_repro 0.0.1 (code 0) (here 0.1.0" in said and "numpy 1.0 (here" in said
    assert "tcp://c:3: it cannot run this version" in said and "tcp://a:1" not in said


def test_a_shard_that_ends_its_workers_is_named():
    from dask.distributed import KilledWorker

    def result():
        raise KilledWorker("key", SimpleNamespace(address="tcp://node2:4001"), 3)

    with pytest.raises(CopError, match="s/shard-00007: 4 workers ended .* tcp://node2:4001"):
        shard = SimpleNamespace(place="s/shard-00007")
        cluster._result_of(SimpleNamespace(result=result), shard)


def test_the_plan_counts_workers(root):
    params = profile_params(root, "paper")
    plan, machine = Plan(params, Costs()), Machine()
    clips = {"video": 173_000, "sound": 1_188_000, "piano": 4320}
    one, many = (_filling(plan, machine, clips, workers) for workers in (1, 64))
    for stage in ("prepare", "encode"):
        assert 55 < one["hours"][stage] / many["hours"][stage] <= 64.0001
    assert many["workers"] == {"prepare": 64, "encode": 64}
    local = _filling(plan, machine, clips, None)
    assert local["workers"] == {"prepare": params["prepare"]["workers"], "encode": 1}
    assert local["hours"]["encode"] == one["hours"]["encode"] > 60 * 24
    params["machines"] |= {"engine": "dask", "scheduler": "node0:8786"}
    assert _filling(plan, machine, clips, None)["workers"] == {"prepare": 8, "encode": 8}
    with pytest.raises(BadInput, match="0 workers: at least one"):
        _filling(plan, machine, clips, 0)


class Commands:
    "Scheduler and workers by their own commands, on a port of this machine."

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self.folder, self.running = folder, []
        port = self.address.rpartition(":")[2]
        self.scheduler = self.start("scheduler", "--host", "127.0.0.1", "--port", port)

    def start(self, *words, **variables):
        "`dask WORD ...`, its output in a file."
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path[1:]])
        told = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
        command = [sys.executable, "-m", "dask", *words, "--no-dashboard"]
        with open(self.folder / f"said-{len(self.running)}", "w") as said:
            made = subprocess.Popen(
                command, stdout=said, stderr=said, env=told, cwd=self.folder, start_new_session=True
            )
        self.running.append(made)
        return made

    def worker(self, **variables):
        options = ("--nthreads", "1", "--no-nanny", "--host", "127.0.0.1", "--death-timeout", "120")
        return self.start("worker", self.address, *options, **variables)

    def said(self):
        return "\n".join(p.read_text()[-1500:] for p in sorted(self.folder.glob("said-*")))

    def end(self):
        for process in self.running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def commands(tmp_path):
    made = Commands(tmp_path)
    yield made
    made.end()


@pytest.mark.cluster
def test_a_killed_worker_costs_its_shard_only(tmp_path, commands, monkeypatch):
    "SIGKILL in the middle of a shard: the rest and that shard are made by the other worker."
    made = tmp_path / "made"
    monkeypatch.setenv("COP_TEST_MADE", str(made))
    first, second = commands.worker(), commands.worker()
    mapped = DaskMap(commands.address)
    with mapped._client() as client:
        client.wait_for_workers(2, timeout=120)
    state = {}

    def kill_one(done, total, message):
        if done and not state:
            state["kept"] = sorted(p.name for p in (tmp_path / "m" / "s").glob("shard-*"))
            os.killpg(first.pid, signal.SIGKILL)

    many = fill_shards(
        tmp_path / "m" / "s", jobs(24), COLUMNS, slow, 3, 1, kill_one, mapped, seed=0
    )
    one = fill_shards(tmp_path / "o" / "s", jobs(24), COLUMNS, make, 3, seed=0)
    assert content(one.folder) == content(many.folder), commands.said()
    assert many.rejects == {"c5": "clip 5 is empty"}
    assert not list(many.folder.glob(".shard-*")), "what the killed worker left is removed"
    lines = [line.split() for line in made.read_text().splitlines()]
    by = {int(pid) for _, pid in lines}
    assert by == {first.pid, second.pid}, "both workers took part"
    again = [job for job, _ in lines if [j for j, _ in lines].count(job) > 1]
    assert len(set(again)) <= 3, "no clip of another shard was made twice"
    assert state["kept"]


@pytest.mark.cluster
def test_what_a_cluster_does_not_do(tmp_path, commands, monkeypatch):
    "No worker, a worker of another version, a scheduler that ends in the middle."
    mapped = DaskMap(commands.address)
    monkeypatch.setattr(cluster, "CONNECT_S", 60.0)
    monkeypatch.setattr(cluster, "JOIN_S", 1.0)
    with pytest.raises(CopError, match="no worker has joined the Dask scheduler"):
        mapped.check()
    monkeypatch.setattr(cluster, "JOIN_S", 120.0)
    older = tmp_path / "older"
    (older / "cop_repro").mkdir(parents=True)
    (older / "cop_repro" / "__init__.py").write_text('__version__ = "0.0.9"\n')
    old = commands.worker(PYTHONPATH=str(older))
    with pytest.raises(CopError, match="1 of 1 workers would not make the same bytes: tcp://") as e:
        mapped.check()
    assert "cannot run this version of cop_repro" in str(e.value)
    assert "No module named 'cop_repro.data.cluster'" in str(e.value)
    os.killpg(old.pid, signal.SIGKILL)
    commands.worker()
    while True:
        try:
            mapped.check()
            break
        except CopError:  # the old one is still listed
            time.sleep(0.5)
    ended = {"done": 0}

    def end_scheduler(done, total, message):
        if done and not ended["done"]:
            ended["done"] = done
            os.killpg(commands.scheduler.pid, signal.SIGKILL)

    monkeypatch.setenv("COP_TEST_MADE", str(tmp_path / "made"))
    with pytest.raises(CopError, match="was lost .*Finished shards are kept"):
        fill_shards(tmp_path / "s", jobs(12), COLUMNS, make, 1, 1, end_scheduler, mapped)
    with pytest.raises(BadInput, match="no finished shards"):
        ShardedStore(tmp_path / "s")
    assert len(fill_shards(tmp_path / "s", jobs(12), COLUMNS, make, 1)) == 11
