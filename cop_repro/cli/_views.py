# SPDX-License-Identifier: Apache-2.0
"What `cop bench views` renders, trains and scores; finished parts in work/views are kept."

import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from cop_repro.benchmark.views import (
    PLAN,
    ViewPlan,
    score_views,
    train_views,
    view_items,
    view_stores,
    view_table,
)
from cop_repro.cli._progress import progress
from cop_repro.cli.ablation import short_name
from cop_repro.core import AssetMismatch, atomic_file, file_hash, write_json
from cop_repro.data.clips import Store, load_works, read_manifest
from cop_repro.model.cop_piano import load_piano
from cop_repro.model.views import ViewRoll, load_views, predictor_hash, save_views

SHIPPED = "views.safetensors"
AGAINST = "top only, trained as long"


def plan_of(
    clips: int | None,  # training clips; None: those of the shipped weights
    steps: int | None,  # optimiser steps; likewise
) -> ViewPlan:
    "The plan of the shipped weights, or a shorter one."
    changes = {} if steps is None else {"steps": steps}
    if clips is not None:
        changes["clips"] = {**PLAN.clips, "train": clips}
    return replace(PLAN, **changes)


class ViewStudy:
    "Clips, training and scores; what depends on plan and inputs has a folder of its own."

    def __init__(self, root: Path, assets: Path, output: Path, plan: ViewPlan = PLAN):
        torch.set_num_threads(1)
        piano, meta = load_piano(assets / "piano.safetensors")
        self.predictor, self.root, self.output, self.plan = piano.predictor, root, output, plan
        self.items, split = read_manifest(root / "data" / "manifest.json")
        if meta["split_hash"] != split:
            raise AssetMismatch(
                f"piano.safetensors was trained on split {meta['split_hash']}, the manifest is of "
                f"split {split}: test works may have been among its training clips"
            )
        self.about = {"split_hash": split, "predictor": predictor_hash(self.predictor)}
        clips = {name: getattr(plan, name) for name in ("clips", "seconds", "seed")}
        self.clips = root / "work" / "views" / short_name(self.about, clips)
        self.work = self.clips / short_name(asdict(plan))

    def stores(self, split: str) -> list[Store]:
        "The clips of a split with all views."
        items = view_items(self.items, split, self.plan)
        works = sorted({item.recipe["work"] for item in items})
        scores = load_works(works, self.root / "data" / "etudes", progress)
        return view_stores(self.clips, items, scores, self.predictor, self.about, progress)

    def train(self) -> Path:
        "Train the network and its control, and write both."
        path = self.work / SHIPPED
        if path.exists():
            return path
        stores, models, costs = self.stores("train"), [], {}
        for source in ("sides", "top"):
            began = time.process_time()
            folder = self.work / source
            model, _ = train_views(source, stores, self.plan, folder, progress)
            models.append(model)
            costs[source] = round(time.process_time() - began, 1)
            print(f"trained {source} in {costs[source]} CPU-seconds", flush=True)
        meta = {**self.about, "plan": asdict(self.plan), "cpu_seconds": costs}
        save_views(path, models, self.predictor, meta)
        return path

    def score(self, weights: Path, split: str) -> str:
        "Score both networks and the control rows on a split; write views.json and tables.md."
        models = {"five views": self._model(weights, "sides"), AGAINST: self._model(weights, "top")}
        scored = score_views(self.stores(split), models, progress)
        table = view_table(scored, AGAINST, self.plan.seed)
        count, works = len(scored[AGAINST]), len({c["work_id"] for c in scored[AGAINST]})
        head = (
            f"# Five views, on {count} {split} clips of {works} works\n\n"
            "Made by `cop bench views`. Intervals of 95 % over works; differences are paired by "
            "clip.\n\n"
        )
        self.output.mkdir(parents=True, exist_ok=True)
        about = {**self.about, "split": split, "weights": file_hash(weights)}
        write_json(self.output / "views.json", {**about, "scored": scored})
        with atomic_file(self.output / "tables.md") as temporary:
            temporary.write_text(head + table, "utf-8")
        return table

    def _model(self, weights: Path, source: str) -> ViewRoll:
        "A network of this split."
        model, meta = load_views(weights, self.predictor, source)
        if meta["split_hash"] != self.about["split_hash"]:
            raise AssetMismatch(
                f"{weights.name} was trained on split {meta['split_hash']}, the manifest is of "
                f"split {self.about['split_hash']}: train it again with --train"
            )
        return model
