# SPDX-License-Identifier: Apache-2.0
"`cop cards`: the facts in docs/cards, from the assets, the manifest and the results."

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cop_repro.cli._marks import refresh
from cop_repro.core import CopError, project_root, read_json

HELP = "write (or check) the facts in the model and data cards"

MARK = "facts"

# Rows of reports/results.json that a card prints: (table, row, metric).
SCORES = {
    "codec": (
        ("controls", "codec", "si_sdr_spec"),
        ("controls", "codec", "transcription_f1"),
        ("controls", "codec", "mel_distance"),
    ),
    "encoders": (
        ("table2", "base", "clip_score"),
        ("table2", "base_without_text", "clip_score"),
        ("table3", "base_direction", "pitch_direction"),
        ("table3", "base_direction", "pace_direction"),
    ),
    "general": (
        ("table2", "base", "label_accuracy"),
        ("table2", "base", "event_f1"),
        ("table2", "base", "mel_distance"),
        ("table3", "base", "label_accuracy"),
        ("table3", "base", "clap_score"),
    ),
    "judges": (
        ("table2", "base_true_sound", "label_accuracy"),
        ("table2", "base_shuffled", "label_accuracy"),
        ("table2", "base_true_sound", "clip_score"),
        ("table2", "base_shuffled", "clip_score"),
        ("table3", "base_true_sound", "clap_score"),
        ("table3", "base_shuffled", "clap_score"),
    ),
    "piano": (
        ("table5", "cop_shipped", "si_sdr_spec"),
        ("table5", "cop_shipped", "transcription_f1"),
        ("table5", "cop_shipped", "chroma_similarity"),
        ("real", "cop_perform", "onset_f1"),
        ("real", "cop_perform", "lag_onset_f1"),
    ),
    "roll": (
        ("roll", "video2roll_clean", "onset_f1"),
        ("roll", "video2roll", "onset_f1"),
        ("roll", "video2roll", "note_f1"),
        ("roll", "video2roll", "velocity_mae"),
        ("roll", "video2roll", "pedal_frame_f1"),
    ),
}

# Numbers of reports/stages that a card prints: asset -> stage, and (heading, keys) of each number.
STAGE_SCORES = {
    "vmcp": (
        "train_vmcp",
        {
            "P@5 of true pairs": ("rows", "truth", "p5"),
            "chance": ("rows", "truth", "p5_chance"),
            "average rank in a pool of 64": ("rows", "truth", "average_rank"),
            "the same for exchanged videos": ("rows", "shuffled", "average_rank"),
            "own window before another one of the work": ("rows", "truth", "same_piece"),
        },
    ),
    "cmt": (
        "evaluate_systems-compose",
        {
            "error of a bar's density at C = 1": ("rows", "cmt_1", "density_error"),
            "the same at C = 0": ("rows", "cmt_0", "density_error"),
            "speed of a bar against its onsets, Spearman": ("rows", "cmt_1", "speed_correlation"),
            "the same for another video": ("rows", "cmt_shuffled", "speed_correlation"),
            "average rank by VMCP": ("rows", "cmt_1", "average_rank"),
            "the same of real music": ("rows", "real", "average_rank"),
        },
    ),
    "vmusprod": (
        "evaluate_systems-compose",
        {
            "chord tones in the melody": ("harmony", "chord_tones"),
            "chord tones of another piece's chords": ("harmony", "chord_tones_of_others"),
            "speed of a bar against its onsets, Spearman": (
                "rows",
                "vmusprod",
                "speed_correlation",
            ),
            "the same without motion": ("rows", "vmusprod_no_motion", "speed_correlation"),
            "average rank by VMCP": ("rows", "vmusprod", "average_rank"),
            "the same for another video": ("rows", "vmusprod_shuffled", "average_rank"),
            "the same of real music": ("rows", "real", "average_rank"),
        },
    ),
    "apvg": (
        "evaluate_cycle",
        {
            "onset F1 of notes in videos made from sound": ("rows", "apvg", "onset_f1", 0),
            "the same, sound of another work": ("rows", "shuffled_audio", "onset_f1", 0),
            "the same, true video": ("rows", "true_video", "onset_f1", 0),
            "frame F1": ("rows", "apvg", "frame_f1", 0),
            "error of moving pixels, grey levels": ("rows", "apvg", "motion_error", 0),
        },
    ),
    "cycle_roll": (
        "evaluate_cycle",
        {
            "onset F1 in true videos": ("rows", "true_video", "onset_f1", 0),
            "frame F1 in true videos": ("rows", "true_video", "frame_f1", 0),
        },
    ),
    "vmb": (
        "evaluate_bridges",
        {
            "mel distance to the true music, dB": ("mel", "full"),
            "the same without bridges": ("mel", "without_both"),
            "the same for another video": ("mel", "shuffled"),
            "the true sound through the codec": ("mel", "codec"),
            "KL to the true music, nats": ("kl", "full"),
            "KL without bridges": ("kl", "without_both"),
            "accuracy of the sentinel (chance .08)": ("accuracy", "key_root"),
        },
    ),
}


