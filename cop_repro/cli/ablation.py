# SPDX-License-Identifier: Apache-2.0
"`cop ablation`: choices of stage 2, ways of sampling, of injecting; parts of other systems."

import argparse
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cop_repro.cli._progress import progress
from cop_repro.core import (
    CopError,
    ParamsError,
    check_output_file,
    did_you_mean,
    file_hash,
    project_root,
    read_json,
    write_json,
)
from cop_repro.parameters import check_params, load_params, merge, settings_hash

HELP = "ablation of stage 2: one model for each row of refs/ablation.yaml and seed; --parts: others"

VARIANT = "cop_velocity"
FILES = {  # study -> its rows, the first of which is the one from which others differ
    "ablation": "refs/ablation.yaml",
    "injectors": "refs/injectors.yaml",
}
ALLOWED = (
    "train_piano.train",
    f"train_piano.variants.{VARIANT}",
    "train_piano.crop_s",
    "train_piano.dropout",
    "train_renderer",
    "evaluate.sample",
)
CLIPS = 10
BUDGET = ("train_piano.train.steps", "train_piano.train.batch_size")


def add_arguments(parser) -> None:
    "Sizes of the experiment."
    parser.add_argument(
        "-o",
        "--output",
        help="file to write, JSON; default: STUDY.json in reports, such as sampling.json",
    )
    parser.add_argument(
        "--rows", help="e.g. paper,muon; the first row always joins; default: every row"
    )
    parser.add_argument(
        "--seeds", type=_seed, nargs="+", default=[0, 1, 2], help="training seeds of each row"
    )
    parser.add_argument("--steps", type=int, help="steps of stage 2.2; default: of params.yaml")
    parser.add_argument(
        "--clips",
        type=int,
        help=f"validation clips; default: {CLIPS}. With --parts apvg test clips; default: 20",
    )
    parser.add_argument("--scenes", type=int, help="of --parts vmusprod, test scenes; default: 48")
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--sampling", action="store_true", help="the default run's model, sampled in many ways"
    )
    other.add_argument(
        "--injectors",
        action="store_true",
        help="rows of refs/injectors.yaml: how the roll enters the DiT",
    )
    other.add_argument(
        "--passes",
        action="store_true",
        help="the shipped model and the default run's, with 4 to 64 passes by several solvers",
    )
    other.add_argument(
        "--parts",
        choices=("vmusprod", "apvg"),
        help="rows of refs/parts.yaml: what parts of a neighbouring system contribute; one seed",
    )


def run(args) -> int:
    "Train and score what is not finished yet; write the scores after each row."
    root = project_root()
    study = next((s for s in ("sampling", "injectors", "passes") if getattr(args, s)), "ablation")
    study = f"parts/{args.parts}" if args.parts else study
    name = f"reports/{study}.json" if args.output is None else args.output
    output = check_output_file(os.path.join(root, name))
    params = load_params(root / "params.yaml")
    _check_sizes(args, params)
    if args.parts:
        from cop_repro.cli._parts import parts

        return parts(root, params, args, output)
    args.clips = args.clips or CLIPS
    if args.passes:
        from cop_repro.cli._passes import passes

        return passes(root, params, args.clips, args.seeds[0], output)
    if args.sampling:
        return _sampling(args, root, params, output)
    rows, left_out = load_rows(root / FILES[study], params, args.rows)
    for row in left_out:
        print(f"{row}: asks for what params.yaml has already, left out", flush=True)
    return _ablation(args, root, params, rows, left_out, output)


