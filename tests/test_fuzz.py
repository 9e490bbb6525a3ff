# SPDX-License-Identifier: Apache-2.0
"""Bad inputs: damaged files of every kind, values of every form, links and pipes.

A reader refuses with one line or reads. It neither crashes nor hangs, takes no more than two GiB,
and leaves no file behind. `make test-fuzz` tries ten thousand files.
"""

import io
import json
import os
import warnings
import zipfile
from pathlib import Path

import fuzzing
import mido
import mutations
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cop_repro.benchmark.checks import sound_faults
from cop_repro.benchmark.leaderboard import read_clips
from cop_repro.benchmark.protocol import SCHEMAS, Faulty, foreign_fault, schema_faults
from cop_repro.benchmark.submissions import check_submission, midi_faults
from cop_repro.cli._failures import failure
from cop_repro.core import BadInput, CopError
from cop_repro.data.clips import Store, read_manifest
from cop_repro.data.keyboard import NUM_WHITE, parse_corners
from cop_repro.data.notes import LOWEST_PITCH, NUM_KEYS, read_midi
from cop_repro.data.partial_keyboards import parse_key, parse_keys
from cop_repro.data.video import read_audio
from cop_repro.evaluation.claims import read_results

MANY = int(os.environ.get("COP_FUZZ_INPUTS", "850"))  # of each kind, in `make test-fuzz`
FEW = 12
REPEATABLE = settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def findings(names, count: int, place: Path) -> list[str]:
    "What is wrong, with the kind and the number of the input."
    made = list(fuzzing.outcomes(names, range(count), place))
    assert len(made) == len(names) * count
    return [f"{o.kind} {o.number}: {o.what}" for o in made if o.is_finding]


def test_some_damaged_files_of_every_kind(tmp_path):
    assert findings(list(fuzzing.KINDS), FEW, tmp_path) == []


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", fuzzing.KINDS)
def test_many_damaged_files(kind, tmp_path):
    assert findings([kind], MANY, tmp_path) == []


# The harness itself: each kind of misbehaviour is found, and the inputs behind it are tried.


def spoilt(monkeypatch, tmp_path, body: str) -> list:
    "Outcomes of three inputs of a reader with this body, where input 1 is the bad one."
    script = tmp_path / "spoilt.py"
    script.write_text(
        "import sys, os, time, ctypes\n"
        f"sys.path.insert(0, {str(Path(fuzzing.__file__).parent)!r})\n"
        "import fuzzing\n"
        "fuzzing.LONGEST_S = 1\n"
        "def make(folder):\n    (folder / 'a.bin').write_bytes(b'abc')\n"
        "def read(folder):\n"
        "    at = folder.parent / 'at'\n"
        "    if not at.exists() or '1]' not in at.read_text():\n        return\n"
        f"    {body}\n"
        "fuzzing.KINDS['spoilt'] = fuzzing.Kind(make, read)\n"
        "kinds, start, stop, where = sys.argv[1:]\n"
        "fuzzing.work(['spoilt'], range(int(start), int(stop)), fuzzing.Path(where))\n"
    )
    monkeypatch.setattr(fuzzing, "__file__", str(script))
    return list(fuzzing.outcomes(["spoilt"], range(3), tmp_path / "place"))


@pytest.mark.parametrize(
    "body, said",
    [
        ("raise KeyError('a')", "KeyError at"),
        ("time.sleep(60)", "hangs"),
        ("bytearray(3 << 30)", "MemoryError"),
        ("(folder / 'left').write_text('')", "left left"),
        ("os.kill(os.getpid(), 11)", "code -11"),
    ],
    ids=["crash", "hang", "memory", "file", "signal"],
)
def test_misbehaviour_is_found(body, said, monkeypatch, tmp_path):
    one, two, three = spoilt(monkeypatch, tmp_path, body)
    assert (one.what, three.what) == ("read", "read")
    assert said in two.what and two.is_finding and two.number == 1


@pytest.mark.parametrize("kind", mutations.BYTES, ids=lambda kind: kind.__name__)
def test_every_kind_of_damage_changes_a_file(kind):
    data = np.random.default_rng(0).bytes(500)
    made = [bytes(kind(bytearray(data), np.random.default_rng(i))) for i in range(20)]
    assert sum(one != data for one in made) > 15 and len(set(made)) > 10


# Values of every form.