def add_arguments(parser) -> None:
    "Write or check."
    parser.add_argument(
        "--check", action="store_true", help="fail if they are stale; write nothing"
    )


def run(args) -> int:
    "Write the facts between the two marks of every card, or fail where one is stale."
    root = project_root()
    made = card_facts(root)
    for path in card_files(root):
        if path.stem not in made:
            raise CopError(
                f"docs/cards/{path.name} is a card of nothing: cards are {', '.join(made)}"
            )
        page = path.relative_to(root).as_posix()
        refresh(root, page, MARK, made[path.stem], "cop cards", args.check)
    return 0


def card_files(root: Path) -> list[Path]:
    "All cards; README.md is their index."
    return [p for p in sorted((root / "docs" / "cards").glob("*.md")) if p.stem != "README"]


def card_facts(root: Path) -> dict[str, str]:
    "Facts by card, as Markdown tables."
    from cop_repro.evaluation.claims import read_results

    results = read_results(root / "reports" / "results.json").lines
    manifest = read_json(root / "data" / "manifest.json")
    assets = sorted((root / "data" / "assets").glob("*.safetensors"))
    facts = {p.stem: f"{_asset_table(p)}\n\n{_scores(root, p.stem, results)}" for p in assets}
    return facts | {
        "rendered_piano": _clip_table(manifest, ("piano",)),
        "foley_and_captions": _clip_table(manifest, ("foley", "t2a")),
        "etudes": _etude_table(root / "data" / "etudes", manifest),
    }


