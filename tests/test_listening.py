# SPDX-License-Identifier: Apache-2.0
"""Listening: which clips, the page as a browser shows it, raters' files, and MOS in the tables.

The page is opened from disk with the network refused. Without Chromium those tests are skipped.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from chromium import CHROMIUM, Page

from cop_repro.cli import main
from cop_repro.core import RATES, BadInput, ParamsError
from cop_repro.data.notes import make_notes
from cop_repro.evaluation import evaluate, listening
from cop_repro.evaluation.evaluate import KeptClip, ListeningRule, choose_music
from cop_repro.evaluation.listening import (
    FORMAT,
    MAX_BYTES,
    QUESTIONS,
    PageClip,
    PageSound,
    check_ratings,
    crossed_interval,
    opinion_results,
    opinion_scores,
    rated_rows,
    write_page,
)
from cop_repro.evaluation.tables import load_tables
from cop_repro.measure.players import loudness_lufs, matched

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
DURATION_S = 2.0


def tone(frequency, level=0.1, duration_s=DURATION_S):
    time_s = np.arange(round(duration_s * RATES.sample_rate)) / RATES.sample_rate
    return level * np.sin(2 * np.pi * frequency * time_s) * np.exp(-time_s)


def line(pitches, gap_s=0.25):
    "Single notes at an even pace."
    onsets = gap_s * np.arange(len(pitches))
    return make_notes(pitches, onsets, onsets + gap_s / 2, np.full(len(pitches), 64))


# Which clips


def test_music_is_chosen_by_density_and_work():
    notes = {
        "scale": line([60, 62, 64, 65, 67, 69, 71] * 5),
        "dense": line([60, 67, 64] * 12),
        "dense, again": line([60, 67, 64] * 11),
        "lighter": line([60, 67, 64] * 8),
        "few": line([60, 67, 64]),
    }
    works = {clip: clip.split(",")[0] for clip in notes}
    assert choose_music(notes, works, ListeningRule()) == ["dense", "lighter", "dense, again"]
    only = ListeningRule(works=("l*",))
    assert choose_music(notes, works, only) == ["lighter"]
    without = ListeningRule(without=("dense",), min_attacks=3, max_stepwise=1.0)
    assert choose_music(notes, works, without) == ["scale", "lighter", "few"]


class FakeStore:
    "What `kept_clips` asks of a store of captions."

    folder = Path("t2a")

    def __init__(self, labels):
        self.index = [
            {"clip_id": f"c{i}", "work_id": f"c{i}", "label": label, "text": f"a {label}"}
            for i, label in enumerate(labels)
        ]

    def values(self, name, rows):
        return [self.index[row][name] for row in rows]


def test_captions_take_turns_by_label(monkeypatch):
    monkeypatch.setattr(evaluate, "store_wav", lambda store, row: np.full(4, row))
    store = FakeStore(["bell", "bell", "door", "bell", "door", "wind"])
    kept = evaluate.kept_clips(store, range(6), ListeningRule(t2a=4))
    assert [clip.clip_id for clip in kept] == ["c0", "c2", "c5", "c1"]
    assert kept[1].wav[0] == 2 and kept[1].text == "a door" and kept[1].kind == "t2a"
    with pytest.raises(ParamsError, match="asks for 7 t2a clips, and 6 of 6"):
        evaluate.kept_clips(store, range(6), ListeningRule(t2a=7))


def test_rule_of_the_default_run_is_readable(root):
    "The parameters hold the whole rule, and scales do not pass it."
    params = yaml.safe_load((root / "params.yaml").read_text())
    rule = ListeningRule(**params["evaluate"]["listening"])
    assert rule.piano == 6
    scale = line([60, 62, 64, 65, 67, 69, 71] * 5)
    assert choose_music({"scale": scale}, {"scale": "w"}, rule) == []
    assert params["report"]["examples"] <= rule.piano


def scored(clip, suffix, wav, notes=None):
    return {"clip_id": clip, "suffix": suffix, "metrics": {}, "notes": notes, "wav": wav}


def test_kept_sounds_come_back(tmp_path):
    kept = [KeptClip(f"c{i}", f"w{i}", "foley", "a door", tone(400 + i)) for i in (2, 0)]
    rows = {
        "base": [scored(f"c{i}", "", tone(100 * (i + 1))) for i in range(3)],
        "cl": [scored(f"c{i}", "other", tone(150 * (i + 1))) for i in range(3)],
        "roll": [scored(f"c{i}", "", None) for i in range(3)],
    }
    evaluate.save_scores(tmp_path / "rows", rows, dict.fromkeys(rows, kept))
    folders = evaluate.row_folders(tmp_path, {"": dict.fromkeys(rows)})
    found = evaluate.kept_sounds(folders)
    assert {clip: sorted(keys) for clip, keys in found.items()} == {
        "c2": [("", ""), ("base", ""), ("cl", "other")],
        "c0": [("", ""), ("base", ""), ("cl", "other")],
    }
    np.testing.assert_allclose(evaluate.read_kept(found["c2"]["", ""]), tone(402), atol=1e-4)
    np.testing.assert_allclose(evaluate.read_kept(found["c0"]["base", ""]), tone(100), atol=1e-4)
    assert evaluate.kept_list(folders["roll"]) == []
    assert len(list(tmp_path.rglob("*true_sound.flac"))) == 2


# The page


ROWS = (
    ("true sound", "Truth"),
    ("codec", "Truth"),
    ("cop_piano", "Rows"),
    ("regression", "Rows"),
    ("noise", "Controls"),
)
NOTES = ([60, 64, 67], [0.0, 0.5, 1.0], [0.4, 0.9, 1.8])


def page_clip(name, kind, frequency):
    sounds = [
        PageSound(row, group, "table4", Path(), NOTES if kind == "piano" else None)
        for row, group in ROWS
    ]
    levels = (0.1, 0.2, 0.05, 0.1, 0.3)
    wavs = [tone(frequency * (i + 2) / 2, level) for i, level in enumerate(levels)]
    about = {"clip_id": name, "work_id": f"work of {name}", "kind": kind, "text": "a </b> sound"}
    return PageClip(about, sounds, matched(wavs))


def made_page(folder):
    clips = [page_clip("c0", "piano", 300), page_clip("c1", "piano", 410)]
    clips.append(page_clip("f0", "foley", 530))
    return write_page(folder, clips, ["cop_piano", "cop_velocity"], "Profile test.")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "A small page and its folder."
    folder = tmp_path_factory.mktemp("page") / "listen"
    return made_page(folder), folder


def test_page_is_small_and_whole(page):
    about, folder = page
    assert about["rated"] == ["cop_piano", "true sound", "codec"]
    assert about["clips"] == {"c0": "work of c0", "c1": "work of c1"}
    assert json.loads((folder / "page.json").read_text()) == about
    assert sum(path.stat().st_size for path in folder.iterdir()) < MAX_BYTES
    text = (folder / "index.html").read_text("utf-8")
    assert "http://" not in text and "https://" not in text and "{{" not in text
    assert "</b>" not in text, "text of a clip ends the script's data"
    sounds = list(folder.glob("*.ogg"))
    assert len(sounds) == 15
    assert all(len(path.stem) == 12 and int(path.stem, 16) >= 0 for path in sounds)


def test_page_is_the_same_on_every_run(page, tmp_path):
    about, folder = page
    assert made_page(tmp_path / "again") == about
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_page_changes_its_id_with_a_sound(page, tmp_path):
    clips = [page_clip("c0", "piano", 300), page_clip("c1", "piano", 411)]
    other = write_page(tmp_path / "other", clips, ["cop_piano"], "Profile test.")
    assert other["id"] != page[0]["id"]


def test_sounds_of_a_clip_have_one_loudness():
    levels = [loudness_lufs(wav) for wav in page_clip("c0", "piano", 300).wavs]
    assert max(levels) - min(levels) < 0.05
    peaky = np.zeros(48_000)
    peaky[::12_000] = 0.9
    both = matched([tone(300), peaky])
    assert abs(loudness_lufs(both[0]) - loudness_lufs(both[1])) < 0.05
    assert max(np.abs(wav).max() for wav in both) < 0.9
    assert math.isnan(loudness_lufs(np.zeros(24_000)))


def test_order_of_sounds(root, tmp_path):
    "Truth once, codec, rows as the tables have them, then controls."
    tables = load_tables(yaml.safe_load((root / "refs" / "tables.yaml").read_text()))
    keys = [("controls", "truth"), ("controls", "noise"), ("controls", "codec")]
    keys += [("cop_piano", ""), ("audeo_style", "same_soundfont"), ("audeo_style", ""), ("", "")]
    kept = {key: tmp_path / "a.flac" for key in keys}
    found = listening.clip_sounds(kept, tables, {("controls", "truth"): NOTES})
    assert [(s.row, s.group) for s in found] == [
        ("true sound", "Truth"),
        ("codec", "Truth"),
        ("audeo_style", "Rows"),
        ("audeo_style_same_soundfont", "Rows"),
        ("cop_piano", "Rows"),
        ("noise", "Controls"),
    ]
    assert found[0].notes == NOTES and found[1].notes is None


def test_too_much_sound_is_refused():
    with pytest.raises(BadInput, match="12000 are needed: keep fewer clips"):
        listening.bit_rate_within(100_000, 600.0)


# The page in a browser

PLAYS = """(async () => {
  const wait = ms => new Promise(done => setTimeout(done, ms));
  const made = {};
  for (const sound of page.clips.flatMap(c => c.sounds)) {
    const audio = new Audio(sound.file);
    await audio.play();
    for (let i = 0; i < 400 && audio.currentTime < 0.1; i++) await wait(10);
    made[sound.file] = [audio.duration, audio.currentTime];
    audio.pause();
  }
  return made;
})()"""
WAIT = "new Promise(done => setTimeout(done, {}))"
STATE = """({
  sound: clip.sounds[player.current].row,
  time: player.time,
  playing: player.playing,
  heard: player.sounds.filter(s => !s.paused).length,
})"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Page(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


