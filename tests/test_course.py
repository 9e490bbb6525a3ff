# SPDX-License-Identifier: Apache-2.0
"The course: what every lesson holds, that its solutions are right, that its sounds play."

import base64
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from chromium import CHROMIUM, Page

from cop_repro.cli import main
from cop_repro.cli._lessons import exercises, lesson_files, read_lesson, solutions, with_solutions

COURSE = Path(__file__).resolve().parents[1] / "nbs" / "course"
LESSONS = lesson_files(COURSE)
AUDIO = re.compile(r'src="data:audio/ogg;base64,([^"]+)"')
MAX_STORED_BYTES = 700_000  # of a lesson's outputs
MAX_CODE_CELLS, MAX_LINES = 14, 12
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell, kind):
    "The outputs of a cell that have this form."
    data = (output.get("data", {}) for output in cell.outputs)
    return ["".join(found[kind]) for found in data if kind in found]


def players(cell):
    "The sounds of a cell, each an Ogg file in base 64."
    return [sound for text in shown(cell, "text/html") for sound in AUDIO.findall(text)]


def test_there_are_eight_lessons():
    assert [path.stem.split("_")[0] for path in LESSONS] == list("01234567")


@each_lesson
def test_a_lesson_holds_what_the_course_promises(path):
    notebook = read_lesson(path)
    cells = code_cells(notebook)
    assert notebook.cells[0].source.startswith(f"# Lesson {path.stem[0]}: ")
    assert cells[0].source.startswith("import start")
    assert len(cells) <= MAX_CODE_CELLS
    lines = [[line for line in cell.source.splitlines() if line.strip()] for cell in cells]
    assert max(map(len, lines)) <= MAX_LINES  # of code; the formatter decides on blank ones
    assert not any("#|" in cell.source for cell in cells), "a lesson exports nothing"
    assert sum(bool(players(cell)) for cell in cells) >= 3
    assert sum(len(shown(cell, "image/png")) for cell in cells) >= 2
    assert set(exercises(notebook)) == set(solutions(notebook)) >= {1, 2, 3}
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "listening question" in prose.lower() and "minutes" in prose


@each_lesson
def test_stored_outputs_are_small_and_whole(path):
    cells = code_cells(read_lesson(path))
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum(len(str(output)) for output in outputs) <= MAX_STORED_BYTES
    assert not [output for output in outputs if output.output_type in ("error", "stream")]
    assert not re.search(r"/(root|home|tmp|work)/[A-Za-z]", path.read_text())


@pytest.mark.course
@each_lesson
def test_a_lesson_runs_with_its_solutions(path, tmp_path):
    "From top to bottom, with every exercise solved: the checks of the lesson judge the solutions."
    import nbformat

    for beside in path.parent.glob("*.py"):
        shutil.copy(beside, tmp_path)
    notebook = with_solutions(read_lesson(path))
    for cell in code_cells(notebook):
        cell.outputs = []
    nbformat.write(notebook, tmp_path / path.name)
    command = [sys.executable, "-m", "papermill", path.name, "made.ipynb", "--cwd", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    made = code_cells(read_lesson(tmp_path / "made.ipynb"))
    assert not [cell.source for cell in made if "not done yet" in str(cell.outputs).lower()]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_every_player_decodes_in_a_browser(tmp_path):
    sounds = [
        (path.stem, sound)
        for path in LESSONS
        for cell in code_cells(read_lesson(path))
        for sound in players(cell)
    ]
    for number, (_, sound) in enumerate(sounds):
        (tmp_path / f"{number}.ogg").write_bytes(base64.b64decode(sound))
    tags = "".join(f'<audio preload="auto" src="{i}.ogg"></audio>' for i in range(len(sounds)))
    (tmp_path / "index.html").write_text(f"<!doctype html><title>players</title>{tags}")
    page = Page(tmp_path / "browser")
    try:
        page.open((tmp_path / "index.html").as_uri())
        lengths = page.run(
            "Promise.all([...document.querySelectorAll('audio')].map(a => new Promise(done => {"
            "if (a.readyState > 0) done(a.duration); a.onloadedmetadata = () => done(a.duration);"
            "a.onerror = () => done(-1); a.load(); })))"
        )
    finally:
        page.close()
    assert len(lengths) == len(sounds) >= 24
    assert [sounds[i][0] for i, length in enumerate(lengths) if not 0.5 < length < 30] == []


def test_hand_outs_hold_no_solution(tmp_path, capsys):
    assert main(["handout", "-o", str(tmp_path / "made")]) == 0
    assert "8 lessons" in capsys.readouterr().out
    for path in LESSONS:
        notebook = read_lesson(tmp_path / "made" / path.name)
        assert solutions(notebook) == {} and "<details>" not in str(notebook)
        assert exercises(notebook) and not [c for c in code_cells(notebook) if c.outputs]
    assert (tmp_path / "made" / "start.py").read_bytes() == (COURSE / "start.py").read_bytes()


@pytest.mark.parametrize(
    ("given", "why"),
    [(["1_sound_as_latent"], "did you mean '1_sound_as_latents'"), (["-o", "."], "is not empty")],
)
def test_hand_outs_that_are_refused(given, why, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    assert main(["handout", *given]) == 2
    assert why in capsys.readouterr().err


def test_a_lesson_without_the_package_says_what_to_type(tmp_path):
    command = [sys.executable, "-S", "-c", "import start"]
    done = subprocess.run(command, cwd=COURSE, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("start.NotReady: This kernel does not have")
    assert "make setup" in done.stderr


def test_a_lesson_without_the_models_says_what_to_type(tmp_path):
    package = tmp_path / "cop_repro"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(COURSE / "start.py", tmp_path)
    command = [sys.executable, "-S", "-c", "import start"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("start.NotReady: The shipped model codec is not in data/assets")
    assert "make setup" in last