def _seed(text: str) -> int:
    "A seed; none is negative."
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def _check_sizes(args, params: dict) -> None:
    "Refuse an empty experiment, and one whose model does not grow from stage 1."
    for name in ("steps", "clips", "scenes"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise CopError(f"--{name} is {value}; at least 1 is needed")
    if args.scenes is not None and args.parts != "vmusprod":
        raise CopError("--scenes is for --parts vmusprod alone: other studies score --clips")
    if args.parts:
        return
    if VARIANT not in params["train_piano"]["variants"]:
        raise CopError(f"params.yaml has no train_piano.variants.{VARIANT}, from which rows differ")
    for stage in ("train_piano", "train_renderer"):
        if params[stage]["init"] is not None:
            raise CopError(
                f"rows are trained from scratch: {stage}.init must be null in params.yaml"
            )


# Rows


def flat(changes: Mapping, prefix: str = "") -> dict[str, object]:
    "Changes as dotted keys."
    made = {}
    for key, value in changes.items():
        name = f"{prefix}{key}"
        made |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return made


def _check_changes(file: str, row: str, changes: dict[str, object]) -> None:
    "Refuse what a row may not change."
    for key in changes:
        if not any(key == place or key.startswith(f"{place}.") for place in ALLOWED):
            raise ParamsError(f"{file}: {row} changes {key}; a row may change {', '.join(ALLOWED)}")
        if key in BUDGET:
            raise ParamsError(f"{file}: {row} changes {key}, which all rows share")


def load_rows(
    path: Path, params: dict, wanted: str | None = None
) -> tuple[dict[str, dict], list[str]]:
    "Rows by name with their parameters and what they change; rows that equal params.yaml by name."
    listed = load_params(path)
    base = next(iter(listed))
    names = None if wanted is None else [base, *filter(None, wanted.split(","))]
    for name in names or ():
        if name not in listed:
            hint = did_you_mean(name, listed)
            raise CopError(f"no row {name!r}{hint}; rows are {', '.join(listed)}")
    rows, left_out = {}, []
    for name in listed if names is None else dict.fromkeys(names):
        changes = listed[name].get("changes", {})
        _check_changes(f"refs/{path.name}", name, flat(changes))
        changed = merge(params, changes)
        check_params(changed, "train_piano", "train_renderer", "evaluate")
        if name != base and _settled(changed) == _settled(params):
            left_out.append(name)
            continue
        rows[name] = {"why": listed[name]["why"], "changes": flat(changes), "params": changed}
    return rows, left_out


def _settled(params: dict) -> tuple:
    "What a row depends on, with every default filled in."
    made = _plans(params, Path())
    return made.piano, made.renderer, made.sample


# From parameters to plans


@dataclass(frozen=True)
class _Plans:
    "A row under one seed."

    piano: object  # PianoPlan
    renderer: object | None  # RendererPlan; None: the flow starts from noise
    sample: object  # SampleConfig


def _plans(params: dict, root: Path) -> _Plans:
    "What a row is trained from and sampled with."
    from cop_repro.evaluation.sound_ablation import PianoPlan
    from cop_repro.model.dit import StreamConfig
    from cop_repro.model.flow import DropoutConfig, SampleConfig
    from cop_repro.pipeline import Stage
    from cop_repro.training.guidance import GuidanceConfig
    from cop_repro.training.loop import TrainConfig

    stage = Stage("train_piano", params, VARIANT, root)
    guidance = stage.config(GuidanceConfig, "variants", VARIANT)
    piano = PianoPlan(
        stage.config(StreamConfig, "roll_stream"),
        guidance,
        stage.config(TrainConfig, "train"),
        stage.section("crop_s"),
        stage.section("general_items"),
        stage.config(DropoutConfig, "dropout"),
    )
    sample = Stage("evaluate", params, "", root).config(SampleConfig, "sample")
    started = _renderer_plan(params, root) if guidance.start == "renderer" else None
    return _Plans(piano, started, sample)


def _renderer_plan(params: dict, root: Path):
    "What a row's renderer is trained from."
    from cop_repro.evaluation.sound_ablation import RendererPlan
    from cop_repro.model.renderer import RendererConfig
    from cop_repro.pipeline import Stage
    from cop_repro.training.components import NoteErrors
    from cop_repro.training.features import PerformanceData
    from cop_repro.training.loop import TrainConfig

    stage = Stage("train_renderer", params, "", root)
    return RendererPlan(
        stage.config(RendererConfig, "renderer"),
        stage.config(PerformanceData, "data"),
        stage.config(NoteErrors, "errors"),
        stage.config(TrainConfig, "train"),
        stage.section("crop_s"),
        stage.section("codec_weight"),
    )


def _of_seed(params: dict, seed: int, steps: int | None) -> dict:
    "A row's parameters under one seed, with the steps of this experiment."
    train = dict(params["train_piano"]["train"])
    train["steps"] = steps or train["steps"]
    train["warmup_steps"] = min(train.get("warmup_steps", 0), train["steps"])
    return {**params, "seed": seed, "train_piano": {**params["train_piano"], "train": train}}


# Running


class _Study:
    "The finished run, the clips that are scored, and where results are kept."

    def __init__(self, root: Path, params: dict, clips: int):
        import torch

        from cop_repro.cli._experiments import evenly
        from cop_repro.evaluation.sound_ablation import FinishedRun, check_finished

        self.inputs = {
            path.relative_to(root).as_posix(): file_hash(path) for path in check_finished(root)
        }
        torch.set_num_threads(int(params["threads"]))
        self.root, self.params, self.work = root, params, root / "work" / "ablation"
        notes = self.work / "notes" / self._name("models/train_roll/roll.safetensors")
        self.run = FinishedRun(root, notes, self._scores, params["device"], progress)
        held = self.run.clips.select(split="val", rendering="nuisance")
        if not len(held):
            raise CopError("no validation clips of the piano in features/clips: see prepare.keep")
        self.rows = evenly(held, clips).tolist()

    def _name(self, file: str) -> str:
        "Folder of what depends on one model and the clips."
        return short_name(self.inputs[file], self.inputs["features/clips/piano/index.json"])

    def _scores(self) -> list:
        "Scores of the training works."
        from cop_repro.data.clips import load_works, read_manifest

        prepare = self.params["prepare"]
        items, split = read_manifest(self.root / prepare["manifest"])
        if split != self.run.split:
            raise CopError("features/clips are of another manifest: run `dvc repro prepare` first")
        works = sorted(
            {i.recipe["work"] for i in items if (i.domain, i.split) == ("piano", "train")}
        )
        scores = load_works(works, self.root / prepare["etudes"], progress)
        return [scores[work] for work in works]

    @property
    def clip_ids(self) -> list[str]:
        return self.run.clips.values("clip_id", self.rows)

    def about(self) -> dict:
        "Provenance of a report."
        return {
            "settings": settings_hash(self.params),
            "split": self.run.split,
            "inputs": self.inputs,
            "clip_ids": self.clip_ids,
        }


def short_name(*parts: object) -> str:
    "A short name for what something is made from."
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _stage_two(params: dict) -> dict:
    "What a row's stage-2 model depends on."
    section = params["train_piano"]
    return {**section, "variants": {VARIANT: section["variants"][VARIANT]}}


def _code(root: Path) -> str:
    "Fingerprint of all code that makes the numbers."
    from cop_repro.cli.fingerprints import notebook_modules
    from cop_repro.core import code_fingerprint

    notebook = root / "nbs" / "evaluation" / "92_sound_ablation.ipynb"
    return code_fingerprint(*notebook_modules(notebook, root))


def _row_result(study: _Study, name: str, params: dict, seed: int) -> dict:
    "Scores of one row under one seed; finished ones are read."
    from cop_repro.evaluation.sound_ablation import scored_row, trained_piano, trained_renderer

    plans, (drawn, trained) = _plans(params, study.root), _names(study, params, seed)
    settings = short_name(trained, params["evaluate"]["sample"], study.clip_ids)
    path = study.work / "results" / f"{name}-seed{seed}-{settings}.json"
    if path.exists():
        return read_json(path)
    renderer = None
    if drawn:
        folder = study.work / "renderers" / drawn
        renderer = trained_renderer(study.run, plans.renderer, folder, seed)
    folder = study.work / "models" / trained
    model = trained_piano(study.run, plans.piano, renderer, folder, seed)
    made = scored_row(study.run, model, plans.sample, study.rows, seed)
    made |= {"settings": settings, "model": trained, "code": _code(study.root)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, made)
    return made


def _row_costs(study: _Study, args, rows: dict, name: str) -> dict:
    "Weights and processor time of a row, measured once, on its first seed."
    from cop_repro.evaluation.injectors import added_weights, step_seconds

    seed = args.seeds[0]
    params = _of_seed(rows[name]["params"], seed, args.steps)
    plans, (drawn, trained) = _plans(params, study.root), _names(study, params, seed)
    path = study.work / "costs" / f"{trained}.json"
    if not path.exists():
        renderer = drawn and study.work / "renderers" / drawn / "renderer.safetensors"
        model = study.work / "models" / trained / "piano.safetensors"
        seconds = step_seconds(study.run, plans.piano, renderer)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"weights": added_weights(study.run, model), "step_seconds": seconds})
    return read_json(path)


