# SPDX-License-Identifier: Apache-2.0
"""What every lesson needs before its first sound: the package, the shipped models, an étude.

A lesson begins with `import start`, which fails with one sentence where something is missing.
"""

import importlib.util
import json
import re
import warnings
from pathlib import Path

NEEDED = ("codec", "encoders", "general", "judges", "piano", "roll")
ETUDE = "14_crooked_stairs"  # of the test split: no model was trained on it
HERE = Path(__file__).resolve().parent  # the lessons


warnings.filterwarnings("ignore", message="IProgress not found")  # no lesson shows a bar


class NotReady(Exception):
    "What is missing, and what to type; a notebook shows the sentence without a traceback."

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def _data() -> Path:
    "The folder of models and études: `data` of the project, or that of an installed package."
    found = importlib.util.find_spec("cop_repro")
    if found is None:
        raise NotReady(
            "This kernel does not have the package cop_repro: type `make setup` in the folder of "
            "the project, then `make lab`, and open the lesson there."
        )
    package = Path(found.origin).parent
    return next((p for p in (package / "shipped",) if p.is_dir()), package.parent / "data")


def _assets(data: Path) -> Path:
    "The shipped models, all of them."
    missing = [name for name in NEEDED if not (data / "assets" / f"{name}.safetensors").is_file()]
    if missing:
        raise NotReady(
            f"The shipped model {missing[0]} is not in data/assets: type `make setup` in the "
            "folder of the project, which fetches it, and run this cell again."
        )
    return data / "assets"


DATA = _data()
ASSETS = _assets(DATA)  # the shipped models


def etude(
    seconds: float = 8.0,  # length from its beginning
    pianist: str = "lyrical",  # or "crisp", "neutral"
    seed: int = 0,  # of the rendition
    name: str = ETUDE,  # file in data/etudes
    timing: str | None = None,  # pianist who decides the onsets; None: the same
):  # Notes
    "The opening of an étude, played by a virtual pianist."
    from cop_repro.data.performance import PIANISTS, parse_etude, perform

    text = (DATA / "etudes" / f"{name}.yaml").read_text(encoding="utf-8")
    score = parse_etude(text, f"etude/{name}")
    return perform(score, PIANISTS[timing or pianist], PIANISTS[pianist], seed).crop(0, seconds)


def video(
    notes,  # Notes
    seconds: float,  # length
    seed: int = 0,  # of the picture's nuisances
):  # uint8 (t, 128, 640, 3): the keyboard from above, 25 frames a second
    "A silent video of a performance, with the nuisances of the test clips."
    from cop_repro.core import RATES, numpy_rng
    from cop_repro.data.performance import assign_fingers
    from cop_repro.data.rendering import render, sample_nuisance

    nuisance = sample_nuisance(numpy_rng(seed, "demo"))
    fingers = assign_fingers(notes)
    made = render(
        notes, fingers, seconds, nuisance=nuisance, frame_rate=RATES.frame_rate, seed=seed
    )
    return made.frames


def sound(
    notes,  # Notes
    seconds: float,  # length
):  # float32 (s,), 24 kHz, peak 0.5
    "The true sound of a performance, as the training clips have it."
    from cop_repro.data.clips import prepare_level
    from cop_repro.data.notes import synthesise

    return prepare_level(synthesise(notes, seconds))


def general(
    label: str,  # what the video shows, one of FOLEY_CLASSES
    seed: int,  # of the clip
    text: str | None = None,  # caption; None: that of the clip
    seconds: float = 3.0,  # length
):  # GeneralSystem, FoleyClip, Conditions
    "The shipped stage-1 model, and a rendered clip on which it is conditioned."
    from dataclasses import replace

    from cop_repro.core import RATES
    from cop_repro.data.foley import foley_clip
    from cop_repro.model.codec import load_codec
    from cop_repro.model.dit import load_dit
    from cop_repro.model.encoders import load_encoders
    from cop_repro.systems.general import GeneralSystem

    clip = foley_clip(label, seed, seconds)
    clip = replace(clip, text=text or clip.text)
    model, _ = load_dit(ASSETS / "general.safetensors")
    codec = load_codec(ASSETS / "codec.safetensors")
    encoders = load_encoders(ASSETS / "encoders.safetensors")
    system = GeneralSystem(model.eval(), codec, encoders)
    return system, clip, system.conditions(clip, RATES.latents(seconds))