@pytest.fixture
def opened(browser, page):
    browser.resize(1400)
    browser.open((page[1] / "index.html").as_uri())
    browser.run("localStorage.clear()")
    browser.open((page[1] / "index.html").as_uri())
    yield browser
    assert browser.complaints() == []


def until(browser, condition):
    "Wait until an expression holds."
    script = (
        f"(async () => {{ for (let i = 0; i < 500 && !({condition}); i++) await {WAIT.format(20)};"
        f" return Boolean({condition}); }})()"
    )
    assert browser.run(script), condition


@needs_browser
def test_every_sound_decodes_and_plays(opened):
    made = opened.run(PLAYS)
    assert len(made) == 15
    for file, (duration_s, time_s) in made.items():
        assert duration_s == pytest.approx(DURATION_S, abs=0.05), file
        assert time_s >= 0.1, file


@needs_browser
def test_switching_keeps_the_position(opened):
    opened.run("$('play').focus()")
    opened.press(" ", 32)
    until(opened, "player.time > 0.3")
    opened.run("document.querySelector('input[name=sound]').focus()")
    opened.press("ArrowDown", 40)
    until(opened, "player.sounds.filter(s => !s.paused).length === 1")
    state = opened.run(STATE)
    assert state["sound"] == "codec" and state["playing"] and state["heard"] == 1
    assert state["time"] >= 0.3, "the new sound began at its beginning"
    opened.press(" ", 32)
    before = opened.run(STATE)
    opened.press("ArrowDown", 40)
    after = opened.run(STATE)
    assert after["sound"] == "cop_piano" and after["time"] == before["time"]
    assert not after["playing"] and after["heard"] == 0


