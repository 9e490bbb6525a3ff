# SPDX-License-Identifier: Apache-2.0
"`cop demo`: the first thing a newcomer runs."

import json
import re

import pytest
import soundfile

from cop_repro.cli import main
from cop_repro.cli._speed_perform import PerformSpeed, perform_lines, perform_numbers
from cop_repro.cli.demo import HELD_OUT
from cop_repro.data.notes import read_midi
from cop_repro.data.video import probe_video
from cop_repro.measure.music_metrics import note_scores

FILES = {
    "sound.wav",
    "notes.mid",
    "video.mp4",
    "picture.png",
    "report.json",
    "silent.mp4",
    "true.mid",
    "true.wav",
    "synthesised.wav",
    "overview.png",
    "poster.png",
    "index.html",
}


def test_demo_plays_what_it_renders(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "-o", str(out), "--seconds", "3"]) == 0
    assert {path.name for path in out.iterdir()} == FILES
    said = capsys.readouterr().out
    printed = float(re.search(r"^onset F1 ([01]\.\d\d)", said, re.MULTILINE).group(1))
    truth, found = read_midi(out / "true.mid"), read_midi(out / "notes.mid")
    score = note_scores(truth, found)["onset_f1"]
    assert printed == pytest.approx(score, abs=0.006)
    assert score > 0.7, "the shipped predictor finds the notes of a rendered étude"
    assert soundfile.info(out / "sound.wav").duration == pytest.approx(3, abs=0.05)
    assert probe_video(out / "silent.mp4").sample_rate is None
    assert probe_video(out / "video.mp4").sample_rate == 24_000


def test_the_page_needs_no_network_and_names_files_that_exist(tmp_path):
    out = tmp_path / "demo"
    assert main(["demo", "-o", str(out), "--seconds", "2"]) == 0
    page = (out / "index.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href|poster)="([^"]+)"', page)
    assert {"video.mp4", "poster.png", "sound.wav", "true.wav", "overview.png"} <= set(sources)
    assert all((out / name).is_file() for name in sources)
    assert "http" not in page


def test_the_etudes_are_held_out(root):
    works = json.loads((root / "data" / "manifest.json").read_text())["works"]
    test = {work for work, split in works.items() if split == "test"}
    assert {f"etude/{name}" for name in HELD_OUT} <= test


@pytest.mark.parametrize(
    "options, message",
    [
        (["--etude", "03_hammer"], "no held-out étude '03_hammer'"),
        (["--seconds", "1"], "--seconds 1: a length from 2 to 60 s"),
        (["--seconds", "nan"], "--seconds nan"),
    ],
)
def test_bad_input_is_refused_before_the_work(options, message, tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path / "demo"), *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_bench_relates_a_run_to_the_length_of_its_video():
    row = PerformSpeed("cop perform", wall_s=12.0, cpu_s=15.5, video_s=10.0)
    assert perform_lines([row])[1].endswith("12.0 s, 15.5 s of CPU: 1.20 s a second of video")
    assert PerformSpeed(**perform_numbers([row])[0]) == row