BYTE = st.integers(0, 127)
MESSAGES = st.one_of(
    st.builds(
        mido.Message,
        st.sampled_from(["note_on", "note_off"]),
        note=BYTE,
        velocity=BYTE,
        channel=st.integers(0, 15),
        time=st.integers(0, 2**28 - 1) | st.integers(0, 500),
    ),
    st.builds(
        lambda control, value, time: mido.Message(
            "control_change", control=control, value=value, time=time
        ),
        st.sampled_from([64, 66, 67, 121, 123]),
        BYTE,
        st.integers(0, 500),
    ),
    st.builds(
        lambda tempo, time: mido.MetaMessage("set_tempo", tempo=tempo, time=time),
        st.integers(0, 2**24 - 1),
        st.integers(0, 500),
    ),
)


@REPEATABLE
@given(st.lists(st.lists(MESSAGES, max_size=12), max_size=4), st.integers(1, 32767))
def test_any_midi_messages_are_notes_of_a_piano_or_refused(tmp_path_factory, tracks, ticks):
    file = mido.MidiFile(type=1, ticks_per_beat=ticks)
    file.tracks.extend(mido.MidiTrack(track) for track in tracks)
    path = tmp_path_factory.getbasetemp() / "any.mid"
    file.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            notes = read_midi(path, drop_foreign=True)
        except BadInput:
            return
    assert (notes.offsets_s > notes.onsets_s).all() and (notes.onsets_s >= 0).all()
    assert set(notes.pitches) <= set(range(LOWEST_PITCH, LOWEST_PITCH + NUM_KEYS))
    assert all(1 <= velocity <= 127 for velocity in notes.velocities)


def test_a_key_signature_that_no_key_has_is_a_fault(tmp_path):
    "`read_midi` reads past it; other programs, such as those based on mido, refuse the file."
    fuzzing.make_midi(tmp_path)
    data = (tmp_path / "b.mid").read_bytes()
    track = data.index(b"MTrk")
    size = int.from_bytes(data[track + 4 : track + 8], "big")
    odd = b"\x00\xff\x59\x02\x07\xa1"
    head = data[:track] + b"MTrk" + (size + len(odd)).to_bytes(4, "big")
    (tmp_path / "b.mid").write_bytes(head + odd + data[track + 8 :])
    assert any("7 sharps" in fault for fault in midi_faults(tmp_path / "b.mid", 1.0))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@REPEATABLE
@given(JSON, st.sampled_from(sorted(SCHEMAS)))
def test_no_value_without_its_form_is_accepted(value, kind):
    assert schema_faults(value, kind) and all(
        isinstance(f, str) for f in schema_faults(value, kind)
    )


KEY_TEXT = st.text(alphabet="0123456789,.- ABCDEFGabc#Cé\n", max_size=24)
NUMBERS = st.floats(-1e6, 1e6) | st.sampled_from([float("nan"), float("inf")])
CORNERS = st.lists(st.lists(NUMBERS.map(str), max_size=3).map(",".join), max_size=5).map(" ".join)
SPANS = st.tuples(st.integers(-5, 140), st.integers(-5, 140)).map(lambda s: f"{s[0]}-{s[1]}")


def parsed(reader, text: str):
    "What a reader makes of a text; None if it refuses it in one line."
    try:
        return reader(text)
    except CopError as error:
        assert len(failure(error).splitlines()) == 1
        return None


@REPEATABLE
@given(KEY_TEXT | SPANS, KEY_TEXT | st.integers(-5, 140).map(str), KEY_TEXT | CORNERS)
def test_keys_and_corners_are_those_of_a_piano_or_refused(keys, lowest, corners):
    first, stop = parsed(parse_keys, keys) or (0, 1)
    assert 0 <= first < stop <= NUM_WHITE
    assert 0 <= (parsed(parse_key, lowest) or 0) < NUM_WHITE
    found = parsed(parse_corners, corners)
    assert found is None or (found.shape == (4, 2) and np.isfinite(found).all())


# Content that the package wrote once, and that has been edited since.


@pytest.mark.parametrize("content", [b"\xff\xfe\x83", b"[]", b'{"format": 1}', b'{"format": 1'])
def test_an_edited_manifest_is_one_line(content, tmp_path):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(Exception) as caught:
        read_manifest(tmp_path / "manifest.json")
    assert "manifest.json" in failure(caught.value)


def test_an_edited_result_file_is_one_line(root, tmp_path):
    held = json.loads((root / "reports" / "results.json").read_text("utf-8"))
    held["lines"][0]["made_by"] = []
    (tmp_path / "results.json").write_text(json.dumps(held))
    with pytest.raises(Exception) as caught:
        read_results(tmp_path / "results.json")
    assert "results.json" in failure(caught.value)


