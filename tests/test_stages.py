# SPDX-License-Identifier: Apache-2.0
"""Training stages as functions.

The paper's sizes from its own profile, pretrained codec and encoders on tiny weights, one stage in
two processes.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_encoders import clip_folder, t5_folder  # noqa: F401  tiny weights in the hubs' formats

from cop_repro.core import (
    AssetMismatch,
    BadInput,
    ParamsError,
    from_dict,
    load_weights,
    numpy_rng,
    save_weights,
)
from cop_repro.data.clips import fill_store
from cop_repro.data.performance import make_score
from cop_repro.model.codec import CodecConfig, EnCodec24, load_codec
from cop_repro.model.dit import DiTConfig, MultiStreamDiT, StreamConfig
from cop_repro.model.encoders import (
    EncodersConfig,
    EncodersTraining,
    PretrainedSources,
    load_encoders,
)
from cop_repro.model.flow import DropoutConfig
from cop_repro.model.roll import RollConfig, build_roll, save_roll
from cop_repro.parameters import load_params, merge
from cop_repro.pipeline import Stage
from cop_repro.training.components import TouchTraining
from cop_repro.training.contrast import ContrastConfig, build_heads
from cop_repro.training.guidance import GuidanceConfig
from cop_repro.training.launch import Machines, launch
from cop_repro.training.loop import TrainConfig, ranks
from cop_repro.training.stages import (
    Place,
    build_piano,
    train_codec,
    train_encoders,
    train_general,
    train_roll,
)


def size(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.fixture(scope="module")
def paper(root):
    return merge(load_params(root / "params.yaml"), load_params(root / "profiles" / "paper.yaml"))


def test_the_paper_profile_builds_the_published_systems(paper):
    "Every network of the profile, by the builders that the stages call, on the meta device."
    sizes, stream = (
        from_dict(DiTConfig, paper["train_general"]["dit"]),
        from_dict(StreamConfig, paper["train_piano"]["roll_stream"]),
    )
    predictor = from_dict(RollConfig, paper["train_roll"]["roll"])
    variants = {
        name: from_dict(GuidanceConfig, entry)
        for name, entry in paper["train_piano"]["variants"].items()
    }
    with torch.device("meta"):
        base = MultiStreamDiT(sizes)
        assert size(base) == 710_952_640
        assert (
            size(
                base,
                build_heads(
                    base,
                    from_dict(
                        ContrastConfig, paper["train_preference"]["variants"]["cl"]["settings"]
                    ),
                ),
            )
            == 712_133_312
        )
        for keys, published in (
            ({"first_key": 15, "num_keys": 51}, (12_713_651, 789_296_595)),
            ({}, (12_718_424, 789_320_312)),
        ):
            with_velocity, presence_alone = (
                replace(predictor, **keys),
                replace(predictor, velocity=False, **keys),
            )
            piano = build_piano(base, build_roll(presence_alone), stream, variants["cop_piano"])
            assert (size(piano.predictor), size(piano)) == published
            assert (
                size(build_piano(base, build_roll(presence_alone), stream, variants["no_guidance"]))
                == published[1]
            )
            head = 129 * with_velocity.num_keys  # D-roll-velocity: ours
            assert (
                size(build_piano(base, build_roll(with_velocity), stream, variants["cop_velocity"]))
                == published[1] + head
            )


def test_the_paper_profile_trains_as_published(paper):
    cfg, machines = (
        from_dict(TrainConfig, paper["train_general"]["train"]),
        from_dict(Machines, paper["machines"]),
    )
    assert (cfg.steps, cfg.batch_size, cfg.learning_rate, cfg.clip_norm, cfg.decay, cfg.ema) == (
        330_000,
        128,
        3e-5,
        0.2,
        "linear",
        0.0,
    )
    assert (
        cfg.precision,
        cfg.sharding,
        paper["train_general"]["dit"]["checkpointing"],
        machines.processes,
    ) == ("bf16", "full", True, 8)
    trained = [paper[s]["train"] for s in ("train_general", "train_roll", "train_piano")] + [
        v["train"] for v in paper["train_preference"]["variants"].values()
    ]
    assert (
        all(from_dict(TrainConfig, t).batch_size % machines.processes == 0 for t in trained)
        and paper["train_piano"]["general_items"] % machines.processes == 0
    )
    assert (
        from_dict(CodecConfig, paper["train_codec"]["codec"]).kind == "encodec"
        and from_dict(EncodersConfig, paper["train_encoders"]["encoders"]).kind == "real"
    )


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    "A store of 0.4 s sounds in three splits."
    wav = (numpy_rng(0, "wav").standard_normal((6, 9600)) * 3000).astype(np.int16)
    rows = [
        {"split": s, "text": "a drop falls", "label": "drop"}
        for s in ("train", "train", "train", "train", "val", "test")
    ]
    folder = tmp_path_factory.mktemp("sounds") / "piano"
    fill_store(
        folder,
        rows,
        {"wav": ((9600,), "int16")},
        lambda row: {"wav": wav[row]},
        range(6),
        1,
        split_hash="s",
    )
    return folder


def test_a_pretrained_codec_through_the_stage(sounds, tmp_path):
    """EnCodec's format with tiny weights: nothing is trained.

    Statistics are fitted on the training split; the file is a codec that the next stage loads.
    """
    torch.manual_seed(0)
    source = EnCodec24(CodecConfig(kind="encodec"), num_filters=2, lstm_layers=1)
    save_weights(
        tmp_path / "model.safetensors",
        {k: v for k, v in source.state_dict().items() if not k.startswith("latent_")},
        {},
    )
    sizes = CodecConfig(kind="encodec", encodec_source=str(tmp_path))
    place = Place({"piano": sounds}, tmp_path / "scratch", tmp_path / "codec.safetensors")
    codec, result = train_codec(place, sizes, TrainConfig(1, 2, 1e-3), 0.2)
    again = load_codec(place.made, "s")
    assert result is None and not (tmp_path / "scratch").exists() and again.config == sizes
    wav = torch.randn(1, 9600) / 10
    assert torch.equal(again.encode(wav), codec.encode(wav))
    assert all(
        torch.equal(v, again.encoder.state_dict()[k])
        for k, v in source.encoder.state_dict().items()
    )
    taken, _ = train_codec(
        replace(place, made=tmp_path / "taken.safetensors"),
        sizes,
        TrainConfig(1, 2, 1e-3),
        0.2,
        asset=place.made,
    )
    assert torch.equal(taken.latent_std, codec.latent_std)
    before = (tmp_path / "taken.safetensors").read_bytes()
    with pytest.raises(
        ParamsError, match="holds an encodec codec, the parameters ask for 'embedded'"
    ):
        train_codec(
            replace(place, made=tmp_path / "taken.safetensors"),
            CodecConfig(),
            TrainConfig(1, 2, 1e-3),
            0.2,
            asset=place.made,
        )
    assert (tmp_path / "taken.safetensors").read_bytes() == before


def test_pretrained_encoders_through_the_stage(sounds, t5_folder, clip_folder, tmp_path):  # noqa: F811
    sizes = EncodersConfig(
        kind="real", pretrained=PretrainedSources(text=str(t5_folder), image=str(clip_folder))
    )
    place = Place(
        {"piano": sounds, "foley": sounds, "t2a": sounds},
        tmp_path / "scratch",
        tmp_path / "encoders.safetensors",
    )
    encoders, result = train_encoders(place, sizes, EncodersTraining(), TrainConfig(1, 2, 1e-3))
    again = load_encoders(place.made, split_hash="s")
    assert (
        result is None
        and again.cfg == sizes
        and torch.equal(
            again.text.encode(["a drop falls"])[0], encoders.text.encode(["a drop falls"])[0]
        )
    )
    with pytest.raises(AssetMismatch, match="kind"):
        train_encoders(
            place, EncodersConfig(), EncodersTraining(), TrainConfig(1, 2, 1e-3), asset=place.made
        )


SIZES = DiTConfig(
    2,
    StreamConfig(16, 1, 16),
    StreamConfig(8, 1, 8),
    latent_channels=4,
    text_width=6,
    video_features=5,
    num_registers=2,
    max_positions=200,
    time_frequencies=4,
)


def features(folder: Path, domains: list[str]) -> Path:
    "Stores of features, as `encode` makes them: 1 s clips."
    rng, count = numpy_rng(0, folder.name), len(domains)
    made = {
        "latents": rng.standard_normal((count, 75, 4)),
        "text": rng.standard_normal((count, 2, 6)),
        "text_mask": np.ones((count, 2)),
        "video": rng.standard_normal((count, 25, 5)),
        "has_video": np.array([d != "t2a" for d in domains]),
    }
    kinds = {"text_mask": "bool", "has_video": "bool"}
    fill_store(
        folder,
        [{"split": "train", "domain": d, "rendering": "nuisance"} for d in domains],
        {n: (v.shape[1:], kinds.get(n, "float16")) for n, v in made.items()},
        lambda row: {n: v[row] for n, v in made.items()},
        range(count),
        1,
        split_hash="s",
    )
    return folder


def stage_one(place, cfg):
    "The stage as the notebook calls it, on one thread."
    torch.set_num_threads(1)
    trained = train_general(place, SIZES, cfg, 2, 0.4, DropoutConfig(0, 0, 0, 0, 0))
    return {
        "losses": trained.result.losses.tolist(),
        "parameters": trained.parameters,
        "world": ranks()[1],
    }


def test_a_stage_in_two_processes_equals_one(tmp_path):
    """Both phases of stage 1, weights in pieces, bf16 off.

    The file that two processes write is the file that one writes, to rounding.
    """
    stores = {
        "encoded": features(tmp_path / "piano", ["piano"] * 6),
        "general": features(tmp_path / "general", ["t2a"] * 5 + ["foley"] * 5),
    }
    cfg = TrainConfig(steps=4, batch_size=4, learning_rate=1e-2, ema=0.5)
    two, one = (
        Place(stores, tmp_path / f"scratch-{n}", tmp_path / f"{n}.safetensors") for n in (2, 1)
    )
    made = launch(
        stage_one, Machines(2, restarts=0), two.scratch, two, replace(cfg, sharding="full")
    )
    alone = launch(stage_one, Machines(), one.scratch, one, replace(cfg, accumulate=2))
    assert (
        made["world"] == 2
        and made["parameters"] == alone["parameters"] == size(MultiStreamDiT(SIZES))
        and np.allclose(made["losses"], alone["losses"], atol=1e-4)
    )
    (a, about), (b, _) = load_weights(two.made), load_weights(one.made)
    assert (
        a.keys() == b.keys()
        and all(torch.allclose(a[n], b[n], atol=1e-4) for n in a)
        and about["split_hash"] == "s"
        and about["kind"] == "general"
    )
    with pytest.raises(ParamsError, match="batch of 4 cannot be cut into 3"):
        stage_one(one, replace(cfg, accumulate=3))
    assert {n: v.sum() for n, v in load_weights(one.made)[0].items()} == {
        n: v.sum() for n, v in b.items()
    }


def test_wrong_weights_leave_what_was_there(sounds, tmp_path):
    "A predictor of another shape, and a pickle, are refused by name before anything is written."
    place = Place({"clips": sounds}, tmp_path / "scratch", tmp_path / "roll.safetensors")
    place.made.write_bytes(b"the good one")
    torch.save({"w": torch.ones(2)}, tmp_path / "pickled.safetensors")
    save_weights(
        tmp_path / "other.safetensors",
        {"w": torch.ones(2)},
        {
            "asset": "roll",
            "split_hash": "s",
            "config": json.loads(json.dumps(RollConfig(width=4).__dict__)),
        },
    )
    small = RollConfig(width=2, height=16, strip_width=104)
    with pytest.raises(BadInput, match="pickled.safetensors is not a readable"):
        train_roll(place, small, TrainConfig(1, 2, 1e-3), 1.0, tmp_path / "pickled.safetensors")
    with pytest.raises(
        AssetMismatch, match="other.safetensors was trained under another configuration"
    ):
        train_roll(place, small, TrainConfig(1, 2, 1e-3), 1.0, tmp_path / "other.safetensors")
    assert place.made.read_bytes() == b"the good one" and not place.scratch.exists()


def test_a_touch_network_is_added_to_a_finished_predictor(sounds, tmp_path):
    "All other weights stay as they are; the file goes on and keeps its split."
    sizes = RollConfig(width=2, height=16, strip_width=104)
    save_roll(tmp_path / "init.safetensors", build_roll(sizes), {"split_hash": "s"})
    rows = [(60 + i % 7, 0.5 * i, 0.4, 1) for i in range(16)]
    work = make_score("w", rows, title="", composer="", source="etude")
    data = TouchTraining(steps=3, batch_size=2, shortest_s=1, longest_s=1.5)
    place = Place({"clips": sounds}, tmp_path / "scratch", tmp_path / "roll.safetensors")
    touching, video = replace(sizes, touch=4), TrainConfig(1, 2, 1e-3)
    run = lambda init: train_roll(place, touching, video, 1.0, init, data, [work], "touch")
    assert len(run(tmp_path / "init.safetensors").result.losses) == 3
    (old, _), (new, about) = (load_weights(p) for p in (tmp_path / "init.safetensors", place.made))
    assert all(torch.equal(new[name], value) for name, value in old.items())
    added = new.keys() - old.keys()
    assert all(name.startswith("touch.") for name in added)
    assert new["touch.gains.weight"].abs().max() > 0
    assert about["split_hash"] == "s"
    assert about["config"]["touch"] == 4
    with pytest.raises(ParamsError, match="has no touch network"):
        train_roll(place, sizes, video, 1.0, None, data, [work])
    with pytest.raises(AssetMismatch, match="touch: stored 4, wanted 0"):
        train_roll(place, sizes, video, 1.0, place.made)


def test_a_run_of_other_inputs_is_another_run(tmp_path):
    "A finished checkpoint must not stand in for a run whose start, clips or code have changed."
    (tmp_path / "fingerprints.yaml").write_text("{train_roll: 1, prepare: 1, encode: 1, report: 1}")
    init, index = (
        tmp_path / "data" / "roll.safetensors",
        tmp_path / "features" / "clips" / "piano" / "index.json",
    )
    for path in (init, index):
        path.parent.mkdir(parents=True)
        path.write_text("1")
    stage = Stage("train_roll", {"seed": 0, "device": "cpu", "train_roll": {}}, root=tmp_path)
    place = lambda: Place(**stage.place("roll.safetensors", init, clips="clips/piano"))
    seen = [place()]
    assert place() == seen[0] and seen[0].identity("s")["inputs"].keys() == {
        "code of train_roll",
        "code of prepare",
        "code of encode",
        "data/roll.safetensors",
        "features/clips/piano/index.json",
    }
    assert "inputs" not in seen[0].about("s")
    init.write_text("2")
    seen.append(place())
    index.write_text("2")
    seen.append(place())
    (tmp_path / "fingerprints.yaml").write_text("{train_roll: 2, prepare: 1, encode: 1, report: 1}")
    seen.append(place())
    assert len({p.scratch for p in seen}) == 4 and len({str(p.identity("s")) for p in seen}) == 4
    (tmp_path / "fingerprints.yaml").write_text("{train_roll: 2, prepare: 1, encode: 1, report: 2}")
    assert place().scratch == seen[-1].scratch  # the report's code trains nothing


def test_runs_that_differ_in_their_seed_alone_share_their_settings(root):
    from cop_repro.evaluation.report import APART, claim_sections
    from cop_repro.parameters import settings_hash

    base = load_params(root / "params.yaml")
    assert set(APART) < set(base)
    seeds, own = base["report"]["seeds"], settings_hash(claim_sections(base))
    merged = {
        name: merge(base, load_params(root / "profiles" / f"{name}.yaml"))
        for name in (*seeds, "general_continued", "composers")
    }
    made = {name: settings_hash(claim_sections(params)) for name, params in merged.items()}
    assert {made[name] for name in seeds} == {own} == {made["composers"]}
    assert made["general_continued"] != own
    for name in seeds:
        published = json.loads((root / "reports/profiles" / name / "verdicts.json").read_text())
        assert published["settings"] == own
        assert {v["claim"] for v in published["verdicts"]} >= {"C5", "C7", "C8"}
