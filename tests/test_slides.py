# SPDX-License-Identifier: Apache-2.0
"The slides of the course: one file, read by a browser whose network is refused."

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from chromium import CHROMIUM, Page

from cop_repro.cli._slides import markdown_html

COURSE = Path(__file__).resolve().parents[1] / "nbs" / "course"
WIDTH, HEIGHT = 1280, 720  # of a projector
ARROW_RIGHT, ARROW_LEFT, END, HOME = 39, 37, 35, 36
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def cop_slides(*args, cwd):
    "The command in a process of its own, because a kernel's sockets outlive its client."
    command = [sys.executable, "-m", "cop_repro.cli", "slides", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    "The page that `cop slides` writes."
    path = tmp_path_factory.mktemp("slides") / "slides.html"
    done = cop_slides("-o", path, cwd=path.parent)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return path


@pytest.fixture(scope="module")
def page(slides, tmp_path_factory):
    browser = Page(tmp_path_factory.mktemp("browser"))
    browser.resize(WIDTH, HEIGHT)
    browser.open(slides.as_uri())
    yield browser
    browser.close()


def outputs_of(lesson, cell):
    cells = json.loads((COURSE / f"{lesson}.ipynb").read_text())["cells"]
    return next(c["outputs"] for c in cells if c["id"] == cell)


def test_a_lecture_of_45_minutes(slides):
    text = slides.read_text()
    parts = text.split('<section class="slide">')[1:]
    assert 25 <= len(parts) <= 30 and "<title>Sound for a silent piano</title>" in text
    assert sum("<audio" in part for part in parts) >= 6
    assert sum("<math" in part for part in parts) >= 6
    starts = [int(m) for m in re.findall(r'<aside class="notes"><p>0:(\d\d)\.', text)]
    assert starts == sorted(starts) and starts[-1] < 45
    assert len(starts) >= len(parts) - 1  # every slide but the first says when it begins


def test_everything_is_in_the_file(slides):
    text = slides.read_text()
    assert set(re.findall(r'\bsrc="([a-z]+:)', text)) == {"data:"}
    assert not re.search(r"<(?:script|link|iframe)[^>]*(?:src|href)=", text)
    assert not re.search(r"@import|url\((?!\"data:)", text)


def test_quotations_are_those_of_the_lessons(slides):
    "Every cell that the lecture quotes exists, and its sounds are in the slides to the byte."
    cells = json.loads((COURSE / "lecture.ipynb").read_text())["cells"]
    quoted = re.findall(
        r'start\.quote\("(\w+)", "(\w+)"', "".join(sum((c["source"] for c in cells), []))
    )
    text = slides.read_text()
    assert len(quoted) >= 20
    for lesson, cell in quoted:
        stored = json.dumps(outputs_of(lesson, cell))
        pieces = re.findall(r"base64,([A-Za-z0-9+/=]{200,})", stored)
        pieces += re.findall(r'"image/png": "([A-Za-z0-9+/=]{200,})', stored)
        assert any(piece in text for piece in pieces), f"{cell} of {lesson}"


def test_formulas_are_no_markdown():
    made = markdown_html("A $a_1 * b_1 * c$ and `$no$` and $$x_t \\tag{3}$$ here.")
    assert made.count("<math") == 2 and "<em>" not in made
    assert "<code>$no$</code>" in made and "(3)" in re.sub("<[^>]+>", "", made)


@needs_browser
def test_keys_turn_the_slides(page):
    number = "document.querySelector('nav span').textContent"
    total = page.run("slides.length")
    page.press("ArrowRight", ARROW_RIGHT)
    page.press("ArrowRight", ARROW_RIGHT)
    assert page.run(number) == f"3 / {total}" and page.run("location.hash") == "#3"
    page.press("ArrowLeft", ARROW_LEFT)
    assert page.run(number) == f"2 / {total}"
    page.press("End", END)
    page.press("ArrowRight", ARROW_RIGHT)
    assert page.run(number) == f"{total} / {total}"
    page.press("Home", HOME)
    assert page.run(number) == f"1 / {total}"
    assert page.run("document.querySelectorAll('section.now').length") == 1


@needs_browser
def test_notes_are_shown_on_demand(page):
    shown = "getComputedStyle(document.querySelector('section.now + aside')).display"
    assert page.run(shown) == "none"
    page.press("s", 83)
    assert page.run(shown) == "block"
    page.press("s", 83)
    assert page.run(shown) == "none"


@needs_browser
def test_every_slide_fits_the_screen(page):
    sizes = page.run(
        "slides.map((slide, i) => { go(i); return [i + 1, slide.scrollHeight - slide.clientHeight,"
        "slide.scrollWidth - slide.clientWidth, slide.innerText.trim().length]; })"
    )
    assert [s for s in sizes if s[1] > 0 or s[2] > 0] == []
    assert all(length for *_, length in sizes)


@needs_browser
def test_every_picture_and_formula_is_drawn(page):
    empty = page.run(
        "slides.flatMap((slide, i) => { go(i); return [...slide.querySelectorAll('img, math')]"
        ".filter(e => !(e.getBoundingClientRect().height > 5) || e.naturalWidth === 0)"
        ".map(e => [i + 1, e.tagName]); })"
    )
    assert empty == []


@needs_browser
def test_every_player_decodes_and_one_plays_at_a_time(page):
    lengths = page.run(
        "Promise.all([...document.querySelectorAll('audio')].map(a => new Promise(done => {"
        "a.onloadedmetadata = () => done(a.duration); a.onerror = () => done(-1); a.load(); })))"
    )
    assert len(lengths) >= 20 and all(0.5 < length < 30 for length in lengths)
    playing = page.run(
        "(async () => { const two = [...document.querySelectorAll('audio')].slice(0, 2);"
        "for (const a of two) await a.play(); await new Promise(r => setTimeout(r, 100));"
        "return two.map(a => !a.paused); })()"
    )
    assert playing == [False, True]


@needs_browser
def test_nothing_is_asked_of_the_network(page):
    assert page.complaints() == []


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["missing.ipynb"], "missing.ipynb is no file"),
        (["empty.ipynb"], "no cell of empty.ipynb begins a slide"),
        (["text.ipynb"], "text.ipynb is no notebook"),
        (["formula.ipynb"], "formula '\\\\nothing'"),
        (["broken.ipynb"], "broken.ipynb fails: NameError"),
    ],
)
def test_what_is_refused(given, why, tmp_path):
    import nbformat.v4 as v4

    title = v4.new_markdown_cell("# Slide", metadata={"slideshow": {"slide_type": "slide"}})
    formula = v4.new_markdown_cell("$\\nothing$", metadata=title.metadata)
    broken = [title, v4.new_code_cell("nothing_known")]
    for name, cells in {"empty": [], "broken": broken, "formula": [formula]}.items():
        made = json.dumps(v4.new_notebook(cells=cells))
        (tmp_path / f"{name}.ipynb").write_text(made)
    (tmp_path / "text.ipynb").write_text("no JSON")
    done = cop_slides(*given, "-o", "made.html", cwd=tmp_path)
    assert done.returncode == 2 and why in done.stderr
    assert not (tmp_path / "made.html").exists()