@pytest.mark.parametrize("content", ["{}", '{"rows": 1, "about": {}, "columns": ["a"]}'])
def test_an_edited_store_is_one_line(content, tmp_path):
    (tmp_path / "index.json").write_text(content)
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': (\n\n\n\n\n\n")
    with pytest.raises(Exception) as caught:
        Store(tmp_path)
    assert str(tmp_path) in failure(caught.value)


def test_an_error_of_the_program_is_not_one_line():
    with pytest.raises(KeyError) as caught:
        {}["a"]
    assert failure(caught.value) is None


# Tricks in folders of strangers.


@pytest.fixture
def submission(tmp_path):
    fuzzing.make_submission(tmp_path)
    check_submission(tmp_path / "sub", fuzzing.bench())
    return tmp_path / "sub"


def faults_of(folder: Path) -> list[str]:
    with pytest.raises(Faulty) as caught:
        check_submission(folder, fuzzing.bench())
    return caught.value.faults


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
@pytest.mark.parametrize("name", ["one.mid", "two.wav", "submission.json"])
def test_links_and_pipes_are_not_opened(name, submission, tmp_path):
    outside = (submission / name).rename(tmp_path / name)
    (submission / name).symlink_to(outside)
    assert any(f"{name} is a link" in fault for fault in faults_of(submission))
    (submission / name).unlink()
    (submission / name).symlink_to(tmp_path, target_is_directory=True)
    assert any(f"{name} is a link" in fault for fault in faults_of(submission))
    (submission / name).unlink()
    os.mkfifo(submission / name)
    assert any(f"{name} is no regular file" in fault for fault in faults_of(submission))


def test_an_archive_is_no_submission(submission, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../outside.txt", "x")
    (tmp_path / "sub.zip").write_bytes(packed.getvalue())
    with pytest.raises(BadInput, match="no folder"):
        check_submission(tmp_path / "sub.zip", fuzzing.bench())
    (submission / "more.zip").write_bytes(packed.getvalue())
    assert any("more.zip is no file of a submission" in fault for fault in faults_of(submission))
    assert not list(tmp_path.parent.rglob("outside.txt"))


@pytest.mark.parametrize("name", ["../a.mp4", "/etc/a.mp4", "a/b.mp4", "..", "a\\b.mp4", ""])
def test_names_of_files_stay_in_their_folder(name):
    view = {"file": name, "width": 16, "height": 16}
    assert any("views.top.file" in f for f in schema_faults({"views": {"top": view}}, "annotation"))
    view["file"] = "top.mp4"
    said = schema_faults({"views": {"top": view}}, "annotation")
    assert not any("views.top.file" in fault for fault in said)


def test_players_of_a_card_are_no_links(tmp_path):
    "The page is published: a link would publish a file of this machine."
    (tmp_path / "secret").write_text("x")
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "a.png").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInput, match="a.png is a link"):
        read_clips(tmp_path / "card")
    assert foreign_fault(tmp_path / "secret") is None


@pytest.mark.parametrize("rate", [1, 999, 1_929_403_840])
def test_a_rate_that_no_sound_has_is_refused(rate, tmp_path):
    "At 1 Hz a second of samples lasts hours, and at 1 GHz resampling takes them."
    soundfile.write(tmp_path / "a.wav", np.zeros(24_000), rate)
    with pytest.raises(BadInput, match=f"states a sample rate of {rate} Hz"):
        read_audio(tmp_path / "a.wav")
    for known in (8_000, 192_000):
        soundfile.write(tmp_path / "a.wav", np.zeros(known), known)
        assert len(read_audio(tmp_path / "a.wav")) == 24_000


def test_a_huge_sound_is_refused_unread(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.zeros(24_000 * 101), 24_000)
    monkeypatch.setattr(soundfile, "read", lambda *a, **b: pytest.fail("the sound is read"))
    assert sound_faults(tmp_path / "a.wav", 1.0) == [
        "has 2424000 samples in 1 channels; 24000 in one are needed"
    ]


def test_results_with_other_content_make_no_page(tmp_path):
    fuzzing.make_results(tmp_path)
    path = tmp_path / "results" / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lines": []}))
    with pytest.raises(Faulty, match="lines"):
        fuzzing.read_board(tmp_path)
    assert not (tmp_path / "page").exists()
