# SPDX-License-Identifier: Apache-2.0
"Shards: one store in many folders, made once, checked to the byte, read by the training code."

import json
import multiprocessing
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from cop_repro.core import AssetMismatch, BadInput, torch_rng
from cop_repro.data.clips import Store, fill_store
from cop_repro.data.shards import ShardedStore, fill_shards, open_store
from cop_repro.training.features import general_batch
from cop_repro.training.general import mixed_batch

COLUMNS = {
    "latents": ((30, 4), "float16"),
    "video": ((10, 6), "float16"),
    "has_video": ((), "bool"),
    "text": ((5, 3), "float16"),
    "text_mask": ((5,), "bool"),
}


def make(job):
    "A clip of features; job 5 cannot be used."
    if job == 5:
        raise BadInput("clip 5 is empty")
    rng = np.random.default_rng(job)
    return {
        "latents": rng.normal(size=(30, 4)),
        "video": rng.normal(size=(10, 6)),
        "has_video": job % 2 == 0,
        "text": rng.normal(size=(5, 3)),
        "text_mask": np.arange(5) <= job % 5,
        "index": {"clip_id": f"c{job}", "split": "train"},
    }


def slow(job):
    time.sleep(0.15)
    return make(job)


def jobs(count):
    return {f"c{i}": i for i in range(count)}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    good = [i for i in range(11) if i != 5]
    return fill_store(folder / "one", [{}] * 10, COLUMNS, make, good, 1), fill_shards(
        folder / "many", jobs(11), COLUMNS, make, 4, seed=0
    )


def test_training_reads_both_alike(stores):
    one, many = stores
    assert (
        [r["clip_id"] for r in many.index] == [r["clip_id"] for r in one.index]
        and isinstance(open_store(one.folder), Store)
        and isinstance(open_store(many.folder), ShardedStore)
    )
    for rows, crop in (([0, 9, 4], 12), ([3, 3], None)):
        (a, ca), (b, cb) = (general_batch(s, rows, torch_rng(0, "x"), crop) for s in stores)
        assert torch.equal(a, b) and all(
            torch.equal(getattr(ca, n), getattr(cb, n))
            for n in ("text", "text_mask", "video", "video_keep")
        )
    (a, _), (b, _) = (
        mixed_batch([(s, s.select(split="train")), (s, [2, 3])], [0, 11, 7], torch_rng(0, "x"), 9)
        for s in stores
    )
    assert torch.equal(a, b)
    with pytest.raises(IndexError):
        many["latents"][10]
    with pytest.raises(KeyError, match="latents"):
        many["wav"]


def test_a_killed_run_is_resumed(tmp_path):
    "SIGKILL in the middle: finished shards stay, nothing half-written is read, the rest is made."
    process = multiprocessing.get_context("fork").Process(
        target=fill_shards, args=(tmp_path / "s", jobs(12), COLUMNS, slow, 2)
    )
    process.start()
    while len(list((tmp_path / "s").glob("shard-*"))) < 2:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    kept = {
        p.name: (p / "latents.npy").stat().st_mtime_ns for p in (tmp_path / "s").glob("shard-*")
    }
    assert 2 <= len(kept) < 6
    with pytest.raises(BadInput, match="no finished shards"):
        ShardedStore(tmp_path / "s")
    seen = []
    store = fill_shards(
        tmp_path / "s", jobs(12), COLUMNS, lambda job: seen.append(job) or make(job), 2
    )
    assert (
        len(seen) == 12 - 2 * len(kept)
        and len(store) == 11
        and not list((tmp_path / "s").glob(".shard-*"))
    )
    assert all(
        (tmp_path / "s" / n / "latents.npy").stat().st_mtime_ns == t for n, t in kept.items()
    )


def test_two_processes_make_what_one_makes(tmp_path, stores):
    made = fill_shards(tmp_path / "two", jobs(11), COLUMNS, make, 4, workers=2, seed=0)
    for name in stores[1].names:
        assert {p.name: p.read_bytes() for p in (tmp_path / "two" / name).iterdir()} == {
            p.name: p.read_bytes() for p in (stores[1].folder / name).iterdir()
        }
    assert made.rejects == {"c5": "clip 5 is empty"}