@needs_browser
def test_a_clip_of_another_kind(opened):
    opened.run("$('clip').value = 2; $('clip').dispatchEvent(new Event('change'))")
    assert opened.run("$('roll-track').hidden && $('caption').textContent") == "a </b> sound"
    assert opened.run("document.querySelectorAll('#sounds input').length") == 5


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 700, 1400])
def test_page_fits_and_can_be_read(opened, width, dark):
    opened.resize(width, dark=dark)
    for mode in ("listen", "rate"):
        opened.run(f"open('{mode}')")
        assert opened.run("document.documentElement.scrollWidth") <= width
        assert opened.run(CONTRAST) >= 4.5


CONTRAST = """(() => {
  const light = color => color.map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const parsed = text => text.match(/[\\d.]+/g).map(Number);
  const ground = element => {
    const color = parsed(getComputedStyle(element).backgroundColor);
    return color[3] === 0 ? ground(element.parentElement) : color;
  };
  let least = 21;
  for (const element of document.querySelectorAll("p, legend, span, button:enabled, label, h2")) {
    if (!element.checkVisibility()) continue;
    const pair = [parsed(getComputedStyle(element).color), ground(element)];
    const [a, b] = pair.map(color => light(color.slice(0, 3))).sort((x, y) => y - x);
    least = Math.min(least, (a + 0.05) / (b + 0.05));
  }
  return least;
})()"""


