# SPDX-License-Identifier: Apache-2.0
"""Several processes: equal to one, whole or sharded; killed, restarted, resumed; torchrun.

Starting processes costs seconds, so each launch checks several facts.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from cop_repro.core import (
    BadInput,
    CopError,
    ParamsError,
    load_weights,
    numpy_rng,
    save_weights,
    torch_rng,
)
from cop_repro.model.cop_piano import grow_piano
from cop_repro.model.dit import DiTConfig, MultiStreamDiT, StreamConfig
from cop_repro.model.flow import DropoutConfig
from cop_repro.model.roll import RollConfig, build_roll
from cop_repro.training import launch as launching
from cop_repro.training.contrast import ContrastConfig, build_heads, contrast_step
from cop_repro.training.general import general_step
from cop_repro.training.guidance import GuidanceConfig, guidance_step
from cop_repro.training.launch import Machines, launch, run_lock
from cop_repro.training.loop import TrainConfig, list_checkpoints, load_ema, ranks, train

SIZES = DiTConfig(
    2,
    StreamConfig(16, 1, 16),
    StreamConfig(8, 1, 8),
    latent_channels=4,
    text_width=6,
    video_features=5,
    num_registers=2,
    max_positions=48,
    time_frequencies=4,
    checkpointing=True,
)
CFG = TrainConfig(steps=6, batch_size=8, learning_rate=1e-2, warmup_steps=2, save_every=3, ema=0.9)
PARTS = replace(CFG, accumulate=2)  # what two processes do, done by one


def store(clips=16, f=8):
    rng = numpy_rng(0, "store")
    held = np.repeat(rng.random((clips, f, 11)) < 0.4, 8, 2).astype(np.float16)
    return {
        "latents": rng.standard_normal((clips, 3 * f, 4)).astype(np.float16),
        "text": rng.standard_normal((clips, 2, 6)).astype(np.float16),
        "text_mask": np.ones((clips, 2), bool),
        "video": rng.standard_normal((clips, f, 5)).astype(np.float16),
        "has_video": np.ones(clips, bool),
        "strips": rng.integers(0, 255, (clips, f, 16, 104), np.uint8),
        "presence": held,
        "onset": held,
        "velocity": (held * 0.5).astype(np.float16),
        "pedal": np.zeros((clips, f), np.float16),
        "soft_presence": held,
        "soft_velocity": (held * 0.5).astype(np.float16),
    }


def stirred(model):
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch_rng(0, "stir", i)), alpha=0.1)
    return model


def general(cfg, folder, **options):
    "Stage 1 on toy features: final weights, averaged weights and losses."
    model = stirred(MultiStreamDiT(SIZES))
    step = general_step(model, [(store(), range(16))], cfg, 12, DropoutConfig())
    step = options.pop("wrap", lambda s: s)(step)
    result = train({"dit": model}, step, cfg, folder, **options)
    state = {n: v.clone() for n, v in model.state_dict().items()}
    if result.ema:
        load_ema({"dit": model}, result.ema)
    return state | {f"ema.{n}": v for n, v in model.state_dict().items()} | {
        "losses": torch.from_numpy(result.losses)
    }, result


def joint(cfg, folder):
    "Stage 2: the predictor is called apart from the DiT, and not in every step."
    torch.manual_seed(0)
    model = grow_piano(
        MultiStreamDiT(SIZES),
        build_roll(RollConfig(width=2, height=16, strip_width=104)),
        StreamConfig(16, 1, 16),
    )
    step = guidance_step(
        model,
        store(),
        range(16),
        cfg,
        GuidanceConfig("velocity", "cached", 2),
        12,
        [(store(), range(16))],
        4,
        DropoutConfig(),
    )
    result = train({"piano": model}, step, cfg, folder)
    return dict(model.state_dict()) | {"losses": torch.from_numpy(result.losses)}


def contrast(cfg, folder):
    "Stage 3: the same network runs whole, and twice its first layer alone."
    model, settings = (
        stirred(MultiStreamDiT(SIZES)),
        ContrastConfig(width=8, frames=2, stride=2, weight=1.0),
    )
    heads = build_heads(model, settings)
    result = train(
        {"dit": model, "heads": heads},
        contrast_step(model, heads, [(store(), range(16))], cfg, settings, 12),
        cfg,
        folder,
    )
    return (
        dict(model.state_dict())
        | {f"heads.{n}": v for n, v in heads.state_dict().items()}
        | {"losses": torch.from_numpy(result.losses)}
    )


def error_of(call):
    try:
        call()
    except CopError as error:
        return f"{type(error).__name__}: {error}"


def broken(step, where, what):
    "A step function that fails at step 4 on the last part."

    def step_fn(s, p, n):
        if s == 4 and p == n - 1:
            if what == "error":
                raise BadInput("this part holds no video")
            loss, logs = step(s, p, n)
            return loss * float("nan"), logs
        return step(s, p, n)

    return step_fn


def everything(folder):
    "All that two processes must do like one; the first writes what came out."
    torch.set_num_threads(1)
    made, words, full = {}, {}, replace(CFG, sharding="full")
    made["whole"], _ = general(CFG, folder / "whole")
    made["pieces"], _ = general(full, folder / "pieces")
    muon = replace(CFG, optimizer="muon")
    made["muon"], _ = general(muon, folder / "muon")
    made["whole_bf16"], _ = general(replace(CFG, precision="bf16"), folder / "whole16")
    made["pieces_bf16"], _ = general(replace(full, precision="bf16"), folder / "pieces16")
    made["pieces_accumulated"], _ = general(replace(full, accumulate=2), folder / "accumulated")
    for name, call in (("joint", joint), ("contrast", contrast)):
        made[name], made[f"{name}_pieces"] = (
            call(CFG, folder / name),
            call(full, folder / f"{name}-pieces"),
        )
    for name, start, cfg in (
        ("whole", "whole", CFG),
        ("pieces", "pieces", full),
        ("whole_from_pieces", "pieces", CFG),
        ("muon", "muon", muon),
    ):
        if ranks()[0] == 0:
            shutil.copytree(
                folder / start / "step-00000003", folder / f"{name}-again" / "step-00000003"
            )
        made[f"{name}_again"], result = general(cfg, folder / f"{name}-again")
        words[f"{name}_from"] = result.resumed_from
    words["nan"] = error_of(
        lambda: general(CFG, folder / "nan", wrap=lambda s: broken(s, 4, "nan"))
    )
    words["nan_pieces"] = error_of(
        lambda: general(full, folder / "nan-pieces", wrap=lambda s: broken(s, 4, "nan"))
    )
    words["error"] = error_of(
        lambda: general(CFG, folder / "error", wrap=lambda s: broken(s, 4, "error"))
    )
    words["uneven"] = error_of(
        lambda: general(replace(CFG, batch_size=7), folder / "whole", resume=False)
    )
    words["muon_pieces"] = error_of(
        lambda: general(replace(muon, sharding="full"), folder / "muon", resume=False)
    )
    Path(folder / f"words-{ranks()[0]}.json").write_text(json.dumps(words))
    if ranks()[0] == 0:
        for name, tensors in made.items():
            save_weights(folder / f"{name}.safetensors", tensors, {"world": ranks()[1]})
    return general(full, folder / "error-pieces", wrap=lambda s: broken(s, 4, "error"))


def close(a, b, atol=2e-5):
    return a.keys() == b.keys() and all(
        torch.allclose(a[n].float(), b[n].float(), atol=atol) for n in a
    )


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_two_processes_equal_one(tmp_path):
    "Gloo, whole and sharded: the weights of one process, resumption across sizes, errors on all."
    with pytest.raises(CopError, match="this part holds no video"):
        launch(everything, Machines(2, restarts=0), tmp_path, tmp_path)
    found = {p.stem: load_weights(p)[0] for p in tmp_path.glob("*.safetensors")}
    assert {load_weights(p)[1]["world"] for p in tmp_path.glob("*.safetensors")} == {2}
    one, _ = general(PARTS, tmp_path / "one")
    assert (
        close(found["whole"], one)
        and close(found["pieces"], found["whole"])
        and not close(found["whole"], stirred(MultiStreamDiT(SIZES)).state_dict())
    )
    assert close(found["pieces_bf16"], found["whole_bf16"], 2e-3) and not close(
        found["pieces_bf16"], found["pieces"], 1e-6
    )
    assert close(
        found["pieces_accumulated"], general(replace(CFG, accumulate=4), tmp_path / "four")[0]
    )
    assert close(found["joint"], joint(PARTS, tmp_path / "joint-one")) and close(
        found["joint_pieces"], found["joint"]
    )
    assert close(found["contrast_pieces"], found["contrast"])
    assert (
        equal(found["whole_again"], found["whole"])
        and equal(found["pieces_again"], found["pieces"])
        and close(found["whole_from_pieces_again"], found["whole"])
        and equal(found["muon_again"], found["muon"])
    )
    by_muon, _ = general(replace(PARTS, optimizer="muon"), tmp_path / "muon-one")
    assert close(found["muon"], by_muon, 2e-3) and not close(found["muon"], one, 2e-2)
    words = [json.loads((tmp_path / f"words-{rank}.json").read_text()) for rank in (0, 1)]
    assert (
        words[0]["whole_from"] == words[0]["pieces_from"] == words[0]["whole_from_pieces_from"] == 3
    )
    for said in words:
        assert (
            "step 4: the loss is nan" in said["nan"]
            and "step 4: the loss is nan" in said["nan_pieces"]
            and said["error"] == "BadInput: this part holds no video"
        )
        assert (
            "batch of 7 cannot be cut into 2 equal parts (2 processes x 1 micro-batches)"
            in said["uneven"]
        )
        assert (
            "optimizer is 'muon' and sharding is 'full' on 2 processes, but Muon needs whole"
            in said["muon_pieces"]
        )
    assert (
        [p.name for p in list_checkpoints(tmp_path / "whole")]
        == ["step-00000003", "step-00000006"]
        == [p.name for p in list_checkpoints(tmp_path / "pieces")]
        == [p.name for p in list_checkpoints(tmp_path / "muon")]
    )
    shutil.rmtree(tmp_path / "pieces" / "step-00000006")  # saved by two in pieces, goes on with one
    resumed, result = general(PARTS, tmp_path / "pieces")
    assert result.resumed_from == 3 and close(resumed, one)


def dying(folder):
    "One process is killed in the middle of a run, once."
    torch.set_num_threads(1)

    def wrap(step):
        def step_fn(s, p, n):
            if s == 4 and ranks()[0] == 1 and not (folder / "killed").exists():
                (folder / "killed").write_text("")
                os.kill(os.getpid(), signal.SIGKILL)
            return step(s, p, n)

        return step_fn

    made, result = general(replace(CFG, sharding="full"), folder / "disturbed", wrap=wrap)
    calm, _ = general(replace(CFG, sharding="full"), folder / "calm")
    return {"equal": equal(made, calm), "resumed_from": result.resumed_from}


def once(folder):
    "The second process is killed as soon as all have met, once; which start this is."
    dist.barrier()
    if ranks()[0] == 1 and not (folder / "killed").exists():
        (folder / "killed").write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
    return int(os.environ["TORCHELASTIC_RESTART_COUNT"])


def test_one_start_is_enough(tmp_path):
    "After a SIGKILL the new processes find each other at the first attempt, whoever comes first."
    assert launch(once, 2, tmp_path, tmp_path) == 1


def test_a_new_start_sees_no_old_address(monkeypatch):
    "What an earlier start wrote to the agent's store is not seen; several agents use no prefix."
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    given = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(server.port),
        "RANK": "0",
        "WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "GROUP_WORLD_SIZE": "1",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    store, rank, world = launching._meet()
    store.set("rank-1", "127.0.0.1:8628")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again = launching._meet()[0]
    assert (rank, world) == (0, 2) and store.check(["rank-1"]) and not again.check(["rank-1"])
    server.set("plain", "x")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert launching._meet()[0].check(["plain"])


@pytest.mark.cluster
def test_a_killed_process_changes_nothing(tmp_path):
    "After SIGKILL of one of two the run continues and ends with the undisturbed run's weights."
    assert (
        launch(dying, 2, tmp_path, tmp_path) == {"equal": True, "resumed_from": 3}
        and (tmp_path / "killed").exists()
    )


def who(folder):
    made, _ = general(replace(CFG, steps=3), folder / "run")
    return {
        "ranks": ranks(),
        "losses": made["losses"].tolist(),
        "interface": os.environ.get("GLOO_SOCKET_IFNAME"),
    }


def test_two_nodes_one_of_them_under_torchrun(tmp_path):
    "Two agents meet at a port of this machine, ours and torchrun's, and train together."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    machines = {
        "processes": 1,
        "nodes": 2,
        "endpoint": endpoint,
        "address": "127.0.0.1",
        "interface": "lo",
    }
    folder = tmp_path / "nodes"
    (
        tmp_path / "node.py"
    ).write_text(f"""import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import json