def _names(study: _Study, params: dict, seed: int) -> tuple[str | None, str]:
    "Folders of a row's renderer, if its flow starts from one, and of its model."
    plans = _plans(params, study.root)
    drawn = plans.renderer and short_name(params["train_renderer"], seed, study.inputs)
    return drawn, short_name(_stage_two(params), drawn, seed, study.inputs)


def _ablation(args, root: Path, params: dict, rows: dict, left_out: list[str], output: Path) -> int:
    "All rows under one seed, then under the next; the report is written after each."
    study, scored = _Study(root, params, args.clips), {}
    for seed in dict.fromkeys(args.seeds):
        for name, row in rows.items():
            changed = _of_seed(row["params"], seed, args.steps)
            result = _row_result(study, name, changed, seed)
            scored.setdefault(name, {})[str(seed)] = result
            made = _report(study, args, rows, left_out, scored)
            if args.injectors:
                made["costs"] = {name: _row_costs(study, args, rows, name) for name in scored}
            write_json(output, made)
            print(f"{name:20s} seed {seed}  {_summary(result['clips'])}", flush=True)
    _warn_of_codes(scored)
    return 0


def _report(study: _Study, args, rows: dict, left_out: list[str], scored: dict) -> dict:
    "What is published of the ablation."
    shown = {name: {"why": row["why"], "changes": row["changes"]} for name, row in rows.items()}
    return {
        **study.about(),
        "rows": {name: shown[name] for name in scored},
        "same_as_base": left_out,
        "order": list(scored),
        "steps": args.steps or study.params["train_piano"]["train"]["steps"],
        "seeds": sorted({int(seed) for seeds in scored.values() for seed in seeds}),
        "scored": scored,
    }


