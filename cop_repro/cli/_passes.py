# SPDX-License-Identifier: Apache-2.0
"`cop ablation --passes`: trained piano models, sampled with 4 to 64 passes by several solvers."

from dataclasses import asdict
from pathlib import Path

from cop_repro.cli._experiments import evenly, made_now
from cop_repro.cli._progress import progress
from cop_repro.core import CopError, file_hash, read_json, write_json

RUN_MODELS = {  # of the default run, where it has been made
    "codec": "models/train_codec/codec.safetensors",
    "encoders": "models/train_encoders/encoders.safetensors",
    "piano": "models/train_piano/cop_velocity/piano.safetensors",
}
CLIPS = "features/clips/piano"
JUDGES = "data/assets/judges.safetensors"
FIGURE = "docs/passes.png"


def passes(root: Path, params: dict, clips: int, seed: int, output: Path) -> int:
    "Score the shipped model, and the default run's where it is; print and draw the results."
    from cop_repro.data.clips import Store
    from cop_repro.evaluation.passes import passes_table

    if not (root / CLIPS).is_dir():
        raise CopError(f"no rendered clips in {CLIPS}: run `cop run prepare` first")
    store = Store(root / CLIPS)
    held = store.select(split="val", rendering="nuisance")
    if not len(held):
        raise CopError("no validation clips of the piano in features/clips: see prepare.keep")
    rows = evenly(held, clips).tolist()
    performers = {"shipped model": _shipped(root)} | _of_run(root, params)
    models = {
        name: _scored(root, performer, store, rows, seed) for name, performer in performers.items()
    }
    made = {"models": models, **made_now("cop_repro.evaluation.passes", "ablation", params, seed)}
    write_json(output, made)
    _draw(made, root / FIGURE)
    print(passes_table(made))
    return 0


def _shipped(root: Path):
    "What `cop perform` uses."
    from cop_repro.systems.cop import load_performer

    return load_performer(root / "data" / "assets")


def _of_run(root: Path, params: dict) -> dict:
    "The default run's model, if it has been trained."
    from cop_repro.core import from_dict
    from cop_repro.model.codec import load_codec
    from cop_repro.model.cop_piano import load_piano
    from cop_repro.model.encoders import load_encoders
    from cop_repro.model.flow import SampleConfig
    from cop_repro.systems.cop import Performer

    paths = {name: root / file for name, file in RUN_MODELS.items()}
    if not all(path.is_file() for path in paths.values()):
        print("the default run's model is not there: `dvc repro train_piano` makes it")
        return {}
    sample = from_dict(SampleConfig, params["evaluate"]["sample"], "evaluate.sample")
    piano, meta = load_piano(paths["piano"])
    codec = load_codec(paths["codec"], meta["split_hash"])
    encoders = load_encoders(paths["encoders"], split_hash=meta["split_hash"])
    hashes = {path.name: file_hash(path) for path in paths.values()}
    return {"default run": Performer(codec, encoders, piano, sample, hashes)}


def _scored(root: Path, performer, store, rows: list[int], seed: int) -> dict:
    "All ways of one model; a finished clip is read."
    from cop_repro.data.clips import store_clip
    from cop_repro.evaluation.passes import WAYS, clip_in_ways
    from cop_repro.judges.extractors import embedded_extractor

    extractor, settings = embedded_extractor(root / JUDGES), asdict(performer.sample)
    ways = {name: asdict(way) for name, way in WAYS.items()}
    folder = _folder(root, performer.hashes, settings, ways, seed)
    scored = {name: [] for name in ("truth", *WAYS)}
    for i, row in enumerate(rows):
        clip = store_clip(store, row)
        path = folder / f"{row}.json"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, clip_in_ways(performer, clip, WAYS, extractor, seed))
        for name, found in read_json(path).items():
            scored[name].append(found)
        progress(i + 1, len(rows), "validation clips, sampled in every way")
    about = {"weights": performer.hashes, "solver": settings, "order": list(WAYS)}
    return about | {"extractor": extractor.provenance, "scored": scored}


def _folder(root: Path, *parts: object) -> Path:
    "Where scored clips of equal inputs are kept."
    from cop_repro.cli.ablation import short_name

    return root / "work" / "ablation" / "passes" / short_name(*parts)


def _draw(made: dict, path: Path) -> None:
    "Every metric of every model against passes."
    from matplotlib.figure import Figure

    from cop_repro.core import set_plot_style
    from cop_repro.evaluation.passes import BETTER, plot_passes
    from cop_repro.evaluation.report import save_palette_png

    set_plot_style()
    models = made["models"]
    figure = Figure(figsize=(12, 2.9 * len(models)), layout="constrained")
    grid = figure.subplots(len(models), len(BETTER), squeeze=False)
    for axes, (name, part) in zip(grid, models.items()):
        for ax, metric in zip(axes, BETTER):
            plot_passes(ax, part["scored"], metric)
            ax.set_title(name, fontsize="small")
    grid[0][0].legend(fontsize="small")
    save_palette_png(figure, path)
