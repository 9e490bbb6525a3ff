# SPDX-License-Identifier: Apache-2.0
"`cop ablation --parts vmusprod`: rows of V-MusProd's own ablation (arXiv 2211.11248)."

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cop_repro.cli._experiments import evenly
from cop_repro.cli._parts import Plan, hashes, kept, trained_row, training_table
from cop_repro.cli._progress import progress
from cop_repro.cli.ablation import short_name
from cop_repro.core import CopError, from_dict
from cop_repro.data.scenes import SceneList, load_scenes, load_windows, read_scene_list
from cop_repro.evaluation.composition import (
    FULL,
    composed_rows,
    correspondence,
    played_windows,
    row_effects,
    row_table,
)
from cop_repro.judges.vmcp import load_vmcp
from cop_repro.measure.audio_metrics import bootstrap_draws, draws_interval
from cop_repro.measure.visual_rhythm import VideoFeatures, bar_speed
from cop_repro.model.compound import GridMusic
from cop_repro.systems.cmt import (
    SceneSet,
    densities,
    load_cmt,
    music_of,
    rank_correlation,
    score_row,
)
from cop_repro.systems.contract import SystemFiles
from cop_repro.systems.vmusprod import VMusProdSettings, fit_vmusprod, load_vmusprod
from cop_repro.training.stages import Place

SIZE, DEFAULT, LEAST = "scenes", 48, 5  # the judge's pools hold at least five works
LIST, FEATURES = "data/scenes.json", "features/music_scenes"


def study(plan: Plan) -> tuple[dict, str]:
    "Report and tables."
    scenes, folder = read_scene_list(plan.root / LIST), plan.root / FEATURES
    if not all((folder / f"{split}.safetensors").is_file() for split in ("train", "val", "test")):
        raise CopError(f"no scenes in {FEATURES}: run `dvc repro prepare_scenes` first")
    test = _test(plan, scenes)
    judge = load_vmcp(plan.root / "data" / "assets" / "vmcp.safetensors", scenes.split_hash)
    made = {row: _composed(plan, row, scenes, test) for row in plan.rows}
    music = {row: [music_from(p) for p in found["pieces"]] for row, found in made.items()}
    music["real"] = [music_of(scene.window) for scene in test.scenes]
    windows = load_windows(folder, "test", scenes)
    ranks = {}
    for row, pieces in music.items():
        played = played_windows(pieces, test.scenes)
        ranks[row] = correspondence(played, test.scenes, judge, windows, plan.train.seed)
    scores = {row: score_row(music[row], test) | ranks[row].row() for row in music}
    tones = {row: np.array(found["chord_tones"], float) for row, found in made.items()}
    effects = row_effects(music, test, ranks, tones, plan.train.seed)
    for row, effect in speed_effects(music, test, plan.train.seed).items():
        effects[row]["speed_correlation"] = effect
    trained = {row: found["trained"] for row, found in made.items()}
    rows = {
        row: {
            "scores": scores[row],
            "ranks": ranks[row].ranks.tolist(),
            **({"changes": plan.rows[row], **trained[row]} if row in made else {}),
            **({"chord_tones": tones[row].tolist()} if row in made else {}),
        }
        for row in music
    }
    about = {"scenes": [scene.window.name for scene in test.scenes], "n": len(test.scenes)}
    about |= {"inputs": _inputs(plan, "train", "val", "test"), "split_hash": scenes.split_hash}
    text = parts_text(plan, len(test.scenes), row_table(scores, tones, effects), trained)
    return {**about, "order": list(music), "rows": rows, "effects": effects}, text


def _test(plan: Plan, scenes: SceneList) -> SceneSet:
    "Test scenes, evenly spread, with what their videos request."
    drawn = load_scenes(plan.root / FEATURES, "test", scenes)
    if len(drawn) < LEAST:
        raise CopError(f"{FEATURES} holds {len(drawn)} test scenes; at least {LEAST} are needed")
    chosen = [drawn[i] for i in evenly(range(len(drawn)), plan.count)]
    assets = plan.root / "data" / "assets"
    return SceneSet.of(chosen, load_cmt(assets / "cmt.safetensors", scenes.split_hash).scale)


def _inputs(plan: Plan, *splits: str) -> dict[str, str]:
    "Hashes of what scenes of some splits are read from."
    paths = [plan.root / FEATURES / f"{split}.safetensors" for split in splits]
    return hashes(plan.root, plan.root / LIST, *paths)


