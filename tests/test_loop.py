# SPDX-License-Identifier: Apache-2.0
"""The training loop: exact resumption, atomic checkpoints, guard, order.

What needs several processes is in test_launch.py.
"""

import contextlib
import dataclasses
import json
import resource
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from cop_repro.core import (
    AssetMismatch,
    BadInput,
    CopError,
    ParamsError,
    from_dict,
    load_weights,
    torch_rng,
)
from cop_repro.training import loop
from cop_repro.training.loop import (
    TrainConfig,
    _SinglePrecision,
    learning_rate_at,
    list_checkpoints,
    load_checkpoint,
    rows_for_step,
    save_checkpoint,
    train,
)

CFG = TrainConfig(steps=12, batch_size=8, learning_rate=1e-2, warmup_steps=3, save_every=4, ema=0.9)


class Net(nn.Module):
    "Dropout, batch statistics and a layer that only some steps use: all that can break a resume."

    def __init__(self, dropout=0.2):
        super().__init__()
        self.one, self.norm, self.drop, self.two, self.side = (
            nn.Linear(3, 8),
            nn.BatchNorm1d(8),
            nn.Dropout(dropout),
            nn.Linear(8, 1),
            nn.Linear(3, 1),
        )
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(torch.randn(p.shape, generator=torch_rng(0, "test", i)) / 3)

    def forward(self, x, side):
        return self.two(self.drop(torch.relu(self.norm(self.one(x))))) + (
            self.side(x) if side else 0
        )


DATA = torch.randn(20, 3, generator=torch_rng(1, "data"))


def make(cfg, dropout=0.2):
    net = Net(dropout)

    def step_fn(step, part, parts):
        x = DATA[rows_for_step(range(20), step, cfg.batch_size, cfg.seed, part, parts)]
        loss = (net(x, step % 3 == 0) - x.sum(1, keepdim=True)).square().mean()
        return loss, {"rare": loss.detach()} if step > 5 else {}

    return net, step_fn


class Killed(Exception):
    pass


def killed_at(limit, step_fn):
    "A step function that is interrupted before a step."

    def interrupted(step, part, parts):
        if step >= limit:
            raise Killed
        return step_fn(step, part, parts)

    return interrupted


MUON_SHARES = {"optimizer": "muon", "shares": {"net.one": 0.5, "net.two.bias": 0.25}}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16"},
        {"accumulate": 2},
        {"decay": "cosine", "ema": 0.0},
        {"optimizer": "muon"},
        MUON_SHARES,
        MUON_SHARES | {"accumulate": 2, "ema": 0.0},
    ],
)
def test_resume_is_bit_for_bit(tmp_path, changes):
    cfg = TrainConfig(
        **(
            {
                k: getattr(CFG, k)
                for k in (
                    "steps",
                    "batch_size",
                    "learning_rate",
                    "warmup_steps",
                    "save_every",
                    "ema",
                )
            }
            | changes
        )
    )
    net, fn = make(cfg)
    whole = train({"net": net}, fn, cfg, tmp_path / "whole")
    broken, fn = make(cfg)
    with pytest.raises(Killed):
        train({"net": broken}, killed_at(7, fn), cfg, tmp_path / "broken")
    again, fn = make(cfg)
    torch.rand(5)
    resumed = train({"net": again}, fn, cfg, tmp_path / "broken")
    assert resumed.resumed_from == 4 and np.array_equal(whole.losses, resumed.losses)
    assert all(
        np.array_equal(whole.logs[k], resumed.logs[k], equal_nan=True)
        for k in whole.logs | resumed.logs
    )
    for (name, a), b in zip(net.state_dict().items(), again.state_dict().values()):
        assert torch.equal(a, b), name
    assert all(torch.equal(whole.ema[k], resumed.ema[k]) for k in whole.ema | resumed.ema)
    done = train({"net": make(cfg)[0]}, fn, cfg, tmp_path / "whole")
    assert done.resumed_from == done.step == 12 and np.array_equal(done.losses, whole.losses)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_checkpoint_of_the_middle_equals_too(tmp_path, optimizer):
    "Every file of the last checkpoint, moments included, is as without the interruption."
    cfg = dataclasses.replace(CFG, optimizer=optimizer)
    for folder, stop in (("whole", 99), ("broken", 6)):
        for limit in (stop, 99):
            net, fn = make(cfg)
            with contextlib.suppress(Killed):
                train({"net": net}, killed_at(limit, fn), cfg, tmp_path / folder)
    a, b = (list_checkpoints(tmp_path / f)[-1] for f in ("whole", "broken"))
    files = sorted(p.name for p in a.glob("*.safetensors"))
    assert files == [
        "ema.safetensors",
        "history.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
    ]
    for name in files:
        left, right = load_weights(a / name)[0], load_weights(b / name)[0]
        assert left.keys() == right.keys() and all(
            torch.equal(left[k].nan_to_num(7), right[k].nan_to_num(7)) for k in left
        )