def _table(head: str, rows: list[tuple]) -> str:
    "A Markdown table; columns of the head are divided by commas."
    columns = head.split(", ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def _asset_table(path: Path) -> str:
    "What the file of a model says about itself."
    from safetensors import safe_open

    data = path.read_bytes()
    with safe_open(path, "np") as file:
        about = json.loads(file.metadata()["meta"])
        slices = {name: file.get_slice(name) for name in file.keys()}
        count = sum(math.prod(part.get_shape()) for part in slices.values())
        kinds = sorted({part.get_dtype() for part in slices.values()})
    rows = [
        ("file", f"`data/assets/{path.name}`"),
        ("size", f"{len(data):,} bytes"),
        ("SHA-256", f"`{hashlib.sha256(data).hexdigest()}`"),
        ("MD5 (DVC)", f"`{hashlib.md5(data, usedforsecurity=False).hexdigest()}`"),
        ("parameters, buffers", f"{count:,} in {len(slices)} tensors ({', '.join(kinds)})"),
        ("split", f"`{about.get('split_hash') or about.get('split')}`"),
    ]
    if "latents" in about:
        rows.append(("trained on latents", f"`{about['latents']}`"))
    return _table("fact, value", rows)


def _scores(root: Path, card: str, results: list[dict]) -> str:
    "Scores of an asset: rows of the results, or what a stage or a command measured."
    if card == "views":
        return _view_table(root)
    return _stage_table(root, card) if card in STAGE_SCORES else _score_table(card, results)


def _view_table(root: Path) -> str:
    "Means of what `cop bench views` measured on test clips."
    scored, rows = read_json(root / "reports" / "views" / "views.json")["scored"], []
    for name, clips in scored.items():
        for metric in ("onset_velocity_f1", "pedal_frame_f1", "pedal_event_f1"):
            mean = sum(clip[metric] for clip in clips) / len(clips)
            rows.append((name, metric, f"{mean:.2f}", len(clips)))
    return _table("row, metric, mean of test clips, n", rows)


def _stage_table(root: Path, card: str) -> str:
    "What a stage of the default run measured."
    stage, numbers = STAGE_SCORES[card]
    measured, rows = read_json(root / "reports" / "stages" / f"{stage}.json"), []
    for title, keys in numbers.items():
        value = measured
        for key in keys:
            value = value[key]
        rows.append((title, f"{value:.2f}"))
    return _table(f"measured by the stage `{stage.partition('-')[0]}`, value", rows)


def _score_table(card: str, results: list[dict]) -> str:
    "Scores of the default run, with their intervals."
    found = {
        (r["table"], r["row"], r["metric"]): r
        for r in results
        if r["label"] not in ("paper", "not run")
    }
    if card not in SCORES:
        raise CopError(f"no scores are chosen for asset {card}: add it to SCORES in cli/cards.py")
    lacking = [key for key in SCORES[card] if key not in found]
    if lacking:
        raise CopError(
            f"reports/results.json lacks {'/'.join(lacking[0])}, which card {card} prints"
        )
    rows = [(*key, _with_interval(found[key]), found[key]["n"]) for key in SCORES[card]]
    return _table("table, row, metric, value (95 % interval), n", rows)


def _with_interval(line: dict) -> str:
    "A value with its unit, and its interval where there is one."
    value = f"{line['value']:.2f}"
    if line["ci_low"] is not None:
        value += f" [{line['ci_low']:.2f}, {line['ci_high']:.2f}]"
    return f"{value} {line['unit']}".strip()


def _clip_table(manifest: dict, domains: tuple[str, ...]) -> str:
    "Clips of some domains by kind and split."
    items = [item for item in manifest["items"] if item["domain"] in domains]
    clips = Counter((_kind(item), item["split"]) for item in items)
    works, seconds = {}, Counter()
    for item in items:
        works.setdefault((_kind(item), item["split"]), set()).add(item["work_id"])
        seconds[_kind(item), item["split"]] += item["duration_s"]
    rows = [
        (*key, count, len(works[key]), f"{seconds[key] / 60:.1f}")
        for key, count in sorted(clips.items())
    ]
    rows.append(("all", "all", len(items), len({i["work_id"] for i in items}), _minutes(items)))
    table = _table("kind, split, clips, works or scenes, minutes", rows)
    return f"Split `{manifest['split_hash']}` of `data/manifest.json`:\n\n{table}"


def _minutes(items: list[dict]) -> str:
    "Length of some clips."
    return f"{sum(item['duration_s'] for item in items) / 60:.1f}"


def _kind(item: dict) -> str:
    "The kind of a clip, as `prepare.keep` names it."
    if item["domain"] != "piano":
        return item["domain"]
    if "video_touch" in item["recipe"]:
        return "piano, pair"
    return "piano, nuisance" if item["recipe"]["nuisance"] else "piano, clean"


def _etude_table(folder: Path, manifest: dict) -> str:
    "The études with their splits."
    return _table(
        "file, title, idea, split, SHA-256 (first 16 digits)", list(_etude_rows(folder, manifest))
    )


def _etude_rows(folder: Path, manifest: dict) -> Iterator[tuple]:
    "One row an étude."
    import yaml

    for path in sorted(folder.glob("*.yaml")):
        data = path.read_bytes()
        about = yaml.safe_load(data)
        split = manifest["works"][f"etude/{path.stem}"]
        digits = hashlib.sha256(data).hexdigest()[:16]
        yield f"`{path.name}`", about["title"], about["idea"], split, f"`{digits}`"