def _composed(plan: Plan, row: str, scenes: SceneList, test: SceneSet) -> dict:
    "Music of a row for every scene, its chord tones, and its training."
    inputs, split = _inputs(plan, "train", "val"), scenes.split_hash
    folder = plan.folder(inputs)

    def fit(scratch: Path, made: Path):
        stores = {"scenes": plan.root / FEATURES, "scene_list": plan.root / LIST}
        place = Place(stores, scratch, made, seed=plan.train.seed, progress=progress, inputs=inputs)
        settings = from_dict(VMusProdSettings, plan.settings_of(row), f"row {row}")
        return fit_vmusprod(place, settings, plan.train, SystemFiles(split))

    weights, trained = trained_row(folder, row, fit)

    def compose() -> dict:
        model, _ = load_vmusprod(weights, split)
        made, tones = composed_rows({row: model}, test, plan.train.seed, progress)
        pieces = [music_to(music) for music in made[row]]
        return {"pieces": pieces, "chord_tones": tones[row].tolist()}

    names = [scene.window.name for scene in test.scenes]
    asked = short_name(names, _inputs(plan, "test"), plan.train.seed)
    return {**kept(folder / "composed" / f"{row}-{asked}.json", compose), "trained": trained}


def speed_effects(
    music: Mapping[str, Sequence[GridMusic]],  # row -> music; with the rows `FULL` and real
    test: SceneSet,
    seed: int = 0,  # of the resamples
) -> dict[str, tuple[float, float, float]]:  # row -> difference, low, high
    "By how much a row follows the speed of bars more closely than `FULL`, paired by work."
    scenes = [scene.window for scene in test.scenes]
    speeds = [
        bar_speed(VideoFeatures(**scene.features), window.tempo_bpm, window.num_bars)
        for scene, window in zip(test.scenes, scenes)
    ]
    onsets = {row: [densities(m) for m in pieces] for row, pieces in music.items()}
    works, effects = [window.work_id for window in scenes], {}
    for row in [row for row in music if row not in (FULL, "real")]:

        def difference(drawn: np.ndarray, own: Sequence = onsets[row]) -> float:
            speed = np.concatenate([speeds[i] for i in drawn])
            pairs = (np.concatenate([made[i] for i in drawn]) for made in (own, onsets[FULL]))
            one, other = (rank_correlation(speed, density) for density in pairs)
            return one - other

        value, draws = bootstrap_draws(difference, works, num_samples=1000, seed=seed)
        effects[row] = (value, *draws_interval(value, draws))
    return effects


def music_to(music: GridMusic) -> dict:
    "Music as JSON."
    columns = (music.ticks, music.pitches, music.durations, music.voices)
    return {"notes": [column.tolist() for column in columns], "num_bars": music.num_bars}


def music_from(stored: Mapping) -> GridMusic:
    "The inverse of `music_to`."
    columns: Sequence = [np.array(column, np.int64) for column in stored["notes"]]
    return GridMusic(*columns, stored["num_bars"])


def parts_text(plan: Plan, count: int, table: str, trained: Mapping[str, Mapping]) -> str:
    "The page of the study."
    losses = {
        row: {**about, "measured": _losses(about["measured"])} for row, about in trained.items()
    }
    return (
        f"# What each part of V-MusProd contributes, on {count} test scenes\n\n"
        f"Made by `cop ablation --parts {plan.system}`; embedded; one seed ({plan.train.seed}).\n"
        f"Each row was trained from fresh weights for {plan.train.steps} steps on the same "
        "batches, far shorter than\n"
        "the shipped model. Distances are to the mean of real music; VMCP ranks the music for its\n"
        "video; speed correlation is Spearman's, of a bar's speed with its onsets. Distances and\n"
        "ranks are better when small, correlations and chord tones when large, and signs in the\n"
        "second table are to be read so (Eq. 80.2). Intervals of 95 % by bootstrap over works\n"
        "cover neither training seeds nor samples.\n\n"
        f"{table}\n"
        "## Training\n\n"
        "Losses on the validation scenes are in nats; `one_decoder` has one for all voices.\n\n"
        f"{training_table(losses)}"
    )


def _losses(measured: Mapping[str, float]) -> dict[str, float]:
    "Losses on validation scenes."
    return {name: value for name, value in measured.items() if name.startswith("held_out_")}