def test_global_generator_is_left_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(4)
    net, fn = make(CFG)
    torch.manual_seed(3)
    train({"net": net}, fn, CFG, tmp_path)
    assert torch.equal(torch.rand(4), expected)


def test_kill_during_save_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    "A SIGKILL leaves the folder as it is: copy it around every write and resume from each copy."
    run, pictures = tmp_path / "run", []

    def photographed(good):
        def call(*args, **kwargs):
            for when in (0, 1):
                if when == 1:
                    out = good(*args, **kwargs)
                if len(list_checkpoints(run)) and not (run / "step-00000012").exists():
                    pictures.append(tmp_path / f"picture-{len(pictures)}")
                    shutil.copytree(run, pictures[-1])
            return out

        return call

    for name in ("save_weights", "write_json", "_flush_folder"):
        monkeypatch.setattr(loop, name, photographed(getattr(loop, name)))
    net, fn = make(CFG)
    whole = train({"net": net}, fn, CFG, run)
    monkeypatch.undo()
    begins = set()
    for picture in pictures[:20]:
        again, fn = make(CFG)
        resumed = train({"net": again}, fn, CFG, picture)
        begins.add(resumed.resumed_from)
        assert np.array_equal(resumed.losses, whole.losses) and not list(picture.glob(".step-*"))
    assert begins == {4, 8}


def test_incomplete_checkpoints_do_not_count(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"model": {"w": torch.ones(3) * step}}, {}, keep=3)
    (tmp_path / "step-00000003" / loop.MARKER).unlink()
    assert load_checkpoint(tmp_path, {})[0] == 2
    file = tmp_path / "step-00000002" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert load_checkpoint(tmp_path, {})[0] == 1
    (tmp_path / "step-00000001" / loop.MARKER).write_text("{")
    assert load_checkpoint(tmp_path, {}) is None


def test_another_configuration_is_refused_by_name(tmp_path):
    net, fn = make(CFG)
    train({"net": net}, fn, CFG, tmp_path, identity={"split": "a"})
    other = TrainConfig(steps=12, batch_size=8, learning_rate=2e-2, warmup_steps=3, ema=0.9)
    with pytest.raises(AssetMismatch, match="config.learning_rate was 0.01, is 0.02"):
        train({"net": net}, fn, other, tmp_path, identity={"split": "a"})
    with pytest.raises(AssetMismatch, match="identity.split was 'a', is 'b'"):
        train({"net": net}, fn, CFG, tmp_path, identity={"split": "b"})
    with pytest.raises(AssetMismatch, match="trained.net.side.bias"):
        net.side.requires_grad_(False)
        train({"net": net}, fn, CFG, tmp_path, identity={"split": "a"})
    fresh, fn = make(other)
    assert train({"net": fresh}, fn, other, tmp_path, resume=False).resumed_from == 0


def test_saving_more_often_is_not_another_configuration(tmp_path):
    net, fn = make(CFG)
    train({"net": net}, fn, CFG, tmp_path)
    often = TrainConfig(
        steps=12,
        batch_size=8,
        learning_rate=1e-2,
        warmup_steps=3,
        ema=0.9,
        save_every=1,
        keep=5,
        report_every=1,
    )
    assert train({"net": net}, fn, often, tmp_path).resumed_from == 12


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_nan_raises_and_touches_no_weight(tmp_path, poison):
    net, fn = make(CFG)
    seen = {}

    def step_fn(step, part, parts):
        loss, logs = fn(step, part, parts)
        if step < 5:
            return loss, logs
        seen.update({n: p.detach().clone() for n, p in net.named_parameters()})
        return (
            (loss * float("nan"), {})
            if poison == "loss"
            else (loss + torch.sqrt(net.one.weight.sum() * 0), {})
        )

    with pytest.raises(CopError, match="step 5"):
        train({"net": net}, step_fn, CFG, tmp_path)
    assert all(torch.equal(seen[n], p) for n, p in net.named_parameters())
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000004"]


