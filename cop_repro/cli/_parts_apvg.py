# SPDX-License-Identifier: Apache-2.0
"`cop ablation --parts apvg`: what graph, recurrence and heatmaps contribute (arXiv 2011.02631)."

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cop_repro.cli._parts import Plan, hashes, kept, trained_row, training_table
from cop_repro.cli._progress import progress
from cop_repro.cli.ablation import short_name
from cop_repro.core import CopError, from_dict
from cop_repro.data.clips import Clip, Store
from cop_repro.evaluation.cycle import (
    METRICS,
    cycle_clips,
    cycle_scores,
    load_cycle_predictor,
    load_cycle_systems,
)
from cop_repro.measure.audio_metrics import bootstrap_interval, paired_interval
from cop_repro.systems.apvg_training import APVG
from cop_repro.systems.contract import SystemFiles
from cop_repro.training.stages import Place

SIZE, DEFAULT, LEAST = "clips", 20, 2
CLIPS = "features/clips/piano"
START = "data/assets/apvg.safetensors"
PREDICTOR = "data/assets/cycle_roll.safetensors"
TRUE = "true_video"  # the row of the videos that the clips have
SHARED = ("targets", "validation")  # rendered by the first training for all


def study(plan: Plan) -> tuple[dict, str]:
    "Report and tables."
    folder = plan.root / CLIPS
    if not (folder / "index.json").is_file():
        raise CopError(f"no rendered clips in {CLIPS}: run `dvc repro prepare` first")
    store = Store(folder)
    store.verify_once()
    clips, split = cycle_clips(store, plan.count), store.about["split_hash"]
    inputs = hashes(plan.root, plan.root / START, folder / "index.json")
    predictor = load_cycle_predictor(plan.root / PREDICTOR, inputs, split)
    trained, scored = {}, []
    for row in plan.rows:
        weights, trained[row] = trained_row(plan.folder(inputs), row, _fit(plan, row, inputs))
        scored += _scored(weights, row, predictor, clips, plan)
    for clip in clips:
        scored.append(_line(TRUE, clip, cycle_scores(predictor, clip.strips, clip)))
    means, effects = tables_of(scored, plan.first, plan.train.seed)
    about = {
        "n": len(clips),
        "works": len({clip.work_id for clip in clips}),
        "inputs": inputs,
        "split_hash": split,
        "predictor": {"file": predictor.name, "hash": predictor.hash},
        "rows": {row: {"changes": plan.rows[row], **trained[row]} for row in plan.rows},
    }
    text = parts_text(plan, about, (means, effects), trained)
    return {**about, "scored": scored, "means": means, "effects": effects}, text


def _fit(plan: Plan, row: str, inputs: Mapping[str, str]):
    "How a row is trained: as the stage `train_animator` trains."

    def fit(scratch: Path, made: Path):
        store = plan.root / CLIPS
        place = Place(
            {"clips": store}, scratch, made, seed=plan.train.seed, progress=progress, inputs=inputs
        )
        settings = from_dict(APVG.settings, plan.settings_of(row), f"row {row}")
        split, models = Store(store).about["split_hash"], (("start", plan.root / START),)
        _share_targets(scratch)
        return APVG.fit(place, settings, plan.train, SystemFiles(split, models=models))

    return fit


def _share_targets(scratch: Path) -> None:
    "Let a training read the targets that another row has rendered; they are the same for all."
    scratch.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        others = [p for p in sorted(scratch.parent.glob(f"*/{name}")) if not p.is_symlink()]
        if others and not (scratch / name).exists():
            (scratch / name).symlink_to(others[0].resolve(), target_is_directory=True)


def _line(row: str, clip: Clip, scores: Mapping[str, float]) -> dict:
    "Scores of a clip in a row."
    return {"row": row, "clip_id": clip.clip_id, "work_id": clip.work_id, **scores}


def _scored(weights: Path, row: str, predictor, clips: Sequence[Clip], plan: Plan) -> list[dict]:
    "Scores of the videos that a row makes; scored clips are read."
    asked = short_name(hashes(plan.root, weights), predictor.hash)
    systems = None
    lines = []
    for done, clip in enumerate(clips):

        def score(clip: Clip = clip) -> dict:
            nonlocal systems
            systems = systems or load_cycle_systems({row: weights}, None)[0]
            return cycle_scores(predictor, systems[row].predict(clip).video, clip)

        path = weights.parent / "scored" / asked / f"{short_name(clip.clip_id)}.json"
        lines.append(_line(row, clip, kept(path, score)))
        progress(done + 1, len(clips), row)
    return lines


Intervals = dict[str, dict[str, tuple[float, float, float]]]  # row -> metric -> value, low, high


def tables_of(
    scored: Sequence[Mapping],  # lines with row, clip_id, work_id and the metrics
    first: str,  # the row with all parts
    seed: int = 0,  # of the resamples
) -> tuple[Intervals, Intervals]:  # means; differences from the first row, paired by clip
    "Means and paired differences with intervals of 95 % over works."
    rows = {line["row"]: {} for line in scored}
    for line in scored:
        rows[line["row"]][line["clip_id"]] = line
    clips = list(rows[first])
    works = [rows[first][clip]["work_id"] for clip in clips]
    means, effects = {}, {}
    for row, lines in rows.items():
        if set(lines) != set(clips):
            raise CopError(f"row {row} has {len(lines)} clips, {first} has {len(clips)} others")
        means[row], effects[row] = {}, {}
        for metric in METRICS:
            own, base = (
                np.array([x[clip][metric] for clip in clips]) for x in (lines, rows[first])
            )
            means[row][metric] = bootstrap_interval(own, works, seed=seed)
            effects[row][metric] = paired_interval(own, base, works, seed=seed)
    del effects[first]
    return means, effects


def interval_table(table: Intervals, signed: bool = False) -> str:
    "F1 of onsets and frames, and the motion error, with intervals, in Markdown."
    form = "{:+.3f} [{:+.3f}, {:+.3f}]" if signed else "{:.3f} [{:.3f}, {:.3f}]"
    lines = ["| row | onset F1 | frame F1 | motion error |", "|---|---|---|---|"]
    for row, values in table.items():
        cells = [form.format(*values[m]) for m in ("onset_f1", "frame_f1", "motion_error")]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parts_text(
    plan: Plan,
    about: Mapping,  # n, works, predictor
    tables: tuple[Intervals, Intervals],  # of `tables_of`
    trained: Mapping[str, Mapping],  # of `trained_row`
) -> str:  # Markdown
    "The page of the study."
    means, effects = tables
    return (
        f"# What each part of APVG contributes, on {about['n']} test clips of {about['works']} "
        "works\n\n"
        f"Made by `cop ablation --parts {plan.system}`; embedded; one seed ({plan.train.seed}).\n"
        "The rows start from the sound encoder, coarse video and fingertips of the shipped\n"
        f"network and a fresh U-Net, and all weights were trained for {plan.train.steps} steps on "
        "the same batches.\n"
        f"Notes were predicted by {about['predictor']['file']}, which took part in no training. "
        "Intervals\n"
        "of 95 % by bootstrap over works cover no training seeds. The motion error is in grey\n"
        "levels, and the smaller the better.\n\n"
        f"{interval_table(means)}\n"
        f"Differences from `{plan.first}`, paired by clip; a row that loses without its part has "
        "F1 below 0:\n\n"
        f"{interval_table(effects, signed=True)}\n"
        "## Training\n\n"
        "Measured on the validation clips.\n\n"
        f"{training_table(trained)}"
    )
