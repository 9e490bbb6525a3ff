# SPDX-License-Identifier: Apache-2.0
"`cop demo`: a rendered étude, performed from its picture, with a page to hear it."

import html
import importlib.util
from pathlib import Path

from cop_repro.cli._assets import assets_folder, etudes_folder
from cop_repro.cli._progress import progress
from cop_repro.core import RATES, BadInput, check_output_folder, numpy_rng

HELP = "render a held-out étude, perform it from the picture alone, and score the notes"

# Études of the test split: no model, predictor or judge was trained on them.
HELD_OUT = (
    "01_all_white_keys",
    "02_all_keys",
    "08_iron_bridge",
    "10_echo_valley",
    "12_black_key_lullaby",
    "14_crooked_stairs",
)
DEFAULT = "14_crooked_stairs"
LONGEST_S = 60.0

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>cop demo: {title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: auto; padding: 1rem }}
video, img {{ width: 100% }} audio {{ width: 100%; display: block }} figure {{ margin: 1.5rem 0 }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
<figure><video controls poster="poster.png" src="video.mp4"></video>
<figcaption>The rendered video, which was silent, with its generated sound.</figcaption></figure>
{players}
<figure><a href="overview.png"><img src="overview.png" alt="A frame of the silent video, the
predicted notes over the true ones, and mel spectrograms of the generated and the true sound"></a>
<figcaption>From the silent video to notes and sound.</figcaption></figure>
</html>
"""


def add_arguments(parser) -> None:
    "Which étude, how long, and where to write."
    parser.add_argument("-o", "--output", default="demo", help="folder to make")
    parser.add_argument("--etude", default=DEFAULT, help=f"one of {', '.join(HELD_OUT)}")
    parser.add_argument("--seconds", type=float, default=10.0, help="length, 2 to 60 s")
    parser.add_argument("--seed", type=int, default=0, help="seed of the rendition and the sound")


def run(args) -> int:
    "Render, perform, score and write the page."
    from cop_repro.measure.music_metrics import note_scores
    from cop_repro.systems.cop import (
        WindowConfig,
        load_performer,
        perform_video,
        results_folder,
    )

    _check(args.etude, args.seconds)
    check_output_folder(args.output, ("index.html", "sound.wav"))
    performer = load_performer(assets_folder())
    title, truth = true_notes(args.etude, args.seconds, args.seed)
    with results_folder(Path(args.output)) as folder:
        silent = folder / "silent.mp4"
        print(f"rendering {args.seconds:g} s of {title!r}, {len(truth)} notes", flush=True)
        render_silent(silent, truth, args.seconds, args.seed)
        made = perform_video(
            silent, folder, performer, seed=args.seed, windows=WindowConfig(), progress=progress
        )
        found = _read_notes(folder / "notes.mid")
        score = note_scores(truth, found)["onset_f1"]
        sounds_made = _write_sounds(folder, truth, found, args.seconds)
        _draw(folder, truth, found, args.seconds)
        summary = (
            f"{len(found)} notes predicted from the picture, {len(truth)} played; "
            f"onset F1 {score:.2f}."
        )
        made |= sounds_made | {
            "silent.mp4": "the rendered video that was performed",
            "poster.png": "a frame of the video, which the page shows before it plays",
            "overview.png": "video, notes and sound in one picture",
            "index.html": "a page to see and hear all of it",
        }
        (folder / "index.html").write_text(_page(title, summary, sounds_made), encoding="utf-8")
    for name, what in made.items():
        print(f"{name:16s} {what}")
    print(f"onset F1 {score:.2f}: {summary.split(';')[0]}")
    print(f"open {Path(args.output) / 'index.html'} in a browser to listen")
    return 0


def _check(etude: str, seconds: float) -> None:
    "Refuse what the demo cannot render."
    if etude not in HELD_OUT:
        raise BadInput(f"no held-out étude {etude!r}: choose one of {', '.join(HELD_OUT)}")
    if not 2 <= seconds <= LONGEST_S:
        raise BadInput(f"--seconds {seconds:g}: a length from 2 to {LONGEST_S:g} s is possible")


def true_notes(etude: str, seconds: float, seed: int):
    "Title of the étude and the notes of its opening, played by the lyrical virtual pianist."
    from cop_repro.data.performance import PIANISTS, parse_etude, perform

    text = (etudes_folder() / f"{etude}.yaml").read_text(encoding="utf-8")
    score = parse_etude(text, f"etude/{etude}")
    pianist = PIANISTS["lyrical"]
    return score.title, perform(score, pianist, pianist, seed).crop(0, seconds)


def render_silent(path: Path, notes, seconds: float, seed: int) -> None:
    "A silent video of the notes from above, with the nuisances of the test clips."
    from cop_repro.data.performance import assign_fingers
    from cop_repro.data.rendering import render, sample_nuisance
    from cop_repro.data.video import write_video

    nuisance = sample_nuisance(numpy_rng(seed, "demo"))
    fingers = assign_fingers(notes)
    view = render(
        notes, fingers, seconds, nuisance=nuisance, frame_rate=RATES.frame_rate, seed=seed
    )
    write_video(path, view.frames, RATES.frame_rate)


def _read_notes(path: Path):
    "The predicted notes, as anyone reads them from the file."
    from cop_repro.data.notes import read_midi

    return read_midi(path)


def _write_sounds(folder: Path, truth, found, seconds: float) -> dict[str, str]:
    "The true notes, and both performances through a synthesiser where one is installed."
    import soundfile

    from cop_repro.data.clips import prepare_level
    from cop_repro.data.notes import synthesise, write_midi

    write_midi(truth, folder / "true.mid")
    made = {"true.mid": "the notes that were rendered"}
    if importlib.util.find_spec("tinysoundfont") is None:
        print("true.wav is left out: the synthesiser (tinysoundfont) is not installed")
        return made
    sounds = {
        "true.wav": (truth, "the true notes through the synthesiser (the sound to reach)"),
        "synthesised.wav": (found, "the predicted notes through the same synthesiser"),
    }
    for name, (notes, what) in sounds.items():
        wav = prepare_level(synthesise(notes.crop(0, seconds), seconds))
        soundfile.write(folder / name, wav, RATES.sample_rate)
        made[name] = what
    return made


def _draw(folder: Path, truth, found, seconds: float) -> None:
    "A frame of the video as `poster.png`; with the notes and the spectrograms as `overview.png`."
    import soundfile
    from matplotlib.figure import Figure
    from matplotlib.image import imsave

    from cop_repro.data.notes import plot_notes
    from cop_repro.data.video import read_video
    from cop_repro.measure.audio_metrics import plot_mels

    sounds = {"Sound generated from the video": soundfile.read(folder / "sound.wav")[0]}
    if (folder / "true.wav").is_file():
        sounds["Sound of the true notes"] = soundfile.read(folder / "true.wav")[0]
    figure = Figure(figsize=(11, 4.4 + 1.6 * len(sounds)), layout="constrained")
    ratios = (1.7, 1.8, *(1.2 for _ in sounds))
    axes = figure.subplots(2 + len(sounds), 1, height_ratios=ratios)
    middle = min(truth.onsets_s[len(truth) // 2] + 0.1, seconds - 0.2)
    frame = read_video(folder / "silent.mp4", start_s=middle, end_s=middle + 0.1)[0]
    imsave(folder / "poster.png", frame)
    axes[0].imshow(frame)
    axes[0].set(xticks=[], yticks=[], title=f"Silent video at {middle:.1f} s")
    plot_notes(axes[1], truth, found, "Notes predicted from the video (colour) over true ones")
    axes[1].set(xlim=(0, seconds))
    plot_mels(axes[2:], sounds)
    figure.savefig(folder / "overview.png", dpi=100)


def _page(title: str, summary: str, sounds: dict[str, str]) -> str:
    "A page that plays what was made, without a network."
    listed = {"sound.wav": "the generated sound"} | sounds
    players = "".join(
        f'<figure><audio controls src="{name}"></audio><figcaption><code>{name}</code>: {what}.'
        "</figcaption></figure>\n"
        for name, what in listed.items()
        if name.endswith(".wav")
    )
    text = {"title": html.escape(title), "summary": html.escape(summary)}
    return PAGE.format(players=players, **text)