@pytest.mark.parametrize(
    "file, why",
    [
        ("shard-00001/video.npy", "shard-00001: column video"),
        ("shard-00002/index.json", "shard-00002/index.json"),
        ("shard-00000/shard.json", "shard-00000/shard.json"),
    ],
)
def test_a_flipped_byte_is_named(tmp_path, stores, file, why):
    shutil.copytree(stores[1].folder, tmp_path / "s")
    data = bytearray((tmp_path / "s" / file).read_bytes())
    data[-5] ^= 1
    (tmp_path / "s" / file).write_bytes(data)
    with pytest.raises(AssetMismatch, match=why):
        ShardedStore(tmp_path / "s").verify()


def test_what_is_refused(tmp_path, stores):
    shutil.copytree(stores[1].folder, tmp_path / "s")
    before = {p: p.read_bytes() for p in (tmp_path / "s").rglob("*.npy")}
    for given, about in (
        (jobs(11), {"seed": 1}),
        ({f"d{i}": i for i in range(11)}, {"seed": 0}),
        (jobs(4), {"seed": 0}),
    ):
        with pytest.raises(AssetMismatch):
            fill_shards(tmp_path / "s", given, COLUMNS, make, 4, **about)
    assert before == {p: p.read_bytes() for p in (tmp_path / "s").rglob("*.npy")}, (
        "nothing was overwritten"
    )
    with pytest.raises(BadInput, match="none of 1 clips"):
        fill_shards(tmp_path / "n", {"c5": 5}, COLUMNS, make)
    for wrong in ({}, jobs(2)):
        with pytest.raises(BadInput):
            fill_shards(tmp_path / "z", wrong, COLUMNS, make, 0)
    with pytest.raises(ZeroDivisionError):
        fill_shards(tmp_path / "b", jobs(2), COLUMNS, lambda job: 1 / 0)
    assert not list((tmp_path / "b").glob("*shard-*")), (
        "an error of the code is no reject, and leaves nothing"
    )
    shutil.rmtree(tmp_path / "s" / "shard-00002")
    with pytest.raises(AssetMismatch, match="shard-00002 is missing"):
        ShardedStore(tmp_path / "s")


def test_speed_of_the_loader(capsys):
    from cop_repro.cli import main
    from cop_repro.cli._speed_loader import LOADER_SECONDS

    assert main(["speed", "--loader", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [r["window_s"] for r in made] == list(LOADER_SECONDS) and all(
        r["one folder"] > 0 and r["shards"] > 0 for r in made
    )
    assert made[-1]["bytes"] > 5 * made[0]["bytes"]


def test_the_command(tmp_path, stores, capsys):
    from cop_repro.cli import main

    assert main(["shards", str(stores[1].folder)]) == 0
    said = capsys.readouterr().out
    assert "10 clips in 3 shards" in said and "c5: clip 5 is empty" in said
    shutil.copytree(stores[1].folder, tmp_path / "s")
    data = bytearray((tmp_path / "s" / "shard-00000" / "text.npy").read_bytes())
    data[-1] ^= 128
    (tmp_path / "s" / "shard-00000" / "text.npy").write_bytes(data)
    assert (
        main(["shards", str(tmp_path / "s")]) == 2
        and "shard-00000: column text" in capsys.readouterr().err
    )
    assert main(["shards", str(tmp_path / "none")]) == 2


def flip(path, place=-5):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "file, why",
    [
        ("shard-00001/video.npy", "shard-00001: column video"),
        ("shard-00002/index.json", "shard-00002: column index"),
        ("shard-00000/shard.json", "shard-00000"),
    ],
)
def test_a_damaged_shard_is_not_taken_for_finished(tmp_path, stores, file, why):
    shutil.copytree(stores[1].folder, tmp_path / "s")
    flip(tmp_path / "s" / file, 2 if file.endswith("shard.json") else -5)
    with pytest.raises(AssetMismatch, match=why):
        fill_shards(tmp_path / "s", jobs(11), COLUMNS, make, 4, seed=0)


def test_bytes_are_read_once(tmp_path, stores):
    "A stamp of sizes and times spares the second reading; a file that was touched is read again."
    shutil.copytree(stores[1].folder, tmp_path / "s")
    seen = []
    read = lambda: ShardedStore(tmp_path / "s").verify_once(lambda *done: seen.append(done))
    assert read() and len(seen) == ShardedStore(tmp_path / "s").verify() and not read()
    count = len(seen)
    os.utime(tmp_path / "s" / "shard-00001" / "text.npy")
    assert read() and len(seen) == 2 * count and not read()
    flip(tmp_path / "s" / "shard-00001" / "text.npy")
    for _ in range(2):
        with pytest.raises(AssetMismatch, match="shard-00001: column text"):
            read()