def test_frozen_modules_stay(tmp_path):
    net, fn = make(CFG)
    net.one.requires_grad_(False)
    before = net.one.weight.clone()
    train({"net": net}, fn, CFG, tmp_path)
    assert torch.equal(net.one.weight, before)
    with pytest.raises(BadInput, match="nothing to train"):
        train({"net": net.requires_grad_(False)}, fn, CFG, tmp_path / "x")


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_parameters_without_gradient_do_not_move(tmp_path, optimizer):
    "Momentum must not move a layer in steps that do not use it."
    cfg = dataclasses.replace(CFG, optimizer=optimizer)
    net, fn = make(cfg)
    moved = []

    def step_fn(step, part, parts):
        moved.append(net.side.weight.detach().clone())
        return fn(step, part, parts)

    train({"net": net}, step_fn, cfg, tmp_path)
    steps_that_moved = [s for s in range(11) if not torch.equal(moved[s], moved[s + 1])]
    assert steps_that_moved == [0, 3, 6, 9]


def test_one_step_equals_adam_by_hand(tmp_path):
    "First Adam step: every weight moves by lr * g / (|g| + eps), whatever the clipping."
    cfg = TrainConfig(steps=1, batch_size=8, learning_rate=1e-3, clip_norm=0.2)
    net, fn = make(cfg, 0.0)
    before = [p.detach().clone() for p in net.parameters()]
    net.train()
    grads = torch.autograd.grad(fn(0, 0, 1)[0], list(net.parameters()))
    norm = torch.cat([g.flatten() for g in grads]).norm()
    scale = min(1.0, 0.2 / float(norm))
    result = train({"net": net}, fn, cfg, tmp_path)
    for a, b, g in zip(before, net.parameters(), grads):
        assert torch.allclose(a - 1e-3 * (g * scale) / ((g * scale).abs() + 1e-8), b, atol=2e-6)
    assert result.logs["gradient_norm"][0] == pytest.approx(float(norm), rel=1e-5)