@needs_browser
def test_every_control_has_a_name(opened):
    tree = opened.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "radio", "slider", "combobox", "textbox", "progressbar"}
    controls = [n for n in tree if n.get("role", {}).get("value") in roles]
    assert len(controls) >= 8
    assert all(n["name"]["value"] for n in controls if not n["ignored"])


def rate_all(browser, leave_out=0):
    "Give every sound a score, as a rater does, but skip to the end of each sound."
    browser.run(
        "open('rate'); $('rater').value = 'anna'; $('rater').dispatchEvent(new Event('input'))"
    )
    browser.run("$('start').click()")
    count = browser.run("state.trials.length")
    for i in range(count - leave_out):
        for button in browser.run(
            "judged.sounds.map((_, i) => ['play-sound', 'play-reference'][i])"
        ):
            assert browser.run("$('next').disabled")
            browser.run(f"$('{button}').click()")
            until(browser, "judged.sound.currentTime > 0.01")
            heard = browser.run("heard.size")
            browser.run(f"judged.sound.currentTime = {DURATION_S - 0.1}")
            until(browser, f"heard.size > {heard}")
        browser.run(f"document.querySelectorAll('#scale input')[{i % 5}].click()")
        browser.run("$('next').click()")
    return count


@needs_browser
def test_blind_mode(opened, page):
    about, folder = page
    count = rate_all(opened)
    assert count == 2 * 2 * 3  # questions, clips, rated rows
    assert opened.run("$('trial').hidden && !$('end').hidden")
    orders = opened.run("state.trials.map(t => [t.question, t.clip, t.sound])")
    assert [o[0] for o in orders] == ["appeal"] * 6 + ["melody"] * 6
    assert len({tuple(o) for o in orders}) == count
    content = json.loads(opened.run("save()"))
    ratings = check_ratings({"anna.json": content}, about)
    assert len(ratings) == count and {r.rater for r in ratings} == {"anna"}
    assert [r.score for r in ratings] == [i % 5 + 1 for i in range(count)]
    shown = opened.run("$('rate').innerText")
    assert not any(row in shown for row, _ in ROWS), "a name of a row is shown to a rater"


@needs_browser
def test_ratings_survive_closing_the_page(opened, page):
    rate_all(opened, leave_out=10)
    kept = opened.run("state.trials.map(t => [t.clip, t.sound, t.score || 0])")
    opened.open((page[1] / "index.html").as_uri())
    opened.run("open('rate')")
    assert opened.run("state.trials.map(t => [t.clip, t.sound, t.score || 0])") == kept
    assert opened.run("state.place") == 2