def piano(
    notes,  # Notes
    seconds: float,  # length
):  # Performer, Conditions, latents (1, n, c) of the renderer
    "The shipped stage-2 model, conditioned on a caption and the true roll, without a picture."
    import torch

    from cop_repro.core import RATES
    from cop_repro.data.notes import notes_to_roll
    from cop_repro.model.flow import Conditions
    from cop_repro.model.roll import roll_to_logits, soft_roll
    from cop_repro.systems.cop import load_performer

    performer, count = load_performer(ASSETS), RATES.latents(seconds)
    logits = roll_to_logits(notes_to_roll(notes, seconds, float(RATES.frame_rate)))
    with torch.no_grad():
        tokens, mask = performer.encoders.text.encode(["the sound of playing piano"])
        roll = soft_roll(logits, performer.piano.velocity)
        given = Conditions(text=tokens, text_mask=mask)
        cond = performer.piano.with_roll(given, roll, count)
        return performer, cond, performer.piano.render(notes, count)


def trajectory(
    model,  # (xt, t, cond) -> velocity
    x0,  # noise (b, n, c)
    cond,  # Conditions
    config,  # SampleConfig of Euler's method, without guidance
):  # list of (t, x(t), velocity), the last one (1, x(1), None)
    "What the library's sampler goes through."
    from cop_repro.model.flow import sample

    seen = []

    def watched(xt, t, given):
        seen.append((t[0].item(), xt, model(xt, t, given)))
        return seen[-1][2]

    end = sample(watched, x0, cond, config).latents
    return [*seen, (1.0, end, None)]


def verdict(
    number: int,  # of the exercise
    made,  # what the student's code returned; `...` while nothing is written
    right,  # function without arguments: whether it is right
    hint: str,  # what may be wrong
) -> str:
    "What the check of an exercise says, in every lesson; a wrong answer fails with the hint."
    if made is ...:
        return f"Exercise {number} is not done yet"
    assert right(), hint
    return f"Exercise {number} is right"


def diagram(
    texts,  # list of str: what stands in each box
    places,  # list of (x, y): centre of each box, which is 0.9 wide and 0.6 high
    arrows,  # list of (int, int): from which box to which
    title: str,  # says what to see
    height_in: float = 2.8,  # of the figure, inches
):  # the axes
    "Boxes with arrows between them."
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(9, height_in))
    boxes = []
    for (x, y), text in zip(places, texts):
        corner = (x - 0.45, y - 0.3)
        boxes.append(ax.add_patch(plt.Rectangle(corner, 0.9, 0.6, fc="white", ec="black")))
        ax.text(x, y, text, ha="center", va="center", size=8)
    for a, b in arrows:
        ends = {"arrowstyle": "->", "patchA": boxes[a], "patchB": boxes[b], "shrinkB": 0}
        ax.annotate("", places[b], places[a], arrowprops=ends)
    ax.set(title=title, xlim=(-0.5, max(x for x, _ in places) + 0.5))
    ax.set_ylim(min(y for _, y in places) - 0.4, max(y for _, y in places) + 0.4)
    ax.axis("off")
    return ax


def strips(
    frames,  # of `video`
):  # uint8 (t, 48, 520): the keyboard alone, straightened
    "Keyboard strips of a video, as the roll predictor takes them."
    from cop_repro.data.keyboard import find_keyboard, rectify

    return rectify(frames, find_keyboard(frames).corners, 48, 520)


def quote(
    lesson: str,  # stem of a notebook beside this file
    cell: str,  # id of one of its cells
    kind: str | None = None,  # "text/html" for players, "image/png" for pictures; None: all
    sounds: tuple[int, ...] = (),  # which players of a row of them, from 0; none: all
) -> None:
    "Show the stored outputs of a lesson's cell: slides contain nothing that a lesson has not made."
    from IPython.display import display

    stored = json.loads((HERE / f"{lesson}.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = next((c["outputs"] for c in stored if c["id"] == cell), [])
    found = [output["data"] for output in outputs if "data" in output]
    shown = [
        {name: "".join(data[name])}
        for data in found
        for name in ("text/html", "image/png")
        if name in data and kind in (None, name)
    ]
    if not shown:
        raise LookupError(f"cell {cell} of {lesson} has no stored output of the kind {kind}")
    for data in shown:
        if sounds and "text/html" in data:
            rows = re.findall("<tr>.*?</tr>", data["text/html"])
            data["text/html"] = f"<table>{''.join(rows[i] for i in sounds)}</table>"
        display(data, raw=True)
