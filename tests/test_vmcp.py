# SPDX-License-Identifier: Apache-2.0
"VMCP: golden values, what is masked, what can be removed, files, and that it learns."

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cop_repro.core import AssetMismatch, BadInput, numpy_rng, save_weights
from cop_repro.data.scenes import Scene, make_window
from cop_repro.judges.vmcp import (
    PARTS,
    Pairs,
    VmcpConfig,
    correspondence_loss,
    fit_vmcp,
    judge_rows,
    load_vmcp,
    make_vmcp,
    music_channels,
    removal_effects,
    retrieve,
    save_vmcp,
    vmcp_step_fn,
)
from cop_repro.measure.visual_rhythm import VideoFeatures
from cop_repro.training.loop import TrainConfig

TINY = VmcpConfig(width=16, channels=16, blocks=1, heads=2, embedding=8, window_s=3.0, dropout=0.0)
VIDEOS = [(f"w{i}", 0) for i in range(6)]
POOL = [(work, start) for work, _ in VIDEOS for start in (0, 8)]


def scene(work: str, start: int, seed: int) -> Scene:
    "Two bars at 120 beats a minute whose video is fast where the music is dense."
    rng, rows, flow = numpy_rng(seed, "scene", work, start), [], []
    for half in range(4):
        dense = int(rng.integers(1, 9))
        for tick in rng.choice(8, dense, replace=False):
            rows.append((8 * half + int(tick), int(rng.integers(50, 80)), 1, 0))
        flow += [0.3 * dense] * 25
    flow = np.array(flow)
    directogram = np.outer(flow, np.eye(8)[0])
    colour, picture = np.full((20, 12), 0.5), np.full((20, 22), 0.5)
    arrays = {"flow": flow, "directogram": directogram, "colour": colour, "picture": picture}
    features = {name: value.astype(np.float32) for name, value in arrays.items()}
    return Scene(make_window(rows, 2, 120.0, work, "tune", start), None, features)


@pytest.fixture(scope="module")
def pairs() -> list[Scene]:
    return [scene(f"w{i}", start, 0) for i in range(6) for start in (0, 8)]


def test_golden_retrieval():
    identity = np.repeat(np.eye(6), 2, 1) * np.tile([1.0, 0.0], 6)
    best = retrieve(identity, VIDEOS, POOL, pool=10, k=1).row()
    assert best["p1"] == best["average_rank"] == best["same_piece"] == 1
    equal = retrieve(np.zeros((6, 12)), VIDEOS, POOL, pool=10, k=5).row()
    assert equal["average_rank"] == equal["average_rank_chance"] == 5.5
    assert equal["p5"] == equal["p5_chance"] == equal["same_piece"] == 0.5


def test_a_rank_by_hand():
    similarity = np.zeros((6, 12))
    similarity[0, [0, 1, 4]] = 2, 3, 5  # own, sibling, another piece
    outcome = retrieve(similarity, VIDEOS, POOL, pool=12, num_pools=1, k=2)
    assert outcome.ranks[0] == 3 and outcome.hits[0] == 0 and outcome.pairwise[0] == 0


@pytest.mark.parametrize("how", [{"pool": 8}, {"pool": 14}, {"pool": 11}, {"pool": 12, "k": 7}])
def test_impossible_pools_are_refused(how):
    with pytest.raises(BadInput, match="is possible"):
        retrieve(np.zeros((6, 12)), VIDEOS, POOL, **how)


def test_a_target_outside_the_pool_is_refused():
    with pytest.raises(BadInput, match="one other"):
        retrieve(np.zeros((6, 10)), VIDEOS, POOL[2:], pool=10)
    with pytest.raises(BadInput, match="one other"):
        retrieve(np.zeros((6, 12)), [(w, 16) for w, _ in VIDEOS], POOL, pool=10)


def test_the_loss_agrees_with_its_definition():
    rng = torch.Generator().manual_seed(0)
    video, music = (F.normalize(torch.randn(5, 4, generator=rng), dim=1) for _ in range(2))
    shared = torch.zeros(5, 5, dtype=torch.bool)
    shared[0, 1] = shared[1, 0] = True
    logits = 3 * (video @ music.T).numpy()
    expected = 0.0
    for i in range(5):
        allowed = [j for j in range(5) if j == i or not shared[i, j]]
        expected += math.log(np.exp(logits[i, allowed]).sum()) - logits[i, i]
        expected += math.log(np.exp(logits[allowed, i]).sum()) - logits[i, i]
    loss = correspondence_loss(video, music, torch.tensor(math.log(3.0)), shared)
    assert np.isclose(float(loss), expected / 10, atol=1e-5)