@needs_browser
def test_orders_are_random(opened):
    orders = opened.run(
        "Array.from({length: 20}, () => JSON.stringify(trialsOf(page.questions[0])))"
    )
    assert len(set(orders)) > 10


# Raters' files

PAGE = {
    "id": "abc",
    "rated": ["cop_piano", "true sound"],
    "clips": {f"c{i}": f"w{i // 2}" for i in range(6)},
}


def ratings_of(rater, score=3, **changes):
    ratings = [
        {"clip": clip, "row": row, "question": question.name, "score": score}
        for clip in PAGE["clips"]
        for row in PAGE["rated"]
        for question in QUESTIONS
    ]
    return {"format": FORMAT, "page": "abc", "rater": rater, "ratings": ratings} | changes


def changed(**changes):
    "One file of which the first rating is changed."
    content = ratings_of("anna")
    content["ratings"][0] |= changes
    return content


@pytest.mark.parametrize(
    "content, says",
    [
        ([1], "a.json holds no ratings"),
        (ratings_of("anna", more=1), "a.json holds no ratings"),
        (ratings_of("anna", format="2"), "a.json has the format '2'"),
        (ratings_of("anna", page="xyz"), "a.json was made with page xyz, and this is page abc"),
        (ratings_of(""), "rater is ''"),
        (ratings_of("anna", ratings=[]), "a.json holds no rating"),
        (ratings_of("anna", ratings=["x"]), "a rating is 'x'"),
        (changed(clip="c9"), "unknown clip 'c9'.*the page has c0, c1"),
        (changed(clip=["c0"]), "unknown clip"),
        (changed(row="cop_pianola"), "unknown row 'cop_pianola'.*did you mean 'cop_piano'"),
        (changed(question="mood"), "unknown question 'mood'"),
        (changed(score=0), "the score of cop_piano on c0 is 0; whole numbers from 1 to 5"),
        (changed(score=6), "is 6"),
        (changed(score=3.5), "is 3.5"),
        (changed(score=True), "is True"),
        (changed(score="4"), "is '4'"),
        (changed(score=math.nan), "is nan"),
        (changed(clip="c1"), "a.json rates appeal of cop_piano on c1 2 times"),
    ],
)
def test_wrong_files_are_refused_by_name(content, says):
    with pytest.raises(BadInput, match=says):
        check_ratings({"a.json": content}, PAGE)


def test_two_files_of_one_rater_are_refused():
    files = {"a.json": ratings_of("anna"), "b.json": ratings_of("anna")}
    with pytest.raises(BadInput, match="a.json and b.json are both of rater 'anna'"):
        check_ratings(files, PAGE)


def test_too_few_are_refused():
    files = {f"{name}.json": ratings_of(name) for name in "abcd"}
    with pytest.raises(BadInput, match="appeal of cop_piano has 4 raters and 6 clips; at least 5"):
        opinion_scores(check_ratings(files, PAGE), PAGE)
    files["e.json"] = ratings_of("e")
    assert {s.value for s in opinion_scores(check_ratings(files, PAGE), PAGE)} == {3.0}
    for content in files.values():
        content["ratings"] = [r for r in content["ratings"] if r["clip"] in ("c0", "c1")]
    with pytest.raises(BadInput, match="has 5 raters and 2 clips"):
        opinion_scores(check_ratings(files, PAGE), PAGE)


def test_interval_of_a_crossed_bootstrap():
    "Its variance is that of the mean over raters plus that of the mean over works."
    rng = np.random.default_rng(0)
    raters, clips = rng.normal(size=(40, 1)), rng.normal(size=(1, 30))
    scores = raters + clips
    value, low, high = crossed_interval(scores, list(range(30)), seed=0)
    expected = math.sqrt(raters.var() / 40 + clips.var() / 30)
    assert value == pytest.approx(scores.mean())
    assert (high - low) / (2 * 1.96) == pytest.approx(expected, rel=0.08)
    missing = np.where(np.arange(30) < 15, scores, np.nan)
    assert crossed_interval(missing, list(range(30)), seed=0)[0] == pytest.approx(
        scores[:, :15].mean()
    )