from pathlib import Path
from test_launch import Machines, launch, who
folder = Path({str(folder)!r})
made = launch(who, Machines(**{machines!r}), folder, folder)
(folder / f"rank-{{made['ranks'][0]}}.json").write_text(json.dumps(made))
""")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        endpoint,
        "--rdzv-id",
        "cop-nodes",
        "--local-addr",
        "127.0.0.1",
        str(tmp_path / "node.py"),
    ]
    with open(tmp_path / "said", "w") as said:
        other = subprocess.Popen(command, stdout=said, stderr=said)
        ours = launch(who, Machines(**machines), folder, folder)
        assert other.wait(timeout=300) == 0, (tmp_path / "said").read_text()[-3000:]
    (theirs,) = (json.loads(p.read_text()) for p in folder.glob("rank-*.json"))
    assert sorted([tuple(ours["ranks"]), tuple(theirs["ranks"])]) == [(0, 2), (1, 2)] and {
        ours["interface"],
        theirs["interface"],
    } == {"lo"}
    assert ours["losses"] == theirs["losses"] and len(ours["losses"]) == 3


def test_requests_that_cannot_be_met(tmp_path, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ParamsError, match="2 nodes need an endpoint"):
        launch(print, Machines(1, 2), tmp_path)
    monkeypatch.setenv("MASTER_ADDR", "node-a")
    assert launching.meeting_point(Machines(1, 2)) == "node-a:29500"
    with pytest.raises(ParamsError, match="processes is 0"):
        launch(print, 0, tmp_path)
    for wrong in ({"endpoint": "node-a"}, {"restarts": -1}, {"nodes": 0}):
        with pytest.raises(ParamsError):
            Machines(**wrong)


def test_lock(tmp_path):
    with run_lock(tmp_path):
        with pytest.raises(CopError, match=f"process {os.getpid()}"):
            launch(print, 1, tmp_path)
    assert launch(lambda: 7, 1, tmp_path) == 7


@pytest.mark.skipif(not os.path.exists("/proc"), reason="the death signal is Linux's")
def test_trainer_dies_with_its_parent(tmp_path):
    note = tmp_path / "pid"
    parent = os.fork()
    if parent == 0:
        child = os.fork()
        if child == 0:
            with launching.dying_with_parent():
                note.write_text(str(os.getpid()))
                time.sleep(60)
            os._exit(0)
        time.sleep(60)
        os._exit(0)
    while not (note.exists() and note.read_text()):
        time.sleep(0.02)
    pid = int(note.read_text())
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)

    def gone():
        try:
            return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
        except FileNotFoundError:
            return True

    deadline = time.monotonic() + 15
    while not gone() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert gone()
