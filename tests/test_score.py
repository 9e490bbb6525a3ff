# SPDX-License-Identifier: Apache-2.0
"`cop score`: two folders in; scores, or an error of one line, out."

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from cop_repro.cli import _progress, main
from cop_repro.data.notes import make_notes, write_midi
from cop_repro.data.video import write_video
from cop_repro.judges.networks import JudgeSizes, make_judges, save_judges
from cop_repro.measure import audio_metrics as m
from cop_repro.measure.music_metrics import note_scores
from cop_repro.model.encoders import learn_words

RATE = 24_000


def notes(seed):
    r = np.random.default_rng(seed)
    t = np.sort(r.uniform(0, 2.5, 10))
    return make_notes(r.integers(50, 80, 10), t, t + 0.3, r.integers(40, 100, 10))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Three clips with sound and MIDI; the estimate has noise and one velocity for all notes."
    folder = tmp_path_factory.mktemp("score")
    for side in ("ref", "est"):
        (folder / side).mkdir()
    for i in range(3):
        r = np.random.default_rng(i)
        wav = np.sin(2 * np.pi * (300 + 100 * i) * np.arange(3 * RATE) / RATE) * np.exp(
            -np.arange(3 * RATE) / RATE
        )
        soundfile.write(folder / "ref" / f"clip{i}.wav", 0.5 * wav, RATE, subtype="FLOAT")
        soundfile.write(
            folder / "est" / f"clip{i}.flac", 0.4 * wav + 0.01 * r.normal(size=len(wav)), RATE
        )
        write_midi(notes(i), folder / "ref" / f"clip{i}.mid")
        write_midi(notes(i).replace(velocities=np.full(10, 64)), folder / "est" / f"clip{i}.mid")
    judges = make_judges(
        JudgeSizes(width=4, embedding=8, joint=16, image_size=32, vision_width=32, text_width=32),
        learn_words(["a tone"]),
        ["low", "high"],
    )
    save_judges(folder / "judges.safetensors", judges, "split")
    return folder


SOUND = "si_sdr_spec,si_sdr,mel_distance,chroma_similarity"


