# SPDX-License-Identifier: Apache-2.0
"What `cop bench style` trains and scores; finished parts in work/style are kept."

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import torch

from cop_repro.benchmark.styles import (
    StylePlan,
    scored_style,
    style_clips,
    style_lessons,
    style_system,
    style_table,
    touch_judge,
    train_dpo,
    train_styles,
)
from cop_repro.cli._progress import progress
from cop_repro.cli.ablation import short_name
from cop_repro.core import (
    AssetMismatch,
    BadInput,
    atomic_file,
    file_hash,
    load_weights,
    read_json,
    write_json,
)
from cop_repro.data.clips import Store, load_works, store_clip
from cop_repro.data.performance import group_works
from cop_repro.model.cop_piano import load_piano, save_piano
from cop_repro.systems.cop import ASSETS, load_performer
from cop_repro.systems.styles import load_styles, save_styles


class StyleStudy:
    "One run of the study; what depends on plan and inputs has a folder of its own."

    def __init__(self, root: Path, plan: StylePlan, output: Path):
        clips = root / "features" / "clips" / "piano"
        if not (clips / "index.json").is_file():
            raise BadInput("no clips in features/clips: run `dvc repro prepare` first")
        torch.set_num_threads(1)
        self.root, self.plan, self.output, self.store = root, plan, output, Store(clips)
        self.assets = root / "data" / "assets"
        paths = [clips / "index.json", *(self.assets / name for name in ASSETS)]
        self.inputs = {path.relative_to(root).as_posix(): file_hash(path) for path in paths}
        self.performer = replace(load_performer(self.assets), sample=plan.sample)
        meta = load_piano(self.assets / ASSETS[2])[1]
        self.split = meta["split_hash"]
        if (found := self.store.about["split_hash"]) != self.split:
            raise AssetMismatch(
                f"features/clips are of split {found}, the shipped weights of split {self.split}: "
                "run `dvc repro prepare` with the shipped data/manifest.json"
            )
        self.work = root / "work" / "style" / short_name(asdict(plan), self.inputs)

    @cached_property
    def _lessons(self):
        "Style pairs and library; near duplicates of the training works are grouped."
        works = sorted({e["work_id"] for e in self.store.index if e["split"] == "train"})
        scores = load_works(works, self.root / "data" / "etudes", progress)
        groups = {name: group[0] for group in group_works(list(scores.values())) for name in group}
        return style_lessons(self.performer, self.store, groups, self.plan, progress)

    @cached_property
    def styles(self):
        "The trained parts for references."
        path = self.work / "styles.safetensors"
        if not path.exists():
            (lessons, scale), began = self._lessons, time.process_time()
            folder = self.work / "reference"
            made = train_styles(self.performer.piano, lessons, scale, self.plan, folder, progress)
            save_styles(path, made, self._about(began))
        return load_styles(path, self.performer.piano, self.performer.codec.latent_id)[0]

    @cached_property
    def dpo(self):
        "The shipped model after DPO."
        path = self.work / "dpo.safetensors"
        if not path.exists():
            (lessons, _), began = self._lessons, time.process_time()
            piano = load_piano(self.assets / ASSETS[2])[0]
            made = train_dpo(piano, lessons, self.plan, self.work / "dpo", progress)
            save_piano(path, made, self._about(began))
        return load_piano(path)[0]

    def _about(self, began: float) -> dict:
        "Description of a trained file, with its cost."
        seconds = round(time.process_time() - began, 1)
        print(f"trained in {seconds} CPU-seconds", flush=True)
        return {"split_hash": self.split, "inputs": self.inputs, "cpu_seconds": seconds}

    def score(self, rows: Sequence[str], split: str, count: int) -> dict[str, list[dict]]:
        "Scores of the rows, written to the output folder; scored clips are read."
        systems = {
            row: style_system(
                row, self.performer, self.styles, _needs(row) and self.dpo, self.plan.pianists
            )
            for row in rows
        }
        judge, scored = touch_judge(self.store, self.plan.pianists), {row: [] for row in rows}
        chosen = style_clips(self.store, split, count)
        for done, number in enumerate(chosen):
            clip = store_clip(self.store, number)
            for row, system in systems.items():
                path = self.work / "results" / f"{row}-{short_name(clip.clip_id)}.json"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_json(path, scored_style(system, clip, judge))
                scored[row].append(read_json(path))
            progress(done + 1, len(chosen), f"{split} clips in {len(rows)} rows")
        self._write(scored, split, judge.provenance)
        return scored

    def _write(self, scored: dict, split: str, judge: str) -> None:
        "styles.json and tables.md."
        self.output.mkdir(parents=True, exist_ok=True)
        files = {name: self.work / f"{name}.safetensors" for name in ("styles", "dpo")}
        costs = {n: load_weights(p)[1]["cpu_seconds"] for n, p in files.items() if p.exists()}
        about = {"split": split, "inputs": self.inputs, "plan": asdict(self.plan)}
        made = {**about, "judge": judge, "cpu_seconds": costs, "scored": scored}
        write_json(self.output / "styles.json", made)
        count, works = len(scored["none"]), len({e["work_id"] for e in scored["none"]})
        head = (
            f"# Level 4 in a style, on {count} {split} clips of {works} works\n\n"
            "Made by `cop bench style`. Intervals of 95 % over works; differences from `none` are\n"
            "paired by clip.\n\n"
        )
        with atomic_file(self.output / "tables.md") as temporary:
            temporary.write_text(head + style_table(scored), "utf-8")


def _needs(row: str) -> bool:
    "Whether a row plays with the model after DPO."
    return row in ("dpo", "both")
