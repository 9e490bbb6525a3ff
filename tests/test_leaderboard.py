# SPDX-License-Identifier: Apache-2.0
"""The leaderboard as a browser shows it, opened from disk with the network refused."""

import json
import re

import pytest
from chromium import CHROMIUM, Page

from cop_repro.benchmark.leaderboard import (
    MAX_MEDIA_BYTES,
    CardClip,
    leaderboard,
    write_leaderboard,
)
from cop_repro.benchmark.level_values import Loss, Waterfall
from cop_repro.benchmark.protocol import LEVELS
from cop_repro.cli import main
from cop_repro.core import BadInput

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
EVIL = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
NOTES = ("L1", "L2", "L3")


def result(system, base, parameters=None, levels=(*NOTES, "L4", "general"), **about):
    "A result whose scores are `base` plus a number of the metric; None leaves all empty."
    lines = []
    for level in levels:
        for i, metric in enumerate(LEVELS[level].metrics):
            value = None if base is None else base + i / 100
            low, high = (None, None) if value is None else (value - 0.05, value + 0.05)
            line = {"level": level, "metric": metric, "value": value, "j": 0}
            lines.append({**line, "ci_low": low, "ci_high": high, "n": 3, "note": "none made"})
    facts = {"system": system, "levels": list(levels), "mode": "cascade", "parameters": parameters}
    facts |= {"card": "", "trained_on": [], "licence": "CC0-1.0", "url": "https://example.org"}
    scored = {"piano": dict.fromkeys(("split_hash", "ids", "truth"), "0" * 16)}
    return {"system": facts | about, "scored": scored, "lines": lines}


def a_board():
    systems = [
        result("beta", 0.5, 2000),
        result("alpha", 0.7, 10),
        result(EVIL, 0.3, 300, card=EVIL, licence=EVIL),
        result("nothing", None),
    ]
    controls = [result("random_notes", 0.1), result("silence", 0.0), result("codec", 0.95)]
    losses = [Loss(1, 0.1, 0.05, 0.15, False), Loss(2, -0.05, -0.1, 0.0, True)]
    return leaderboard(systems, controls, [Waterfall("alpha", "L3", 0.5, losses)])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    place = tmp_path_factory.mktemp("board")
    path = write_leaderboard(place / "page", a_board())
    browser = Page(place / "profile")
    browser.open(f"file://{path}")
    yield browser
    browser.close()


def names(page, body="systems"):
    found = f"document.querySelectorAll('tbody.{body} td:first-child')"
    return page.run(f"[...{found}].map((cell) => cell.textContent)")


def cells(page, column):
    "Texts of a column of the systems, in the order of the rows."
    return page.run(
        "(() => { const heads = [...document.querySelectorAll('th[data-column]')];"
        f"const i = heads.findIndex((head) => head.dataset.column === {json.dumps(column)});"
        "return [...document.querySelectorAll('tbody.systems tr')]"
        ".map((row) => row.children[i].firstChild.textContent); })()"
    )


def choose(page, level):
    page.run(f"document.getElementById('tab-{list(LEVELS).index(level)}').click()")


def sort(page, column):
    page.run(f"document.querySelector('th[data-column=\"{column}\"] button').click()")
    return page.run(f"document.querySelector('th[data-column=\"{column}\"]').ariaSort")


@needs_browser
def test_text_of_submitters_stays_text(page):
    assert page.run("document.title") == "The CoP benchmark"
    choose(page, "L1")
    assert EVIL in names(page)
    assert page.run("document.querySelectorAll('main script, main img').length") == 0
    assert page.complaints() == []


@needs_browser
@pytest.mark.parametrize("level", LEVELS)
def test_every_column_sorts_both_ways_with_empty_values_last(page, level):
    choose(page, level)
    columns = page.run(
        "[...document.querySelectorAll('th[data-column]')].map((head) => head.dataset.column)"
    )
    assert columns[1] == LEVELS[level].headline
    assert set(LEVELS[level].metrics) < set(columns)
    values = {"beta": 0.5, "alpha": 0.7, EVIL: 0.3}
    if level == "general":
        assert names(page) == [EVIL, "beta", "alpha", "nothing"]  # a smaller distance is better
    else:
        assert names(page) == ["alpha", "beta", EVIL, "nothing"]
    for column in columns:
        seen = {}
        for _ in range(2):
            direction = sort(page, column)
            seen[direction] = names(page)
        assert set(seen) == {"ascending", "descending"}, column
        if column == "mode":
            continue
        if column == "system":
            assert seen["ascending"] == seen["descending"][::-1]
            assert sorted(seen["ascending"]) == sorted([*values, "nothing"])
            continue
        key = {"beta": 2000, "alpha": 10, EVIL: 300} if column == "parameters" else values
        rising = sorted(key, key=key.get)
        assert seen["ascending"] == [*rising, "nothing"], column
        assert seen["descending"] == [*rising[::-1], "nothing"], column
        assert cells(page, column)[-1] == "–"