class Mixed(nn.Module):
    "A matrix of a linear layer between weights that are not."

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.positions = nn.Parameter(torch.zeros(5, 6))
        self.blur = nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.picture = nn.Conv2d(1, 2, 3, padding=1)
        self.norm = nn.LayerNorm(6)
        self.map = nn.Linear(6, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(torch.randn(p.shape, generator=torch_rng(0, "mixed", i)) / 2)

    def forward(self, rows):
        x = self.blur((self.table(rows) + self.positions).transpose(1, 2))
        x = self.picture(x[:, None]).mean(1).transpose(1, 2)
        return self.frozen(self.map(self.norm(x)))


def one_step(make_net, folder, **changes):
    "Weights before and after one step, and the stored state of the optimisers."
    cfg = TrainConfig(1, 4, 1e-3, clip_norm=None, **changes)
    net = make_net()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    rows = torch.arange(20).reshape(4, 5)

    def step_fn(step, part, parts):
        return net(rows).square().mean(), {}

    train({"net": net}, step_fn, cfg, folder)
    after = {n: p.detach() for n, p in net.named_parameters()}
    return before, after, load_weights(list_checkpoints(folder)[-1] / "optimizer.safetensors")[0]


def test_muon_trains_the_matrices_of_linear_layers_alone(tmp_path):
    "All else moves as by Adam alone; the matrix moves by about the same amount in all directions."
    _, by_adam, _ = one_step(Mixed, tmp_path / "adam")
    before, by_muon, stored = one_step(Mixed, tmp_path / "muon", optimizer="muon", matrix_rate=0.1)
    moved_otherwise = {n for n in by_adam if not torch.equal(by_adam[n], by_muon[n])}
    assert moved_otherwise == {"map.weight"}
    sizes = torch.linalg.svdvals(before["map.weight"] - by_muon["map.weight"]) / 0.1
    assert ((sizes > 0.6) & (sizes < 1.3)).sum() >= 3
    kinds = {name: set() for name in by_adam if not name.startswith("frozen")}
    for key in stored:
        name, _, kind = key.removeprefix("net.").rpartition("/")
        kinds[name].add(kind)
    assert kinds.pop("map.weight") == {"momentum_buffer"}
    assert all(kind == {"step", "exp_avg", "exp_avg_sq"} for kind in kinds.values())


def test_muon_is_that_of_torch(tmp_path):
    "Two steps of the loop are two steps of torch's optimiser, at the rates of the schedule."
    cfg = TrainConfig(4, 8, 1e-3, warmup_steps=2, clip_norm=None, optimizer="muon")
    net, fn = make(cfg, 0.0)
    net.requires_grad_(False).one.weight.requires_grad_(True)
    weight = nn.Parameter(net.one.weight.detach().clone())
    muon, gradients = torch.optim.Muon([weight], momentum=0.95, weight_decay=0.0), []
    net.one.weight.register_hook(lambda g: gradients.append(g.clone()))
    train({"net": net}, fn, cfg, tmp_path)
    assert len(gradients) == 4
    for rate, gradient in zip((0.01, 0.02, 0.02, 0.01), gradients):
        weight.grad, muon.param_groups[0]["lr"] = gradient, rate
        with _SinglePrecision():  # where the processor emulates bfloat16
            muon.step()
    assert torch.equal(weight, net.one.weight)


@pytest.mark.parametrize(
    "make_net, matrices",
    [
        (lambda: nn.Embedding(20, 3), 0),
        (
            lambda: nn.Sequential(
                nn.Embedding(20, 3).requires_grad_(False), nn.Linear(3, 2, False)
            ),
            1,
        ),
    ],
)
def test_muon_without_a_matrix_or_with_nothing_else(tmp_path, make_net, matrices):
    before, after, stored = one_step(make_net, tmp_path, optimizer="muon")
    assert any(not torch.equal(before[n], after[n]) for n in before)
    assert sum(name.endswith("momentum_buffer") for name in stored) == matrices
    assert sum(name.endswith("exp_avg") for name in stored) == 1 - matrices


def test_shares_multiply_the_matrix_rate(tmp_path):
    "Muon's first step does not depend on the size of the gradient, so a multiplier shows exactly."
    moves = {}
    for share in (1.0, 0.25, 0.0):
        shares = {"net.map": share}
        before, after, _ = one_step(
            Mixed, tmp_path / str(share), optimizer="muon", matrix_rate=0.1, shares=shares
        )
        moves[share] = {n: after[n] - before[n] for n in ("map.weight", "map.bias")}
    for name, move in moves[1.0].items():
        torch.testing.assert_close(moves[0.25][name], 0.25 * move, rtol=1e-3, atol=1e-6)
        assert not moves[0.0][name].any() and move.any()


def test_the_optimizer_cannot_change_between_runs(tmp_path):
    "Nor Muon's rate; the matrix rate does not matter to Adam, and older checkpoints are Adam's."
    muon = dataclasses.replace(CFG, optimizer="muon")
    for folder, cfg in (("adam", CFG), ("muon", muon)):
        net, fn = make(cfg)
        train({"net": net}, fn, cfg, tmp_path / folder)
    with pytest.raises(AssetMismatch, match="config.optimizer was 'adam', is 'muon'"):
        train({"net": net}, fn, muon, tmp_path / "adam")
    with pytest.raises(AssetMismatch, match="config.optimizer was 'muon', is 'adam'"):
        train({"net": net}, fn, CFG, tmp_path / "muon")
    other = dataclasses.replace(muon, matrix_rate=0.03)
    with pytest.raises(AssetMismatch, match="config.matrix_rate was 0.02, is 0.03"):
        train({"net": net}, fn, other, tmp_path / "muon")
    other = dataclasses.replace(CFG, matrix_rate=0.03)
    assert train({"net": net}, fn, other, tmp_path / "adam").resumed_from == 12


def test_a_checkpoint_without_an_optimizer_entry_is_adams(tmp_path):
    net, fn = make(CFG)
    whole = train({"net": net}, fn, CFG, tmp_path)
    shutil.rmtree(list_checkpoints(tmp_path)[-1])
    newest = list_checkpoints(tmp_path)[-1]
    file = newest / "configuration.json"
    stored = json.loads(file.read_text())
    assert "matrix_rate" not in stored["config"]
    assert stored["config"].pop("optimizer") == "adam"
    file.write_text(json.dumps(stored))
    marker = json.loads((newest / loop.MARKER).read_text())
    marker[file.name] = [file.stat().st_size, loop.file_hash(file)]
    (newest / loop.MARKER).write_text(json.dumps(marker))
    again, fn = make(CFG)
    resumed = train({"net": again}, fn, CFG, tmp_path)
    assert resumed.resumed_from == 8 and np.array_equal(resumed.losses, whole.losses)
    shutil.rmtree(list_checkpoints(tmp_path)[-1])
    with pytest.raises(AssetMismatch, match="config.optimizer was 'adam', is 'muon'"):
        train({"net": again}, fn, dataclasses.replace(CFG, optimizer="muon"), tmp_path)


def test_the_error_for_an_unknown_optimizer():
    with pytest.raises(ParamsError, match="optimizer is 'sgd'; 'adam' or 'muon' is needed"):
        dataclasses.replace(CFG, optimizer="sgd")
    with pytest.raises(ParamsError, match="matrix_rate is -1; a positive number is needed"):
        dataclasses.replace(CFG, matrix_rate=-1)


def test_a_nan_under_muon_names_both_rates(tmp_path):
    net, fn = make(CFG)
    cfg = dataclasses.replace(CFG, optimizer="muon")
    before = net.one.weight.detach().clone()
    with pytest.raises(CopError, match="learning rate 0.01 or matrix rate 0.02 too high"):
        train({"net": net}, lambda s, p, n: (fn(s, p, n)[0] * float("nan"), {}), cfg, tmp_path)
    assert torch.equal(net.one.weight, before)


def test_order_is_a_pure_function():
    rows = np.arange(100, 107)
    steps = [rows_for_step(rows, s, 3, seed=5) for s in range(7)]
    ribbon = np.concatenate(steps)
    assert all(sorted(ribbon[7 * e : 7 * e + 7]) == list(rows) for e in range(3))
    assert not np.array_equal(ribbon[:7], ribbon[7:14])
    assert all(
        (
            np.concatenate([rows_for_step(rows, s, 6, 5, p, n) for p in range(n)])
            == rows_for_step(rows, s, 6, 5)
        ).all()
        for s in (0, 9)
        for n in (1, 2, 3, 6)
    )
    assert not np.array_equal(rows_for_step(rows, 0, 7, seed=5), rows_for_step(rows, 0, 7, seed=6))
    assert len(rows_for_step(rows, 0, 20, seed=0)) == 20
    with pytest.raises(BadInput, match="no rows"):
        rows_for_step([], 0, 4, 0)
    with pytest.raises(ParamsError, match="equal parts"):
        rows_for_step(rows, 0, 4, 0, 0, 3)


def test_schedule():
    cfg = TrainConfig(
        steps=10,
        batch_size=1,
        learning_rate=1.0,
        warmup_steps=2,
        final_fraction=0.5,
        decay="cosine",
    )
    assert [round(learning_rate_at(s, cfg), 4) for s in (0, 1, 2, 6)] == [0.5, 1.0, 1.0, 0.75]
    assert min(learning_rate_at(s, cfg) for s in range(2, 10)) > 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"learning_rate": 0.0},
        {"warmup_steps": 99},
        {"ema": 1.0},
        {"clip_norm": 0.0},
        {"accumulate": 0},
        {"precision": "fp16"},
        {"decay": "step"},
        {"optimizer": "sgd"},
        {"matrix_rate": 0.0},
        {"weight_decay": 0.1},
    ],
)
def test_bad_configurations(wrong):
    with pytest.raises(ParamsError):
        from_dict(TrainConfig, {"steps": 10, "batch_size": 4, "learning_rate": 1e-3} | wrong)