def _warn_of_codes(scored: dict) -> None:
    "Say where results were made by different code."
    codes = {result["code"] for seeds in scored.values() for result in seeds.values()}
    if len(codes) > 1:
        print(
            f"results were made by {len(codes)} versions of the code, each named in the file: "
            "remove work/ablation to make all of them anew"
        )


def _sampling(args, root: Path, params: dict, output: Path) -> int:
    "One trained model, sampled in many ways; a clip is scored in all of them at once."
    from cop_repro.evaluation.sound_ablation import check_finished, load_sound

    model = f"models/train_piano/{VARIANT}/piano.safetensors"
    check_finished(root, {f"train_piano@{VARIANT}": (model,)})
    study, samples = _Study(root, params, args.clips), _ways(params["evaluate"]["sample"])
    seed, hashed = args.seeds[0], file_hash(root / model)
    performer, ways = (
        load_sound(study.run, root / model),
        {n: asdict(s) for n, s in samples.items()},
    )
    folder = study.work / "sampling" / short_name(ways, hashed, study.inputs, seed)
    clips = [_sampled(study, performer, samples, row, seed, folder) for row in study.rows]
    scored = {name: [clip["scores"][name] for clip in clips] for name in samples}
    about = {"model": hashed, "seed": seed, "code": sorted({clip["code"] for clip in clips})}
    write_json(output, {**study.about(), **about, "order": list(samples), "scored": scored})
    for name, found in scored.items():
        print(f"{name:24s} {_summary(found)}")
    return 0


def _ways(solver: Mapping) -> dict:
    "Ways of sampling by name: that of the tables, then what differs from it."
    from cop_repro.core import from_dict
    from cop_repro.evaluation.sound_ablation import AS_EVALUATED, sampling_changes
    from cop_repro.model.flow import SampleConfig

    changes = {AS_EVALUATED: {}} | sampling_changes()
    return {
        name: from_dict(SampleConfig, {**solver, **change}, f"sampling {name!r}")
        for name, change in changes.items()
    }


def _sampled(study: _Study, performer, samples: dict, row: int, seed: int, folder: Path) -> dict:
    "Scores of one clip in every way of sampling; a finished clip is read."
    from cop_repro.data.clips import store_clip
    from cop_repro.evaluation.sound_ablation import sampled_clip

    clip = store_clip(study.run.clips, row)
    path = folder / f"{short_name(clip.clip_id)}.json"
    if path.exists():
        return read_json(path)
    scores = sampled_clip(performer, clip, samples, seed)
    made = {"scores": scores, "code": _code(study.root)}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, made)
    progress(study.rows.index(row) + 1, len(study.rows), "validation clips, sampled in every way")
    return made


def _summary(clips: list[dict]) -> str:
    "Mean of each metric."
    import numpy as np

    means = {m: np.mean([clip["metrics"][m] for clip in clips]) for m in clips[0]["metrics"]}
    return "  ".join(f"{metric} {mean:.3f}" for metric, mean in means.items())