@needs_browser
def test_controls_stand_in_their_own_band(page):
    choose(page, "L1")
    assert sorted(names(page, "controls")) == ["codec", "random_notes", "silence"]
    assert not {"codec", "silence"} & set(names(page))


@needs_browser
def test_chance_and_ceiling_are_rules(page):
    choose(page, "L1")
    place = "document.querySelector('tbody.systems .track .{}').style.left"
    chance, ceiling = (float(page.run(place.format(c))[:-1]) for c in ("chance", "ceiling"))
    assert 0 < chance < ceiling <= 100
    assert "chance (orange) 0.1" in page.run("document.getElementById('rules').textContent")


@needs_browser
def test_the_waterfall_is_a_picture_and_a_table(page):
    table = page.run("document.querySelector('#falls table').innerText")
    assert [line.split("\t")[0] for line in table.splitlines()] == [
        "cascade",
        "truth of L1",
        "truth of L2 (the truth is worse)",
        "oracle",
    ]
    assert page.run("document.querySelectorAll('#falls .fall > div').length") == 4
    assert page.run("document.querySelectorAll('#falls .worse').length") == 1


@needs_browser
def test_the_keyboard_reaches_tabs_and_columns(page):
    page.run("document.getElementById('tab-0').click()")
    page.run("document.getElementById('tab-0').focus()")
    page.press("ArrowRight", 39)
    assert page.run("document.activeElement.id") == "tab-1"
    assert page.run("document.querySelectorAll('[role=tab][aria-selected=true]').length") == 1
    page.run("document.querySelector('th[data-column=\"parameters\"] button').focus()")
    page.press(" ", 32)
    held = "document.activeElement.parentElement"
    assert page.run(f"{held}.dataset.column") == "parameters"
    first = page.run(f"{held}.ariaSort")
    page.press(" ", 32)
    assert {first, page.run(f"{held}.ariaSort")} == {"ascending", "descending"}
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.run(outline) == "solid"


@needs_browser
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_is_no_wider_than_its_window(page, width):
    page.resize(width)
    assert page.run("document.documentElement.scrollWidth") <= width


def test_nothing_refers_to_a_network(tmp_path):
    board = a_board()
    path = write_leaderboard(tmp_path / "page", board)
    text = path.read_text("utf-8")
    code = re.sub(r'(<script type="application/json".*?>).*?(</script>)', r"\1\2", text, flags=re.S)
    assert not re.search(r"https?:", code)
    assert "innerHTML" not in code
    assert "default-src 'none'" in code
    assert json.loads((path.parent / "leaderboard.json").read_text("utf-8")) == board


def test_media_have_numbers_for_names_and_a_limit(tmp_path):
    (tmp_path / "a.webm").write_bytes(bytes(1000))
    clips = {"alpha": [CardClip("a clip", sound=tmp_path / "a.webm")]}
    path = write_leaderboard(tmp_path / "page", a_board(), clips)
    assert (path.parent / "clip-0-sound.webm").stat().st_size == 1000
    (tmp_path / "a.webm").write_bytes(bytes(MAX_MEDIA_BYTES + 1))
    with pytest.raises(BadInput, match="3 MB is the most"):
        write_leaderboard(tmp_path / "large", a_board(), clips)
    assert not (tmp_path / "large").exists()
    with pytest.raises(BadInput, match="has no result"):
        write_leaderboard(tmp_path / "large", a_board(), {"unknown": []})


def test_the_published_page_is_that_of_the_published_results(root, tmp_path):
    assert (
        main(["bench", "board", str(root / "reports" / "benchmark"), "-o", str(tmp_path / "page")])
        == 0
    )
    published = root / "reports" / "leaderboard"
    names = sorted(path.name for path in published.iterdir())
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == names
    for name in names:
        assert (tmp_path / "page" / name).read_bytes() == (published / name).read_bytes(), name