def test_stop_rule_survives_a_resume(tmp_path):
    net, fn = make(CFG)
    rule = lambda history: len(history["loss"]) >= 6
    first = train({"net": net}, fn, CFG, tmp_path, stop=rule)
    assert (
        first.step == 6
        and first.stopped_early
        and list_checkpoints(tmp_path)[-1].name == "step-00000006"
    )
    again = train({"net": make(CFG)[0]}, fn, CFG, tmp_path, stop=rule)
    assert again.step == 6 and again.stopped_early and again.resumed_from == 6


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    "A full disk in the second save: one clear error, nothing half-written, the first one remains."
    net, fn = make(CFG)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def step_fn(step, part, parts):
        if step == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
        return fn(step, part, parts)

    try:
        with pytest.raises(
            CopError,
            match="step-00000008 could not be written.*"
            "1 complete checkpoints before it are untouched",
        ):
            train({"net": net}, step_fn, CFG, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000004"]
    again, fn = make(CFG)
    resumed = train({"net": again}, fn, CFG, tmp_path)
    unbroken, fn = make(CFG)
    assert resumed.resumed_from == 4 and np.array_equal(
        resumed.losses, train({"net": unbroken}, fn, CFG, tmp_path / "unbroken").losses
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), unbroken.state_dict().values())
    )


