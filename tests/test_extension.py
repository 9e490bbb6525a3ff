# SPDX-License-Identifier: Apache-2.0
"""A metric, a system, an objective and a command, added without an edit of the package.

Each test registers its own and sends it through the functions that the stages use.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from cop_repro import cli
from cop_repro.core import BadInput, ParamsError, load_weights, save_weights
from cop_repro.data.clips import Item, Prediction, StripSize, piano_store
from cop_repro.data.notes import make_notes
from cop_repro.data.performance import etudes
from cop_repro.evaluation import evaluate
from cop_repro.evaluation.evaluate import RowEntry, make_row, score_rows
from cop_repro.evaluation.report import RunInfo, split_rows, write_report
from cop_repro.evaluation.tables import load_tables
from cop_repro.measure.registry import REGISTRY, ClipPair, Metric, Scorer, scorable, score_pair
from cop_repro.model.dit import DiTConfig, StreamConfig
from cop_repro.model.flow import DropoutConfig
from cop_repro.model.roll import RollConfig, check_strips
from cop_repro.systems.contract import NoSettings, SystemEntry, SystemFiles, check_system
from cop_repro.training import stages
from cop_repro.training.contrast import Objective, PostTrainingData, Run
from cop_repro.training.loop import TrainConfig, train
from cop_repro.training.planning import Cost, Job, Load, NetworkCosts, as_written

NOTES = make_notes([60, 64, 67], [0.0, 0.5, 1.0], [0.4, 0.9, 1.4], [50, 60, 70])
PAPER = {"columns": {}}


@pytest.fixture()
def definitions(root):
    "The table definitions, to be changed freely."
    return yaml.safe_load((root / "refs" / "tables.yaml").read_text())


def test_a_metric_is_added(definitions):
    def count_error(pair: ClipPair) -> dict[str, float]:
        return {"count_error": abs(len(pair.est_notes) - len(pair.ref_notes))}

    # The line above is one place: a function of a pair.
    metric = Metric("count_error", "notes", False, 0.0, ("table4",))
    own = copy.deepcopy(REGISTRY)
    own.add(Scorer("count", count_error, ("ref_notes", "est_notes"), (metric,)))
    # The line above is one place: an entry of the registry.

    pair = ClipPair(ref_notes=NOTES, est_notes=make_notes([60], [0.0], [0.4], [50]))
    assert "count_error" in scorable(pair, own)
    assert score_pair(pair, ["count_error", "onset_f1"], own)["count_error"] == 2
    assert own.columns("table4")[-1] == "count_error"
    assert own["count_error"].arrow == "↓"
    definitions["headlines"].append("table4/cop_piano/count_error")
    assert load_tables(definitions, registry=own).headlines[-1].endswith("count_error")
    assert "count_error" not in REGISTRY


@dataclass
class HalfLevel:
    "The true sound at half its level."

    factor: float = 0.5
    task: str = "reconstruction"
    outputs: frozenset = frozenset({"audio", "notes"})

    def predict(self, clip) -> Prediction:
        return Prediction(clip.clip_id, self.factor * clip.wav, clip.notes)

    @classmethod
    def load(cls, files: SystemFiles, settings: NoSettings) -> dict:
        return {"": cls()}

    @staticmethod
    def fit(*inputs) -> None:
        "There is nothing to train."


def item(work: str, seed: int) -> Item:
    "Two seconds of a test work."
    recipe = {"nuisance": 0.0, "start_s": 0.0, "timing": "crisp", "touch": "crisp"}
    recipe |= {"seed": seed, "work": work}
    labels = {"label": "playing piano", "text": "the sound of playing piano"}
    return Item(f"{work}-{seed}", work, "test", "piano", 2.0, **labels, recipe=recipe)


@pytest.fixture(scope="module")
def store(root, tmp_path_factory):
    "Two tiny clips of two works."
    works = {s.work_id: s for s in etudes(root / "data" / "etudes")}
    items = [item(work, i) for i, work in enumerate(sorted(works)[:2])]
    folder = tmp_path_factory.mktemp("extension") / "clips"
    return piano_store(folder, items, works, StripSize(48, 520), 1, split_hash="s")


def test_a_system_is_added(store, definitions, monkeypatch, tmp_path):
    # Written outside this test: a class that loads, fits and predicts.
    entry = SystemEntry(HalfLevel.load, HalfLevel.fit, NoSettings, ("reconstruction",))
    monkeypatch.setitem(evaluate.ROW_SYSTEMS, "half_level", entry)
    # The line above is one place: an entry of the systems.
    wanted = RowEntry("half_level")
    # The line above is one place: a row of evaluate.variants.
    definitions["tables"]["table4"]["rows"]["half"] = "half level"
    # The line above is one place: a row of refs/tables.yaml.

    files = SystemFiles("s", *[Path("not used")] * 3)
    row = make_row(wanted, files, tmp_path, {})
    assert isinstance(row.load()[""], HalfLevel)
    scored = score_rows({"half": row}, {"half": (store, [0, 1])}, workers=1)
    assert [s["metrics"]["onset_f1"] for s in scored["half"]] == [1, 1]

    tables = load_tables(definitions, ["half"])
    assert list(split_rows(scored, tables)["table4"]) == ["half level"]
    run = RunInfo("smoke", "test", "", tables)
    lines, _ = write_report(tmp_path / "reports", run, scored, PAPER)
    own = {r.metric: r for r in lines if (r.table, r.row) == ("table4", "half level")}
    assert own["si_sdr_spec"].value > 60
    assert own["si_sdr_spec"].n == 2
    assert "| half level |" in (tmp_path / "reports" / "tables.md").read_text()


@dataclass(frozen=True)
class DecayConfig:
    "How strongly weights are pulled towards zero."

    weight: float = 1.0


def decay_run(start, data, cfg, settings, seed, device) -> Run:
    "Weights of a file, pulled towards zero."
    layer = nn.Linear(3, 1, bias=False).to(device)
    layer.load_state_dict(load_weights(start)[0])

    def step_fn(step: int, part: int, parts: int):
        return settings.weight * layer.weight.square().mean(), {}

    return Run({"layer": layer}, step_fn)


def decay_cost(name, costs, train, settings) -> Job:
    "One pass through the stage-1 model."
    loads = (Load(costs.base, train.batch_size),)
    about = as_written(train)
    return Job(name, train.steps, loads, costs.base.parameters, **about, batch=train.batch_size)


def save_decay(path, modules, meta) -> None:
    save_weights(path, dict(modules["layer"].state_dict()), dict(meta))


def test_an_objective_is_added(tmp_path, monkeypatch):
    # Written outside this test: a dataclass of settings; functions that build, count and save.
    objective = Objective(DecayConfig, "general", decay_run, decay_cost, save_decay)
    monkeypatch.setitem(stages.OBJECTIVES, "decay", objective)
    # The line above is one place: an entry of OBJECTIVES.

    entry, cfg = stages.OBJECTIVES["decay"], TrainConfig(2, 2, 1e-2)
    start, made = tmp_path / "start.safetensors", tmp_path / "made.safetensors"
    save_weights(start, {"weight": torch.ones(1, 3)}, {})
    data = PostTrainingData({}, [], None, 75, DropoutConfig())
    run = entry.build(start, data, cfg, entry.settings(), 0, torch.device("cpu"))
    result = train(run.modules, run.step_fn, cfg, tmp_path / "scratch", stop=run.stop)
    assert len(result.losses) == 2
    assert result.losses[1] < result.losses[0]
    entry.save(made, run.modules, {"variant": "decay"})
    tensors, meta = load_weights(made)
    assert (tensors["weight"] < 1).all()
    assert meta["variant"] == "decay"


def test_the_plan_counts_a_new_objective():
    stream = StreamConfig(8, 1)
    cost = Cost(parameters=10, flops=100, kept_bytes=1000)
    dit = DiTConfig(depth=1, audio=stream, video=stream)
    job = decay_cost("decay", NetworkCosts(dit, cost, cost, cost), TrainConfig(2, 4, 1e-3), None)
    assert (job.steps, job.trained, job.batch) == (2, 10, 4)
    assert job.flops == 2 * 3 * 4 * 100


@pytest.mark.parametrize("fit", [None, "train_somewhere"])
def test_a_system_without_fit_is_refused(fit):
    with pytest.raises(BadInput, match=f"fit is {fit!r}; a function, or one of"):
        SystemEntry(HalfLevel.load, fit, NoSettings, ("reconstruction",))


@pytest.mark.parametrize("tasks", [(), ("reconstruction", "juggling")])
def test_a_system_without_a_known_task_is_refused(tasks):
    with pytest.raises(BadInput, match="a system needs a task"):
        SystemEntry(HalfLevel.load, "train_piano", NoSettings, tasks)


@pytest.mark.parametrize("part", ["task", "outputs", "predict"])
def test_a_loaded_system_without_a_part_of_the_contract_is_refused(part):
    parts = {"task": "reconstruction", "outputs": frozenset({"audio"}), "predict": len}
    broken = type("Broken", (), {k: v for k, v in parts.items() if k != part})()
    with pytest.raises(BadInput, match=f"'broken' has no '{part}'"):
        check_system("broken", broken)


def test_unknown_tasks_and_outputs_are_refused_by_name():
    system = HalfLevel()
    system.task = "juggling"
    with pytest.raises(BadInput, match="'half': unknown task 'juggling'"):
        check_system("half", system)
    with pytest.raises(BadInput, match="'half': unknown output 'smell'"):
        check_system("half", replace(HalfLevel(), outputs=frozenset({"smell"})))


@pytest.mark.parametrize("direction", ["up", "higher", 2])
def test_a_metric_without_a_valid_direction_is_refused(direction):
    with pytest.raises(BadInput, match=f"'loudness' has the direction {direction!r}"):
        Metric("loudness", "dB", direction)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("headlines", "table4/cop_piano/si_sdr_spek", "unknown metric 'si_sdr_spek'.*si_sdr_spec"),
        ("figures", "table4/beauty", "unknown metric 'beauty'"),
        ("figures", "table9/fad", "unknown table 'table9'"),
        ("examples", "cop_pianola", "no table prints the row 'cop_pianola'"),
    ],
)
def test_a_table_that_names_something_unknown_is_refused(definitions, key, value, message):
    definitions[key].append(value)
    with pytest.raises(ParamsError, match=message):
        load_tables(definitions)


def test_a_headline_of_an_unknown_row_is_refused(definitions):
    definitions["headlines"].append("table4/cop_pianola/si_sdr_spec")
    with pytest.raises(ParamsError, match="cop_pianola"):
        load_tables(definitions)


def test_an_entry_without_a_table_is_refused(definitions):
    with pytest.raises(ParamsError, match="no table prints the row 'new_system'"):
        load_tables(definitions, ["new_system"])


def test_strips_of_another_geometry_are_refused():
    cfg = RollConfig(height=48, strip_width=520)
    check_strips(torch.zeros(1, 4, 48, 520, dtype=torch.uint8), cfg)
    for shape in ((1, 4, 32, 260), (4, 48, 520), (1, 0, 48, 520)):
        with pytest.raises(BadInput, match="strips are torch.uint8 of shape .*48, 520.* is needed"):
            check_strips(torch.zeros(shape, dtype=torch.uint8), cfg)
    with pytest.raises(BadInput, match="strips are torch.float32"):
        check_strips(torch.from_numpy(np.zeros((1, 4, 48, 520), np.float32)), cfg)


def test_a_command_is_added(tmp_path, monkeypatch, capsys):
    "A file in the package of commands is found by its name."
    (tmp_path / "greet.py").write_text(
        'HELP = "greet someone"\n\n'
        "def add_arguments(parser):\n"
        '    parser.add_argument("name")\n\n'
        "def run(args):\n"
        '    print(f"hello {args.name}")\n'
        "    return 0\n"
    )
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    assert cli.main(["greet", "Clara"]) == 0
    assert capsys.readouterr().out == "hello Clara\n"
    monkeypatch.undo()
    with pytest.raises(SystemExit):
        cli.main(["greet", "Clara"])
