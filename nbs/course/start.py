# SPDX-License-Identifier: Apache-2.0
"""What every lesson needs before its first sound: the package, the shipped models, an étude.

A lesson begins with `import start`, which fails with one sentence where something is missing.
"""

import importlib.util
import warnings
from pathlib import Path

NEEDED = ("codec", "encoders", "general", "judges", "piano", "roll")
ETUDE = "14_crooked_stairs"  # of the test split: no model was trained on it


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
):  # Notes
    "The opening of an étude, played by a virtual pianist."
    from cop_repro.data.performance import PIANISTS, parse_etude, perform

    text = (DATA / "etudes" / f"{name}.yaml").read_text(encoding="utf-8")
    player = PIANISTS[pianist]
    return perform(parse_etude(text, f"etude/{name}"), player, player, seed).crop(0, seconds)


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


def state(
    **answers,  # of exercises, `...` where nothing is written
) -> dict[str, str]:
    "Which exercises are solved; the check that calls this has refused wrong answers."
    return {name: "not done yet" if made is ... else "right" for name, made in answers.items()}