def scored(capsys, *arguments) -> dict:
    assert main(["score", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments) -> str:
    assert main(["score", *map(str, arguments)]) == 2
    text = capsys.readouterr().err.strip()
    assert len(text.splitlines()) == 1
    return text


def test_values_are_the_functions(made, capsys):
    names = f"{SOUND},onset_f1,note_velocity_f1,pitch_entropy"
    result = scored(capsys, made / "ref", made / "est", "--metrics", names)
    lines = result["metrics"]
    assert list(lines) == names.split(",")
    assert result["clips"] == 3
    pairs = [
        [
            soundfile.read(made / side / f"clip{i}{end}")[0].astype(np.float32)
            for side, end in (("ref", ".wav"), ("est", ".flac"))
        ]
        for i in range(3)
    ]
    assert lines["si_sdr_spec"]["value"] == pytest.approx(
        np.mean([m.si_sdr_spec(*p) for p in pairs]), rel=1e-6
    )
    assert lines["mel_distance"]["value"] == pytest.approx(
        np.mean([m.mel_distance(*p) for p in pairs]), rel=1e-6
    )
    low, high = lines["mel_distance"]["interval"]
    assert low <= lines["mel_distance"]["value"] <= high
    assert lines["mel_distance"]["n"] == 3
    assert lines["mel_distance"]["higher_is_better"] is False
    assert lines["onset_f1"]["value"] == 1
    assert lines["note_velocity_f1"]["value"] == pytest.approx(
        np.mean(
            [
                note_scores(notes(i), notes(i).replace(velocities=np.full(10, 64)))[
                    "note_velocity_f1"
                ]
                for i in range(3)
            ]
        )
    )
    assert lines["pitch_entropy"]["value"] == lines["pitch_entropy"]["reference"]


def test_set_scores(made, capsys):
    arguments = (
        made / "ref",
        made / "est",
        "--judges",
        made / "judges.safetensors",
        "--metrics",
        "fad,fd,kid,kl,inception_score,fad_infinity,clap_score",
    )
    (made / "texts.json").write_text(json.dumps({f"clip{i}": "a tone" for i in range(3)}))
    lines = scored(capsys, *arguments, "--texts", made / "texts.json")["metrics"]
    assert lines["fad"]["value"] > 0
    assert lines["fad"]["interval"][0] <= lines["fad"]["value"] <= lines["fad"]["interval"][1]
    assert lines["fad"]["n"] == 3
    assert all(
        line["extractor"].startswith("embedded judges ") and line["judge_rate"] == 16_000
        for line in lines.values()
    )
    assert len({line["ids"] for line in lines.values()}) == 1
    assert lines["fad_infinity"]["value"] is None
    assert "needs at least" in lines["fad_infinity"]["note"]
    same = scored(capsys, made / "ref", made / "ref", *arguments[2:-1], "fad,fd,kl")["metrics"]
    assert same["kl"]["value"] == 0
    assert same["fad"]["value"] < 1e-6 > same["fd"]["value"]
    (made / "works.json").write_text(json.dumps({f"clip{i}": "one work" for i in range(3)}))
    assert (
        scored(capsys, *arguments[:-1], "fd,kl", "--works", made / "works.json")["metrics"]["kl"][
            "interval"
        ]
        is None
    )
    assert "clap_score" in refused(capsys, *arguments)


def test_judges_by_kind_and_path(made, tmp_path, capsys):
    "KIND=PATH, whose path may hold the sign; a path alone is an embedded judge."
    shutil.copy(made / "judges.safetensors", tmp_path / "mAP=0.4.safetensors")
    for said in ("", "embedded="):
        assert (
            scored(
                capsys,
                made / "ref",
                made / "est",
                "--judges",
                f"{said}{tmp_path / 'mAP=0.4.safetensors'}",
                "--metrics",
                "kl",
            )["metrics"]["kl"]["n"]
            == 3
        )
    assert "no extractor 'ears'" in refused(
        capsys, made / "ref", made / "est", "--judges", f"ears={tmp_path}", "--metrics", "kl"
    )
    assert "PANNs" in refused(
        capsys,
        made / "ref",
        made / "est",
        "--judges",
        f"panns={tmp_path / 'mAP=0.4.safetensors'}",
        "--metrics",
        "kl",
    )


def test_one_clip(made, tmp_path, capsys):
    for side in ("ref", "est"):
        (tmp_path / side).mkdir()
        shutil.copy(next((made / side).glob("clip0.[wf]*")), tmp_path / side)
    lines = scored(
        capsys,
        tmp_path / "ref",
        tmp_path / "est",
        "--judges",
        made / "judges.safetensors",
        "--metrics",
        "si_sdr,fd,kl",
    )["metrics"]
    assert lines["si_sdr"]["value"] > 0
    assert lines["si_sdr"]["interval"] is None
    assert lines["fd"]["value"] is None
    assert "single clip" in lines["fd"]["note"]
    assert lines["kl"]["n"] == 1


def test_bad_folders(made, tmp_path, capsys):
    ref, est = tmp_path / "ref", tmp_path / "est"
    for side in (ref, est):
        side.mkdir()
    assert "not a folder" in refused(capsys, ref / "none", est)
    assert "no file" in refused(capsys, ref, est)
    tone = np.sin(np.arange(RATE) / 9)
    for name in ("a", "b"):
        soundfile.write(ref / f"{name}.wav", tone, RATE)
    soundfile.write(est / "a.wav", tone, RATE)
    assert "'b'" in refused(capsys, ref, est)
    assert "partner" in refused(capsys, ref, est)
    soundfile.write(est / "b.wav", tone[:9_000], RATE)
    assert "b:" in refused(capsys, ref, est, "--metrics", "si_sdr")
    assert "--cut" in refused(capsys, ref, est, "--metrics", "si_sdr")
    assert (
        scored(capsys, ref, est, "--metrics", "si_sdr", "--cut")["metrics"]["si_sdr"]["value"]
        == 100
    )
    soundfile.write(
        est / "b.wav", np.where(np.arange(RATE) > 9, np.nan, tone), RATE, subtype="FLOAT"
    )
    assert "b.wav" in refused(capsys, ref, est, "--metrics", "si_sdr")
    assert "NaN" in refused(capsys, ref, est, "--metrics", "si_sdr")
    (est / "b.wav").write_bytes(b"RIFF, but no sound")
    assert "b.wav" in refused(capsys, ref, est, "--metrics", "si_sdr")
    soundfile.write(est / "b.wav", tone, RATE)
    soundfile.write(est / "b.flac", tone, RATE)
    assert "keep one" in refused(capsys, ref, est)
    (est / "b.flac").unlink()
    assert "no metric 'beauty'" in refused(capsys, ref, est, "--metrics", "beauty")
    assert "onset_f1 cannot be scored" in refused(capsys, ref, est, "--metrics", "onset_f1")
    assert "works lack" in refused(
        capsys, ref, est, "--metrics", "si_sdr", "--works", _json(tmp_path, {"a": 1})
    )
    assert "JSON" in refused(capsys, ref, est, "--works", est / "a.wav")


def _json(folder, value):
    (folder / "map.json").write_text(json.dumps(value))
    return folder / "map.json"


def test_rates_silence_and_empty_lists(tmp_path, capsys):
    ref, est = tmp_path / "ref", tmp_path / "est"
    for side in (ref, est):
        side.mkdir()
    tone = lambda rate: np.sin(2 * np.pi * 440 * np.arange(rate) / rate) * 0.5
    for name in ("loud", "silent"):
        soundfile.write(ref / f"{name}.wav", tone(RATE) * (name == "loud"), RATE, subtype="FLOAT")
        soundfile.write(est / f"{name}.wav", tone(44_100), 44_100, subtype="FLOAT")
        write_midi(notes(1) if name == "loud" else make_notes([], [], [], []), ref / f"{name}.mid")
        write_midi(make_notes([], [], [], []), est / f"{name}.mid")
    lines = scored(
        capsys, ref, est, "--metrics", "si_sdr,mel_distance,onset_f1,velocity_mae,pitch_entropy"
    )["metrics"]
    assert lines["si_sdr"]["value"] > 20
    assert (lines["si_sdr"]["n"], lines["si_sdr"]["undefined"]) == (1, 1)
    assert lines["mel_distance"]["n"] == 2
    assert lines["onset_f1"]["value"] == 0.5
    assert lines["velocity_mae"]["value"] is None
    assert lines["velocity_mae"]["undefined"] == 2
    assert "undefined" in lines["velocity_mae"]["note"]
    assert lines["pitch_entropy"]["value"] is None
    assert lines["pitch_entropy"]["reference"] > 0


def test_videos(tmp_path, capsys):
    "A square that jumps once a second, with a click at each jump, and with clicks elsewhere."
    for side, late in (("ref", 0), ("est", 0), ("off", 12)):
        (tmp_path / side).mkdir()
        video, wav = np.zeros((100, 48, 64, 3), np.uint8), np.zeros(4 * RATE, np.float32)
        for f in range(100):
            video[f, 16:32, 10 + 8 * (f // 25) : 26 + 8 * (f // 25)] = 220
        for jump in (25, 50, 75):
            start = (jump + late) * RATE // 25
            wav[start : start + 600] = np.random.default_rng(jump).normal(size=600) * 0.3
        write_video(tmp_path / side / "clip.mp4", video, 25.0, wav=wav, sample_rate=RATE)
    together, apart = (
        scored(capsys, tmp_path / "ref", tmp_path / side, "--metrics", "av_align")["metrics"][
            "av_align"
        ]["value"]
        for side in ("est", "off")
    )
    assert together > 0.7
    assert apart == 0
    offsets = [
        scored(capsys, tmp_path / "ref", tmp_path / side, "--metrics", "motion_offset_ms")[
            "metrics"
        ]["motion_offset_ms"]["value"]
        for side in ("est", "off")
    ]
    assert abs(offsets[0]) <= 40
    assert abs(offsets[1] - 480) <= 40
    (tmp_path / "mute").mkdir()
    write_video(tmp_path / "mute" / "clip.mp4", video, 25.0)
    assert "no sound" in refused(
        capsys, tmp_path / "ref", tmp_path / "mute", "--metrics", "av_align"
    )
    (tmp_path / "still").mkdir()
    write_video(tmp_path / "still" / "clip.mp4", 0 * video, 25.0, wav=0 * wav, sample_rate=RATE)
    line = scored(
        capsys, tmp_path / "ref", tmp_path / "still", "--metrics", "av_align,motion_offset_abs_ms"
    )["metrics"]
    assert all(
        line[k]["value"] is None and line[k]["undefined"] == 1 for k in line
    )  # nothing sounds, nothing moves


def test_silence_of_either_side(tmp_path, made, capsys):
    """A silent estimate is the worst, a silent reference undefined, silence on both sides equal.

    Set scores take silence as a sound like any other."""
    tone, quiet = np.sin(np.arange(2 * RATE) / 9) * 0.5, np.zeros(2 * RATE)
    for name, ref, est in (
        ("mute", tone, quiet),
        ("lost", quiet, tone),
        ("both", quiet, quiet),
        ("none", tone, tone),
    ):
        for side, wav in (("ref", ref), ("est", est)):
            (tmp_path / name / side).mkdir(parents=True)
            soundfile.write(tmp_path / name / side / "a.wav", wav, RATE, subtype="FLOAT")
    values = {
        name: {
            k: line["value"]
            for k, line in scored(
                capsys, tmp_path / name / "ref", tmp_path / name / "est", "--metrics", SOUND
            )["metrics"].items()
        }
        for name in ("mute", "lost", "both", "none")
    }
    assert (
        values["mute"]["si_sdr"],
        values["mute"]["si_sdr_spec"],
        values["mute"]["chroma_similarity"],
    ) == (-100, -100, 0)
    assert values["mute"]["mel_distance"] > 0
    for name in ("lost", "both"):
        assert (
            values[name]["si_sdr"]
            is values[name]["si_sdr_spec"]
            is values[name]["chroma_similarity"]
            is None
        )
    assert values["both"]["mel_distance"] == values["none"]["mel_distance"] == 0
    assert values["none"]["si_sdr"] == 100
    for side in ("ref", "est"):
        for name in ("lost", "both"):
            shutil.copy(tmp_path / name / side / "a.wav", tmp_path / "mute" / side / f"{name}.wav")
    sets = scored(
        capsys,
        tmp_path / "mute" / "ref",
        tmp_path / "mute" / "est",
        "--judges",
        made / "judges.safetensors",
        "--metrics",
        "fad,fd,kl,kid",
    )["metrics"]
    assert all(line["value"] is not None and np.isfinite(line["value"]) for line in sets.values())
    assert sets["kl"]["value"] > 0


def test_more_bad_input(tmp_path, made, capsys):
    ref, est = tmp_path / "ref", tmp_path / "est"
    for side in (ref, est):
        side.mkdir()
        for name in "ab":
            soundfile.write(side / f"{name}.wav", np.sin(np.arange(RATE) / 9), RATE)
    assert "no metric is named" in refused(capsys, ref, est, "--metrics", ",")
    assert list(scored(capsys, ref, est, "--metrics", "si_sdr,si_sdr")["metrics"]) == ["si_sdr"]
    assert "one name" in refused(
        capsys, ref, est, "--metrics", "si_sdr", "--works", _json(tmp_path, {"a": ["w"], "b": "w"})
    )
    assert "one caption" in refused(
        capsys, ref, est, "--metrics", "si_sdr", "--texts", _json(tmp_path, {"a": "a tone", "b": 5})
    )
    soundfile.write(est / "c.wav", np.sin(np.arange(RATE) / 9), RATE)
    assert "'c' is only in the estimate" in refused(capsys, ref, est)
    (est / "c.wav").unlink()
    for side in (ref, est):
        soundfile.write(side / "b.wav", np.sin(np.arange(RATE // 2) / 9), RATE)
    said = refused(capsys, ref, est, "--judges", made / "judges.safetensors", "--metrics", "fad")
    assert said.count("b:") == 1
    assert "0.50 s" in said
    assert "needs" in said
    soundfile.write(est / "b.wav", np.stack([np.sin(np.arange(22_050) / 9)] * 2, 1), 44_100)
    stereo = scored(capsys, ref, est, "--metrics", "mel_distance")
    assert stereo["sample_rate"] == RATE
    assert stereo["metrics"]["mel_distance"]["n"] == 2
    soundfile.write(
        est / "b.wav", np.where(np.arange(RATE // 2) == 5, np.inf, 0), RATE, subtype="FLOAT"
    )
    for metrics in ("si_sdr", "fad"):
        assert "infinite" in refused(
            capsys, ref, est, "--judges", made / "judges.safetensors", "--metrics", metrics
        )
    (ref / "a.mid").write_bytes(b"MThd, but no notes")
    write_midi(notes(0), est / "a.mid")
    (ref / "b.mid").write_bytes(b"")
    write_midi(notes(0), est / "b.mid")
    assert "a:" in refused(capsys, ref, est, "--metrics", "onset_f1")
    assert "a.mid" in refused(capsys, ref, est, "--metrics", "onset_f1")


def test_empty_lists_and_one_clip(tmp_path, capsys):
    for side, first in (("ref", notes(0)), ("est", make_notes([], [], [], []))):
        (tmp_path / side).mkdir()
        write_midi(first, tmp_path / side / "a.mid")
    lines = scored(capsys, tmp_path / "ref", tmp_path / "est")["metrics"]
    assert (
        lines["onset_f1"]["value"]
        == 0
        == lines["note_velocity_f1"]["value"]
        == lines["frame_f1_micro"]["value"]
    )
    assert lines["onset_f1"]["interval"] is None
    assert lines["onset_f1"]["n"] == 1
    assert (
        lines["velocity_mae"]["value"]
        is lines["scale_consistency"]["value"]
        is lines["average_inter_onset_interval"]["value"]
        is None
    )
    assert lines["scale_consistency"]["reference"] > 0.5
    shutil.copy(tmp_path / "est" / "a.mid", tmp_path / "ref" / "a.mid")
    lines = scored(capsys, tmp_path / "ref", tmp_path / "est")["metrics"]
    assert lines["onset_f1"]["value"] == 1 == lines["frame_f1_micro"]["value"]
    assert lines["velocity_mae"]["undefined"] == 1


def test_output_file_and_table(made, tmp_path, capsys):
    assert (
        main(["score", str(made / "ref"), str(made / "est"), "--metrics", "si_sdr,mel_distance"])
        == 0
    )
    text = capsys.readouterr().out
    assert "mel_distance" in text
    assert "lower is better" in text
    assert (
        main(
            [
                "score",
                str(made / "ref"),
                str(made / "est"),
                "--metrics",
                "si_sdr",
                "-o",
                str(tmp_path / "out.json"),
            ]
        )
        == 0
    )
    assert set(json.loads((tmp_path / "out.json").read_text())["metrics"]["si_sdr"]) >= {
        "value",
        "interval",
        "n",
        "extractor",
    }


def test_speed_of_the_scoring(capsys):
    "Timings compare equal quantities; memory is measured for few and for many clips."
    assert main(["speed", "--scoring", "--clips", "10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(row["apart"] < 1e-5 and row["ours"] > 0 < row["other"] for row in found["scoring"])
    assert {"si_sdr, 10 clips", "note_scores, 10 clips"} <= {
        row["what"] for row in found["scoring"]
    }
    assert [row["clips"] for row in found["memory"]] == [10, 10]
    assert all(row["peak_mb"] > 50 for row in found["memory"])
    assert main(["speed", "--scoring", "--clips", "3"]) == 2
    assert "at least 10" in capsys.readouterr().err


def video(path, late=0, sound=True):
    "A square that jumps once a second, with a click at each jump, `late` frames later."
    frames, wav = np.zeros((100, 48, 64, 3), np.uint8), np.zeros(4 * RATE, np.float32)
    for f in range(100):
        frames[f, 16:32, 10 + 8 * (f // 25) : 26 + 8 * (f // 25)] = 220
    for jump in (25, 50, 75):
        start = (jump + late) * RATE // 25
        wav[start : start + 600] = np.random.default_rng(jump).normal(size=600) * 0.3
    write_video(path, frames, 25.0, wav=wav if sound else None, sample_rate=RATE)


def test_alignment_has_the_true_sound_and_another_clips_beside(tmp_path, capsys):
    for side in ("ref", "est"):
        (tmp_path / side).mkdir()
    for name, late in (("a", 0), ("b", 12)):
        video(tmp_path / "ref" / f"{name}.mp4")
        video(tmp_path / "est" / f"{name}.mp4", late)
    lines = scored(
        capsys,
        tmp_path / "ref",
        tmp_path / "est",
        "--metrics",
        "av_align,av_align_2023,motion_offset_ms",
    )["metrics"]
    assert lines["av_align"]["reference"] > 0.7
    assert (
        lines["av_align"]["value"]
        == pytest.approx(lines["av_align"]["shuffled"])
        == pytest.approx(lines["av_align"]["reference"] / 2)
    )
    assert lines["av_align_2023"]["reference"] > lines["av_align_2023"]["value"]
    assert "shuffled" not in lines["motion_offset_ms"]
    assert (
        main(["score", str(tmp_path / "ref"), str(tmp_path / "est"), "--metrics", "av_align"]) == 0
    )
    assert "another clip's sound" in capsys.readouterr().out


def test_silent_videos_are_no_sounds(tmp_path, capsys):
    "Silent true videos beside MIDI, sounds in the estimate: only what is possible is scored."
    for side in ("ref", "est"):
        (tmp_path / side).mkdir()
        for i in range(2):
            write_midi(notes(i), tmp_path / side / f"c{i}.mid")
    for i in range(2):
        video(tmp_path / "ref" / f"c{i}.mp4", sound=False)
        soundfile.write(tmp_path / "est" / f"c{i}.wav", np.sin(np.arange(4 * RATE) / 9), RATE)
    lines = scored(capsys, tmp_path / "ref", tmp_path / "est")["metrics"]
    assert "si_sdr" not in lines
    assert lines["onset_f1"]["value"] == 1
    assert lines["transcription_f1"]["n"] == 2
    said = refused(capsys, tmp_path / "ref", tmp_path / "est", "--metrics", "si_sdr")
    assert "c0.mp4 of the reference has no sound" in said


def test_what_fails_is_noted_where_no_metric_was_named(made, tmp_path, capsys):
    for side in ("ref", "est"):
        shutil.copytree(made / side, tmp_path / side)
    (tmp_path / "est" / "clip1.mid").write_bytes(b"MThd, but no notes")
    arguments = (tmp_path / "ref", tmp_path / "est", "--judges", made / "judges.safetensors")
    lines = scored(capsys, *arguments)["metrics"]
    assert lines["onset_f1"]["value"] is lines["pitch_entropy"]["value"] is None
    assert "clip1" in lines["onset_f1"]["note"]
    assert lines["onset_f1"]["n"] == 0
    assert lines["si_sdr"]["n"] == 3
    assert lines["fad"]["value"] > 0
    assert lines["transcription_f1"]["value"] is not None
    assert "clip1" in refused(capsys, *arguments, "--metrics", "onset_f1,si_sdr")
    soundfile.write(tmp_path / "est" / "clip2.flac", np.zeros(100), RATE)
    lines = scored(capsys, *arguments)["metrics"]
    assert lines["si_sdr"]["value"] is lines["fad"]["value"] is lines["kl"]["value"] is None
    assert "clip2" in lines["kl"]["note"]
    assert "--cut" in lines["si_sdr"]["note"]


def test_progress_goes_beside_the_output(made, capsys, monkeypatch):
    "A long run reports progress on stderr; stdout holds the JSON alone. A short run is silent."
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr(_progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert (
        main(["score", str(made / "ref"), str(made / "est"), "--metrics", "si_sdr", "--json"]) == 0
    )
    said = capsys.readouterr()
    assert json.loads(said.out)["clips"] == 3
    assert said.err.splitlines() == ["[    2/3] clip1"]
    monkeypatch.setitem(_progress._last, "at", 10_000)
    _progress.progress(3, 3, "clip2", beside=True)
    assert capsys.readouterr().err == ""


def test_style_runs_to_the_end_of_the_last_note(tmp_path, capsys):
    "The golden piece through files: its last note ends on the bar line, so there are three bars."
    t = np.array([0, 24, 48, 72, 96, 120, 168]) / 48
    for side in ("ref", "est"):
        (tmp_path / side).mkdir()
        write_midi(
            make_notes(
                [60, 62, 64, 65, 67, 66, 72],
                t,
                t + np.array([24, 24, 24, 24, 24, 12, 24]) / 48,
                [64] * 7,
            ),
            tmp_path / side / "a.mid",
        )
    found = scored(
        capsys,
        tmp_path / "ref",
        tmp_path / "est",
        "--metrics",
        "grooving_similarity,empty_beat_rate",
    )
    assert found["metrics"]["grooving_similarity"]["value"] == pytest.approx(0.979167, abs=1e-6)
    assert found["metrics"]["empty_beat_rate"]["value"] == pytest.approx(1 / 9)
    assert found["grid"]["num_bars"] == "to the end of the last note"
    assert found["grid"]["positions"] == 96