def test_overlapping_windows_are_no_negatives_and_siblings_are():
    data = Pairs([scene("a", 0, 0), scene("a", 1, 0), scene("a", 8, 0), scene("b", 0, 0)])
    assert data.shared([0, 1, 2, 3])[0].tolist() == [True, True, False, False]
    for step in range(20):
        rows = data.rows(step, 4, 0, True)
        spans = [data.spans[row] for row in rows]
        assert len(set(spans)) == len(spans) == 3
        assert not (data.shared(rows) & ~torch.eye(len(rows), dtype=torch.bool)).any()


def test_onset_and_length_of_a_note_are_in_the_roll():
    roll = music_channels(make_window([(2, 60, 6, 0), (8, 108, 8, 1)], 1, 120.0))
    assert len(roll) == 50
    assert np.flatnonzero(roll[:, 88 + 39]).tolist() == [6]  # tick 2 is at .25 s
    assert roll[:, 39].sum() == 19 and roll[25:, 87].all()


def test_it_learns_and_resumes_exactly(pairs, tmp_path):
    cfg = TrainConfig(
        steps=100, batch_size=12, learning_rate=5e-3, warmup_steps=5, clip_norm=1.0, save_every=50
    )
    model, result = fit_vmcp(pairs, "hash", cfg, tmp_path / "whole", TINY)
    assert result.losses[-10:].mean() < 0.7 * result.losses[:5].mean()
    scenes = [p for p in pairs if p.window.start_bar == 0]
    rows = judge_rows(model, scenes, [p.window for p in pairs], pool=12, num_pools=2, k=3)
    assert rows["truth"].row()["average_rank"] < 3
    assert rows["shuffled"].row()["average_rank"] > 4
    assert rows["without motion"].row()["average_rank"] > rows["truth"].row()["average_rank"] + 1
    effects = removal_effects(rows)
    assert set(effects) == {"shuffled", *(f"without {part}" for part in PARTS)}
    assert effects["without motion"][1] > 0
    (tmp_path / "whole" / "step-00000100").rename(tmp_path / "last")
    again, resumed = fit_vmcp(pairs, "hash", cfg, tmp_path / "whole", TINY)
    assert resumed.resumed_from == 50
    for one, two in zip(model.state_dict().values(), again.state_dict().values()):
        assert torch.equal(one, two)


def test_a_video_without_any_part_says_nothing(pairs):
    model = make_vmcp(TINY).eval()
    seen = [VideoFeatures(**p.features) for p in pairs[:3]]
    whole = [model.video(f)[0] for f in seen]
    blind = [model.video(f, tuple(PARTS))[0] for f in seen]
    assert np.allclose(blind[0], blind[1]) and np.allclose(blind[0], blind[2])
    assert not np.allclose(whole[0], whole[1], atol=1e-4)
    with pytest.raises(BadInput, match="no part 'sound'"):
        model.video(seen[0], ("sound",))


def test_one_step_is_a_function_of_seed_and_step(pairs):
    cfg = TrainConfig(steps=5, batch_size=12, learning_rate=1e-3)
    losses = [
        float(vmcp_step_fn(make_vmcp(TINY), Pairs(pairs), cfg)(step, 0, 1)[0].detach())
        for step in (3, 3, 4)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_a_judge_is_bound_to_its_split(tmp_path, pairs):
    model = make_vmcp(TINY, 3).eval()
    model.split_hash = "one"
    save_vmcp(tmp_path / "vmcp.safetensors", model)
    again = load_vmcp(tmp_path / "vmcp.safetensors", "one")
    assert np.array_equal(again.music(pairs[0].window), model.music(pairs[0].window))
    with pytest.raises(AssetMismatch, match="may have learnt"):
        load_vmcp(tmp_path / "vmcp.safetensors", "two")
    save_weights(tmp_path / "codec.safetensors", {"w": torch.ones(1)}, {"asset": "codec"})
    with pytest.raises(BadInput, match="no judge"):
        load_vmcp(tmp_path / "codec.safetensors", "one")
    with pytest.raises(BadInput, match="no scenes"):
        Pairs([])
