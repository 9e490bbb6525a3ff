# SPDX-License-Identifier: Apache-2.0
"""Recorded sets in training: from files in their own layouts to finished models.

They keep their own splits; without them nothing changes.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from test_encoders import SMALL
from test_official_lists import PLAYED, put, tone, video

from cop_repro.core import RATES, AssetMismatch, BadInput, load_weights, numpy_rng
from cop_repro.data.clips import Store, StripSize, fill_store, sha256
from cop_repro.data.notes import write_midi
from cop_repro.data.official_lists import real_stores
from cop_repro.data.performance import make_score
from cop_repro.data.shards import ShardedColumn, join_columns, open_store
from cop_repro.model.codec import CodecConfig, make_codec, prepare_wav
from cop_repro.model.dit import DiTConfig, StreamConfig
from cop_repro.model.encoders import build_encoders, learn_words
from cop_repro.model.flow import DropoutConfig
from cop_repro.model.roll import RollConfig, load_roll
from cop_repro.pipeline import Stage
from cop_repro.training.components import TouchTraining
from cop_repro.training.features import encode_shards, encode_stores, soft_store
from cop_repro.training.guidance import GuidanceConfig
from cop_repro.training.loop import TrainConfig
from cop_repro.training.stages import (
    Place,
    piano_columns,
    recorded_rolls,
    recorded_sources,
    train_general,
    train_piano,
    train_roll,
    with_recorded,
)

LENGTH_S, STRIP = 2.0, StripSize(16, 104)
PREDICTOR = RollConfig(width=2, height=16, strip_width=104)
CFG = TrainConfig(steps=3, batch_size=8, learning_rate=1e-3)
TEXTS = ["the sound of playing piano", "a drop falls", "a dog barks"]


def sets(folder):
    "PianoYT and VGGSound with a clip of each split, WavCaps, which has no split list."
    put(
        folder / "pianoyt" / "pianoyt.csv",
        "1,https://youtu.be/x,1,4,20,2,100\n2,https://youtu.be/y,3,4,20,2,100\n3,https://youtu.be/z,2,4,20,2,100\n",
    )
    put(folder / "vggsound" / "vggsound.csv", "aaa,0,dog barking,train\nbbb,0,dog barking,test\n")
    for i in (1, 2, 3):
        video(folder / "pianoyt" / f"video_{i}.0.mp4", LENGTH_S)
        write_midi(PLAYED, folder / "pianoyt" / f"audio_{i}.0.midi")
    for name in ("aaa", "bbb"):
        video(folder / "vggsound" / f"{name}_000000.mp4", LENGTH_S)
    put(
        folder / "wavcaps" / "json_files" / "BBC" / "bbc_final.json",
        json.dumps(
            {"data": [{"id": "7", "caption": "a dog barks"}, {"id": "8", "caption": "a dog barks"}]}
        ),
    )
    for name in "78":
        (folder / "wavcaps" / "BBC_flac").mkdir(exist_ok=True)
        soundfile.write(folder / "wavcaps" / "BBC_flac" / f"{name}.flac", tone(LENGTH_S), 24_000)
    return {
        "PianoYT": {"path": folder / "pianoyt", "limit": 1},
        "VGGSound": folder / "vggsound",
        "WavCaps": folder / "wavcaps",
    }


def rendered(folder):
    "What `prepare` renders, in noise: piano videos, Foley videos, captioned sounds."
    rng, frames = numpy_rng(0, "rendered"), RATES.frames(LENGTH_S)
    sound = lambda n: (rng.standard_normal((n, RATES.samples(LENGTH_S))) * 3000).astype(np.int16)
    held = np.repeat(rng.random((6, frames, 11)) < 0.3, 8, 2)
    made = {
        "piano": {
            "wav": sound(6),
            "strips": rng.integers(0, 255, (6, frames, 16, 104)).astype(np.uint8),
            **{n: held.astype(np.float16) for n in ("presence", "onset", "velocity")},
            "pedal": np.zeros((6, frames), np.float16),
        },
        "foley": {
            "wav": sound(3),
            "frames": rng.integers(0, 255, (3, frames, 64, 64, 3)).astype(np.uint8),
        },
        "t2a": {"wav": sound(3)},
    }
    for (domain, columns), text in zip(made.items(), TEXTS):
        rows = [
            {
                "clip_id": f"{domain}-{i}",
                "split": "train",
                "domain": domain,
                "text": text,
                "rendering": "nuisance" if domain == "piano" else "scene",
            }
            for i in range(len(columns["wav"]))
        ]
        fill_store(
            folder / domain,
            rows,
            {n: (v.shape[1:], str(v.dtype)) for n, v in columns.items()},
            lambda i, columns=columns: {n: v[i] for n, v in columns.items()},
            range(len(rows)),
            1,
            split_hash="s",
        )
    return {name: Store(folder / name) for name in made}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "All stores, as the stages `prepare` and `encode` leave them."
    folder = tmp_path_factory.mktemp("recorded")
    clips, (real, coverage) = (
        rendered(folder / "clips"),
        real_stores(folder / "real", sets(folder / "sets"), LENGTH_S, STRIP),
    )
    torch.manual_seed(0)
    codec, encoders = (
        make_codec(CodecConfig(width=8, num_blocks=1)),
        build_encoders(SMALL, learn_words(TEXTS)).eval(),
    )
    codec.eval().fit_statistics(
        [prepare_wav(torch.from_numpy(clips["piano"]["wav"][:].astype(np.float32) / 32767))]
    )
    for name, group in (("piano", [clips["piano"]]), ("general", [clips["foley"], clips["t2a"]])):
        encode_stores(folder / "encoded" / name, group, codec, encoders, 16, split_hash="s")
    for name, store in real.items():
        encode_shards(
            folder / "real_encoded" / name,
            store,
            codec,
            encoders,
            16,
            split_hash=store.about["split_hash"],
        )
    recorded = {
        name: {
            "clips": folder / "real" / name,
            "encoded": folder / "real_encoded" / name,
            "rolls": folder / "rolls" / "real" / name,
        }
        for name in real
    }
    stores = {
        "clips": folder / "clips" / "piano",
        "encoded": folder / "encoded" / "piano",
        "general": folder / "encoded" / "general",
        "rolls": folder / "rolls",
    }
    dit = DiTConfig(
        2,
        StreamConfig(16, 1, 16),
        StreamConfig(8, 1, 8),
        text_width=SMALL.embedded.text_dim,
        video_features=SMALL.embedded.image_dim,
        num_registers=2,
        max_positions=200,
        time_frequencies=4,
    )
    return (
        folder,
        Place(stores, folder / "scratch", folder / "x.safetensors", recorded=recorded),
        dit,
        coverage,
    )


def spoil(folder, column, splits):
    "NaN in a column of all clips of some splits: whoever trains on them fails."
    for shard in sorted(folder.glob("shard-*")):
        rows, values = (
            json.loads((shard / "index.json").read_text())["rows"],
            np.load(shard / f"{column}.npy", mmap_mode="r+"),
        )
        for i, row in enumerate(rows):
            if row["split"] in splits:
                values[i] = np.nan
        values.flush()
    sign(folder)


def sign(folder):
    "Shards whose hashes are those of the bytes that lie there now."
    top = json.loads((folder / "shards.json").read_text())
    for shard in top["shards"]:
        place = folder / shard["name"]
        about = json.loads((place / "shard.json").read_text())
        about["sha256"] = {name: sha256(place / name) for name in about["sha256"]}
        (place / "shard.json").write_text(json.dumps(about))
        shard["sha256"] = sha256(place / "shard.json")
    (folder / "shards.json").write_text(json.dumps(top))


def test_recorded_sets_join_every_stage_by_their_own_split(made):
    folder, place, dit, coverage = made
    real = {name: open_store(f["clips"]) for name, f in place.recorded.items()}
    assert set(real) == {"pianoyt_piano", "vggsound_foley", "wavcaps_t2a"} and {
        n: c["clips"] for n, c in coverage.items()
    } == {"PianoYT": 3, "VGGSound": 2, "WavCaps": 2}
    assert real["pianoyt_piano"].values("split", range(3)) == ["train", "test", "val"] and set(
        real["pianoyt_piano"].values("rendering", range(3))
    ) == {"real"}
    assert real["wavcaps_t2a"].values("split", range(2)) == ["train", "train"], (
        "no split list: training only"
    )
    assert len({s.about["split_hash"] for s in real.values()}) == 3
    for name in real:  # nothing but training clips may be read
        spoil(place.recorded[name]["encoded"], "latents", ("val", "test"))
        if name == "pianoyt_piano":
            spoil(place.recorded[name]["clips"], "velocity", ("val", "test"))
    drop = DropoutConfig(0, 0, 0, 0, 0)
    general, alone = (
        replace(
            place,
            scratch=folder / f"general-{n}",
            made=folder / f"general-{n}.safetensors",
            recorded=r,
        )
        for n, r in (("with", place.recorded), ("alone", {}))
    )
    losses = [train_general(p, dit, CFG, 2, 0.4, drop).result.losses for p in (general, alone)]
    assert np.isfinite(losses[0]).all() and not np.array_equal(*losses)
    about = load_weights(general.made)[1]
    assert (
        about["split_hash"] == "s"
        and set(about["recorded"]) == set(real)
        and "recorded" not in load_weights(alone.made)[1]
    )
    roll = replace(place, scratch=folder / "roll", made=folder / "roll.safetensors")
    assert np.isfinite(train_roll(roll, PREDICTOR, CFG, 0.4).result.losses).all()
    touching = replace(roll, scratch=folder / "touch", made=folder / "touch.safetensors")
    score = make_score(
        "w", [(60, i, 1, 1) for i in range(8)], title="", composer="", source="etude"
    )
    data = TouchTraining(steps=1, batch_size=2, shortest_s=1, longest_s=1)
    train_roll(touching, replace(PREDICTOR, touch=4), CFG, 0.4, touch=data, works=[score])
    plain, wide = (load_weights(place.made)[0] for place in (roll, touching))
    assert all(torch.equal(wide[name], value) for name, value in plain.items()), (
        "videos teach the predictor the same with a touch network and without"
    )
    loader, clips = load_roll(roll.made)[0], Store(place.stores["clips"])
    soft_store(place.stores["rolls"], loader, clips, range(6), split_hash="s")
    assert recorded_rolls(roll, loader) == ["pianoyt_piano"]
    soft = open_store(place.recorded["pianoyt_piano"]["rolls"])
    assert np.isfinite(soft["soft_velocity"][0]).all() and np.isnan(soft["soft_velocity"][1:]).all()
    piano = replace(place, scratch=folder / "piano", made=folder / "piano.safetensors")
    guided = GuidanceConfig("velocity", "cached", joint_every=2, joint_items=2)
    result = train_piano(
        piano, general.made, roll.made, StreamConfig(16, 1, 16), guided, CFG, 0.4, 4, drop, "v"
    ).result
    assert np.isfinite(result.losses).all() and set(load_weights(piano.made)[1]["recorded"]) == set(
        real
    )
    columns, rows = with_recorded(
        place, piano_columns(place)[1], np.arange(6), "clips", "encoded", "rolls"
    )
    assert (
        rows.tolist() == [0, 1, 2, 3, 4, 5, 6]
        and np.array_equal(columns["strips"][6], real["pianoyt_piano"]["strips"][0])
        and isinstance(columns["latents"], ShardedColumn)
    )
    assert [
        len(r) for _, r in (*recorded_sources(place, "foley"), *recorded_sources(place, "t2a"))
    ] == [1, 2]
    spoil(
        place.recorded["wavcaps_t2a"]["encoded"], "latents", ("train",)
    )  # and the training clips are read
    with pytest.raises(Exception, match="nan"):
        train_general(replace(general, scratch=folder / "spoilt"), dit, CFG, 2, 0.4, drop)


def test_without_recorded_sets_nothing_changes(made):
    _, place, _, _ = made
    alone, columns, rows = replace(place, recorded={}), {"latents": np.zeros((3, 2))}, np.arange(3)
    same = with_recorded(alone, columns, rows, "clips")
    assert same[0] is columns and same[1] is rows and recorded_sources(alone, "t2a") == []
    assert alone.identity("s") == {"split": "s"} and alone.about("s") == {"split_hash": "s"}


def test_stores_that_do_not_fit_together(made, tmp_path):
    _, place, _, _ = made
    with pytest.raises(BadInput, match=r"rows of \(4,\) in one store and of \(5,\)"):
        join_columns([{"a": np.zeros((2, 4))}, {"a": np.zeros((2, 5))}])
    other = {
        "pianoyt_piano": {
            "clips": place.recorded["pianoyt_piano"]["clips"],
            "encoded": place.recorded["vggsound_foley"]["encoded"],
        }
    }
    with pytest.raises(AssetMismatch, match="pianoyt_piano.*same clips"):
        replace(place, recorded=other).open_recorded("clips", "encoded", domain="piano")
    gone = {"pianoyt_piano": {"clips": tmp_path / "pianoyt_piano"}}
    with pytest.raises(BadInput, match="no store at pianoyt_piano"):
        replace(place, recorded=gone).open_recorded("clips", domain="piano")


def test_a_flipped_byte_ends_a_stage(made, tmp_path):
    """Stages 1, 2.1 and 2.2 and the encoding of features refuse a damaged recorded store by name.

    Nothing is computed before.
    """
    folder, place, dit, _ = made
    shutil.copytree(folder / "real", tmp_path / "real")
    shutil.copytree(folder / "real_encoded", tmp_path / "encoded")
    recorded = {
        n: {
            "clips": tmp_path / "real" / n,
            "encoded": tmp_path / "encoded" / n,
            "rolls": f["rolls"],
        }
        for n, f in place.recorded.items()
    }
    for store, file in (("real/pianoyt_piano", "strips.npy"), ("encoded/wavcaps_t2a", "text.npy")):
        path = tmp_path / store / "shard-00000" / file
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    broken = replace(
        place, scratch=tmp_path / "scratch", made=tmp_path / "x.safetensors", recorded=recorded
    )
    with pytest.raises(AssetMismatch, match="wavcaps_t2a/shard-00000: column text"):
        train_general(broken, dit, CFG, 0, 0.4, DropoutConfig())
    for stage in (
        lambda: train_roll(broken, PREDICTOR, CFG, 0.4),
        lambda: train_piano(broken, None, None, None, None, CFG, 0.4, 4, None, "v"),
        lambda: encode_shards(
            tmp_path / "again", open_store(tmp_path / "real" / "pianoyt_piano"), None, None, 16
        ),
    ):
        with pytest.raises(AssetMismatch, match="pianoyt_piano/shard-00000: column strips"):
            stage()
    assert not broken.scratch.exists() and not (tmp_path / "again").exists()


def test_a_stage_lists_recorded_stores(tmp_path):
    (tmp_path / "fingerprints.yaml").write_text("{encode: 1, prepare: 1}")
    stage = Stage("encode", {"seed": 0, "device": "cpu", "encode": {}}, root=tmp_path)
    assert stage.recorded() == {} and stage.place("x")["recorded"] == {}
    stage.list_recorded("clips", {})
    assert not (tmp_path / "features").exists()
    stage.list_recorded("clips", {"wavcaps_t2a": {"hash": "0"}})
    assert (
        set(stage.recorded()) == {"wavcaps_t2a"}
        and stage.recorded()["wavcaps_t2a"]["encoded"]
        == tmp_path / "features" / "real_encoded" / "wavcaps_t2a"
    )
    stage.list_recorded("clips", {})
    assert stage.recorded() == {}