def test_a_changed_byte_is_refused_by_name(tmp_path):
    net, fn = make(CFG)
    train({"net": net}, fn, CFG, tmp_path)
    file = list_checkpoints(tmp_path)[-1] / "optimizer.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(
        AssetMismatch, match="step-00000012/optimizer.safetensors is not what was written"
    ):
        train({"net": net}, fn, CFG, tmp_path)
    assert file.read_bytes() == raw
    shutil.rmtree(file.parent)
    assert train({"net": make(CFG)[0]}, fn, CFG, tmp_path).resumed_from == 8


def test_a_pickle_in_place_of_weights_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"model": {"w": torch.ones(2)}}, {})
    torch.save({"w": torch.ones(2)}, path / "model.safetensors")
    marker = json.loads((path / loop.MARKER).read_text())
    (path / loop.MARKER).write_text(
        json.dumps(
            marker
            | {
                "model.safetensors": [
                    (path / "model.safetensors").stat().st_size,
                    loop.file_hash(path / "model.safetensors"),
                ]
            }
        )
    )
    with pytest.raises(BadInput, match="not a readable safetensors file.*pickled"):
        load_checkpoint(tmp_path, {})


def test_an_uneven_batch_is_refused_before_anything_is_touched(tmp_path):
    net, fn = make(CFG)
    train({"net": net}, fn, CFG, tmp_path)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    with pytest.raises(
        ParamsError,
        match="batch of 8 cannot be cut into 3 equal parts .1 processes x 3 micro-batches",
    ):
        train(
            {"net": net},
            fn,
            TrainConfig(steps=12, batch_size=8, learning_rate=1e-2, accumulate=3),
            tmp_path,
            resume=False,
        )
    assert len(list_checkpoints(tmp_path)) == 2 and all(
        torch.equal(before[n], p) for n, p in net.named_parameters()
    )


def test_marker_names_every_file(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"model": {"w": torch.ones(2)}}, {"a": 1})
    assert set(json.loads((path / loop.MARKER).read_text())) == {
        "model.safetensors",
        "configuration.json",
    }


def test_a_share_of_the_learning_rate(tmp_path):
    "Adam's first step is the learning rate itself, so a multiplier shows exactly; 0 freezes."
    start = Net().state_dict()

    def run(shares, steps=1, folder="a"):
        net, fn = make(TrainConfig(steps, 8, 1e-3, clip_norm=None, shares=shares), 0.0)
        train(
            {"net": net},
            fn,
            TrainConfig(steps, 8, 1e-3, clip_norm=None, shares=shares, save_every=1),
            tmp_path / folder,
        )
        return net.state_dict()

    plain, slow = run({}), run({"net.one": 0.25, "net.two": 0.0}, folder="b")
    for name in start:
        if name.endswith(("weight", "bias")):
            factor = 0.25 if name.startswith("one") else 0.0 if name.startswith("two") else 1.0
            torch.testing.assert_close(
                slow[name] - start[name], factor * (plain[name] - start[name]), rtol=1e-3, atol=1e-8
            )
    cfg = TrainConfig(3, 8, 1e-3, shares={"net.one": 0.25}, save_every=1)
    whole, fn = make(cfg)
    train({"net": whole}, fn, cfg, tmp_path / "whole")
    broken, fn = make(cfg)
    with pytest.raises(Killed):
        train({"net": broken}, killed_at(2, fn), cfg, tmp_path / "broken")
    again, fn = make(cfg)
    assert train({"net": again}, fn, cfg, tmp_path / "broken").resumed_from == 2
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values())
    )
    with pytest.raises(ParamsError, match="no trained weight"):
        run({"nett": 0.5}, folder="f")
    with pytest.raises(ParamsError, match="in \\[0, 1\\]"):
        TrainConfig(1, 1, 1e-3, shares={"net": 2.0})


def test_other_parts_are_other_draws(tmp_path):
    "A run is not resumed with another number of parts: its noise would come from other generators."
    net, fn = make(CFG)
    train({"net": net}, fn, CFG, tmp_path)
    with pytest.raises(AssetMismatch, match="identity.parts was 1, is 2"):
        train({"net": net}, fn, dataclasses.replace(CFG, accumulate=2), tmp_path)