PAPER = {
    "columns": {"table2": {}, "table4": {}, "table5": {}},
    "table2": {"base": {"fad": 0.8}},
    "table4": {"cop_piano": {"mos_melody": 3.44, "mos_appeal": 3.54}},
    "table5": {"cop_velocity": {"mos_melody": 3.14, "mos_appeal": 3.28}},
}


def write_files(folder, names, **changes):
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        content = ratings_of(name, score=2 + i % 3, **changes)
        (folder / f"{name}.json").write_text(json.dumps(content))
    return [str(folder / f"{name}.json") for name in names]


def test_cells_are_filled_by_raters_alone(tmp_path):
    assert rated_rows(PAPER) == {"table4": ["cop_piano"], "table5": ["cop_velocity"]}
    nobody = opinion_results(tmp_path / "none", PAGE, PAPER, "embedded", "default")
    assert nobody[1] == [] and len(nobody[0]) == 4
    assert all(line.label == "not run" and line.value is None for line in nobody[0])
    write_files(tmp_path / "ratings", "abcdef")
    lines, stale = opinion_results(tmp_path / "ratings", PAGE, PAPER, "embedded", "default")
    own = {(line.table, line.row, line.metric): line for line in lines}
    found = own["table4", "cop_piano", "mos_melody"]
    assert stale == [] and found.value == 3.0 and found.ci_low < 3 < found.ci_high
    assert found.n == 6 and found.extractor == "6 raters, 36 ratings of page abc"
    assert own["table5", "cop_velocity", "mos_appeal"].label == "not run"
    write_files(tmp_path / "ratings", "abcdef", page="older")
    lines, stale = opinion_results(tmp_path / "ratings", PAGE, PAPER, "embedded", "default")
    assert len(stale) == 6 and all(line.label == "not run" for line in lines)
    write_files(tmp_path / "ratings", "ab")
    with pytest.raises(BadInput, match="2 raters"):
        opinion_results(tmp_path / "ratings", PAGE, PAPER, "embedded", "default")


def test_published_page_and_paper_agree(root):
    "Rows that raters hear are rows for which the paper prints MOS."
    paper = yaml.safe_load((root / "refs" / "paper.yaml").read_text())
    assert set(rated_rows(paper)) == {"table4", "table5"}
    assert "cop_piano" in rated_rows(paper)["table4"]


def test_command(tmp_path, capsys):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "page.json").write_text(json.dumps(PAGE))
    files = write_files(tmp_path / "ratings", "abcdef")
    command = ["mos", *files, "--page", str(tmp_path / "page")]
    assert main(command) == 0
    assert "melody   cop_piano                3.00 [" in capsys.readouterr().out
    assert main([*command, "-o", str(tmp_path / "mos.json")]) == 0
    made = json.loads((tmp_path / "mos.json").read_text())
    assert made["page"] == "abc" and len(made["scores"]) == 4
    for wrong, says in (
        (["mos", files[0], *command[1:]], "is given 2 times"),
        ([*command[:3], *command[-2:]], "2 raters"),
        ([*command[:-1], str(tmp_path)], "holds no listening page"),
        ([*command, "-o", files[0]], "is read by this command"),
        (["mos", "none.json", *command[-2:]], "none.json cannot be read"),
    ):
        assert main(wrong) == 2
        assert says in capsys.readouterr().err
    capsys.readouterr()


def test_flac_is_written_as_it_was(tmp_path):
    "16 bits are far below what a listener notices."
    wav = tone(440)
    soundfile.write(tmp_path / "a.flac", wav, RATES.sample_rate)
    back = evaluate.read_kept(tmp_path / "a.flac")
    assert np.abs(back - wav).max() <= 2**-15
