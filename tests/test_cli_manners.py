# SPDX-License-Identifier: Apache-2.0
"""How `cop` behaves on odd input and odd machines.

Expected failures are one line and code 2, outputs are checked before the work, signals clean up.
"""

import argparse
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import mido
import numpy as np
import pytest
import soundfile
import yaml

from cop_repro import _caches, _threads, core
from cop_repro.cli import _kernel, _process, build_parser, main
from cop_repro.cli._failures import failure, one_line
from cop_repro.core import (
    BadInput,
    CopError,
    atomic_file,
    atomic_folder,
    check_output_file,
    check_output_folder,
    new_parents,
    read_json,
)

POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX signals, names and permissions")
TONE = 0.1 * np.sin(np.arange(24_000) / 9)


def refused(arguments: list, capsys, *words: str) -> str:
    "The one line with which a command refuses its arguments."
    assert main(list(map(str, arguments))) == 2
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1 and text.startswith("cop "), text
    assert all(word in text for word in words), text
    return text


@pytest.fixture
def sides(tmp_path):
    "Two folders with one equal sound each."
    for side in ("ref", "est"):
        (tmp_path / side).mkdir()
        soundfile.write(tmp_path / side / "a.wav", TONE, 24_000)
    return tmp_path


@pytest.fixture
def no_work(monkeypatch):
    "Whatever begins to compute fails the test."

    def work(*args, **options):
        raise AssertionError("the work has begun before the output was checked")

    import cop_repro.cli._experiments
    import cop_repro.cli._quick
    import cop_repro.evaluation.folders
    import cop_repro.judges.pretrained
    import cop_repro.systems.cop

    monkeypatch.setattr(cop_repro.evaluation.folders, "score_folders", work)
    monkeypatch.setattr(cop_repro.systems.cop, "load_performer", work)
    monkeypatch.setattr(cop_repro.cli._quick, "quick_performer", work)
    monkeypatch.setattr(cop_repro.cli._experiments, "rendered", work)
    monkeypatch.setattr(cop_repro.judges.pretrained, "convert_checkpoint", work)


# Outputs


BAD_FILES = {
    "a folder": ("est", "is a folder"),
    "a folder to be": ("new/", "is a folder"),
    "below a file": ("ref/a.wav/x.json", "is no folder"),
    "deep below a file": ("ref/a.wav/x/y/z.json", "is no folder"),
    "nothing": ("", "no name"),
    "blank": (" ", "no name"),
    "a long name": ("x" * 256, "too long"),
    "a long name in bytes": ("ü" * 128, "too long"),
    "a long folder name": ("x" * 256 + "/a.json", "too long"),
    "a device": ("/dev/null", "no regular file"),
    "a device's folder": ("/dev/new.json", "no regular file"),
}
BAD_FOLDERS = {
    name: case for name, case in BAD_FILES.items() if "a folder" not in name and "devi" not in name
} | {"a file": ("ref/a.wav", "is a file"), "a device": ("/dev/null", "is a file")}


def place(folder: Path, name: str) -> str:
    "A name below a folder; absolute and empty names stay."
    return name if not name.strip() else os.path.join(folder, name)


@POSIX
@pytest.mark.parametrize("name, why", BAD_FILES.values(), ids=BAD_FILES)
@pytest.mark.parametrize(
    "command", ["score", "real", "picture", "codecs", "nuisance", "ablation", "speed"]
)
def test_output_files(command, name, why, sides, root, capsys, no_work, monkeypatch):
    "A file that cannot be written is refused before the work."
    monkeypatch.chdir(root)
    output = place(sides, name)
    arguments = {
        "score": ["score", sides / "ref", sides / "est", "-o", output],
        "real": ["real", "a.mp4", "-o", output],
        "picture": ["real", "a.mp4", "-o", sides / "x.json", "--picture", output],
        "codecs": ["codecs", "-o", output],
        "nuisance": ["nuisance", "-o", output],
        "ablation": ["ablation", "-o", output],
        "speed": ["speed", "-o", output],
    }[command]
    if command in ("codecs", "nuisance", "ablation") and not output.strip():
        pytest.skip("relative to the checkout, which is a folder")
    before = sorted(sides.rglob("*"))
    refused(arguments, capsys, why)
    assert sorted(sides.rglob("*")) == before


@POSIX
@pytest.mark.parametrize("command", [["perform", "a.mp4", "-o"], ["bench", "export"]], ids=" ".join)
@pytest.mark.parametrize("name, why", BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_output_folders(command, name, why, sides, capsys, no_work):
    "A folder that cannot be made is refused before the work."
    before = sorted(sides.rglob("*"))
    refused([*command, place(sides, name)], capsys, why)
    assert sorted(sides.rglob("*")) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
@pytest.mark.parametrize("check", [check_output_file, check_output_folder])
def test_permission_bits_are_not_asked(check):
    "Root may write everywhere but to /proc, whose bits say that it may."
    with pytest.raises(BadInput, match="cannot be written"):
        check("/proc/out")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_is_tried(code, tmp_path, monkeypatch):
    "What the system says when something is made there decides, and is passed on with advice."

    def refuse(*args, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(core.tempfile, "TemporaryDirectory", refuse)
    for check in (check_output_file, check_output_folder):
        with pytest.raises(BadInput, match=os.strerror(code).lower()):
            check(tmp_path / "out")


def test_inputs_are_not_replaced(sides, capsys, no_work, tmp_path):
    ref, est, sound = sides / "ref", sides / "est", sides / "ref" / "a.wav"
    (sides / "works.json").write_text("{}")
    options = ["--works", sides / "works.json", "-o", sides / "ref" / ".." / "works.json"]
    refused(["score", ref, est, *options], capsys, "would be replaced")
    refused(["score", ref, est, "-o", sound], capsys, "scores are JSON")
    refused(["real", sound, "-o", sound], capsys, "would be replaced")
    refused(["real", sound, "--picture", sound, "-o", sides / "x"], capsys, "would be replaced")
    refused(["real", sound, "--picture", sides / "x", "-o", sides / "x"], capsys, "two names")
    (sides / "video.mp4").write_bytes(b"x")
    refused(["perform", sides / "video.mp4", "-o", sides], capsys, "would be replaced")
    (sides / "out" / "sound.wav").mkdir(parents=True)
    refused(["perform", sound, "-o", sides / "out"], capsys, "sound.wav is a folder")
    (sides / "x.safetensors").write_bytes(b"x")
    refused(["weights", "convert", sides / "x.safetensors"], capsys, "would be replaced")
    assert (sides / "video.mp4").read_bytes() == b"x" and soundfile.info(sound).frames == 24_000


def test_the_longest_names_are_written(tmp_path):
    "Temporary names do not grow with the name of the target."
    for name in ("x" * 255, "a." + "x" * 253, "ü" * 127, "x" * 250 + ".json"):
        check_output_file(tmp_path / name)
        with atomic_file(tmp_path / name) as temporary:
            temporary.write_text("1")
        assert (tmp_path / name).read_text() == "1"
    for _ in range(2):
        with atomic_folder(check_output_folder(tmp_path / ("f" * 255))) as folder:
            (folder / "a").write_text("1")
    assert len(list(tmp_path.iterdir())) == 5


def test_a_failed_write_leaves_nothing(tmp_path):
    "Neither the file, nor a temporary one, nor the folders that were made for it."
    for write in (atomic_file, atomic_folder, new_parents):
        with pytest.raises(OSError), write(tmp_path / "a" / "b" / "c"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_comes_back_if_it_cannot_be_swapped(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    replace = Path.replace

    def failing(path, target):
        if path.name != "out" and Path(target).name == "out" and path.name != "folder":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError), atomic_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("1")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "old"]


def test_scores_that_cannot_be_written_after_all(sides, capsys, monkeypatch):
    "The disk fills up while the command computes: one line, and nothing half-written."
    import cop_repro.cli.score

    def full(path, value):
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device", str(temporary))

    monkeypatch.setattr(cop_repro.cli.score, "write_json", full)
    arguments = ["score", sides / "ref", sides / "est", "--metrics", "si_sdr", "-o"]
    assert main(list(map(str, [*arguments, sides / "new" / "x.json"]))) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("cop score: ") and "no space left" in line and "make room" in line
    assert not (sides / "new").exists()


# One line, or a traceback


def failing_with(monkeypatch, error: BaseException) -> None:
    "`cop lock` raises an error."

    def run(args):
        raise error

    import cop_repro.cli.lock

    monkeypatch.setattr(cop_repro.cli.lock, "run", run)


EXPECTED = {
    "permission": (PermissionError(errno.EACCES, "Permission denied", "f.x"), "f.x", "permission"),
    "disk full": (OSError(errno.ENOSPC, "No space left on device", "f.x"), "f.x", "make room"),
    "two names": (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), "a -> b"),
    "a folder": (IsADirectoryError(errno.EISDIR, "Is a directory", b"f.x"), "f.x", "file"),
    "long name": (OSError(errno.ENAMETOOLONG, "File name too long", "f.x"), "shorter name"),
    "not UTF-8": (UnicodeDecodeError("utf-8", b"\xfc", 0, 1, "invalid start byte"), "UTF-8"),
    "surrogates": (UnicodeEncodeError("utf-8", "\udcfc", 0, 1, "surrogates"), "rename"),
    "memory": (MemoryError(), "memory", "shorter video"),
    "torch's memory": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory"),
    "JSON": (json.JSONDecodeError("Expecting value", "x", 0), "JSON"),
    "YAML": (yaml.YAMLError("mapping values\nare not allowed"), "YAML"),
    "a program": (subprocess.CalledProcessError(3, ["git", "x"], stderr=b"no"), "`git x`", "3"),
    "a package": (ModuleNotFoundError("No module named 'dvc'", name="dvc.x"), "'dvc'"),
    "a full disk": (soundfile.LibsndfileError(2), "disk full"),
    "sound": (soundfile.LibsndfileError(7), "read or written"),
    "ours": (CopError("two\nlines \x1b[31m"), "two lines \\x1b[31m"),
}


@pytest.mark.parametrize("error, words", [(e, w) for e, *w in EXPECTED.values()], ids=EXPECTED)
def test_expected_failures_are_one_line(error, words, monkeypatch, capsys):
    failing_with(monkeypatch, error)
    refused(["lock"], capsys, *words)


BUGS = [TypeError("x"), KeyError("x"), ValueError("x"), AssertionError(), RuntimeError("x")]


@pytest.mark.parametrize("error", BUGS, ids=lambda e: type(e).__name__)
def test_an_error_of_the_program_keeps_its_traceback(error, monkeypatch):
    failing_with(monkeypatch, error)
    with pytest.raises(type(error)):
        main(["lock"])


def test_a_missing_module_of_the_project_is_an_error_of_the_program():
    assert failure(ModuleNotFoundError("x", name="cop_repro.x")) is None


def test_the_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"F\xfcr")
    with pytest.raises(UnicodeDecodeError) as found:
        (tmp_path / "latin.yaml").read_text("utf-8")
    assert "latin.yaml is not UTF-8" in failure(found.value)


def test_names_of_any_bytes_are_printable():
    assert one_line("F\udcfcr\n x\ty\x07 ü") == "F\\udcfcr x y\\x07 ü"


@pytest.mark.parametrize("content", [b"F\xfc", b"", b"{", b"[" * 100_000, None])
def test_compare_refuses_what_is_no_result_file(content, tmp_path, capsys):
    path = tmp_path / "a.json"
    path.mkdir() if content is None else path.write_bytes(content)
    refused(["compare", path, path], capsys, "a.json")


@pytest.mark.parametrize("content", [b"F\xfc", b"{", b"[1]", None])
def test_score_refuses_what_is_no_mapping(content, sides, capsys):
    path = sides / "works.json"
    path.mkdir() if content is None else path.write_bytes(content)
    refused(["score", sides / "ref", sides / "est", "--works", path], capsys, "works.json")


@pytest.mark.parametrize("content", [b"a: F\xfc", b"a: [", b"3", None])
def test_parameters_that_are_no_yaml(content, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(root)
    path = tmp_path / "params.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    refused(["run", "report", "--params", path], capsys, "params.yaml")


def test_read_json_names_the_file(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(BadInput, match="b.json"):
        read_json(tmp_path / "b.json")


@POSIX
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_from_another_encoding(encoding, tmp_path, monkeypatch, capsys):
    "Sounds whose names are no UTF-8 are scored, and can be printed under every encoding."
    name = os.fsdecode(b"F\xfcr.wav")
    for side in ("ref", "est"):
        (tmp_path / side).mkdir()
        soundfile.write(tmp_path / "a.wav", TONE, 24_000)
        (tmp_path / "a.wav").rename(tmp_path / side / name)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    sides = [str(tmp_path / side) for side in ("ref", "est")]
    assert main(["score", *sides, "--metrics", "si_sdr", "fad", "--json"]) == 0
    assert json.loads(out.buffer.getvalue())["metrics"]["si_sdr"]["value"] == pytest.approx(100)
    (tmp_path / "est" / name).unlink()
    soundfile.write(tmp_path / "est" / "b.wav", TONE, 24_000)
    assert main(["score", *sides]) == 2
    err.flush()
    assert b"F\\udcfcr" in err.buffer.getvalue()


@POSIX
@pytest.mark.parametrize(
    "how, code", [(">&-", 0), ("<&- >&- 2>&-", 0), ("| head -n 1", 0), ("2>&-", 0)]
)
def test_closed_streams(how, code, root):
    command = f"{sys.executable} -m cop_repro.cli lock {how}"
    done = subprocess.run(command, shell=True, cwd=root, capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_standard_output_that_is_full(root):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "cop_repro.cli", "lock"]
        done = subprocess.run(command, cwd=root, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


# Signals


@POSIX
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_clean_up(name, tmp_path, monkeypatch, capsys):
    "TERM and HUP leave nothing behind, say so in one line, and end with 128 + their number."
    number = getattr(signal, name)
    former = signal.getsignal(number)
    if former is signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, as under nohup")

    def run(args):
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("half")
            os.kill(os.getpid(), number)
            time.sleep(10)

    import cop_repro.cli.lock

    monkeypatch.setattr(cop_repro.cli.lock, "run", run)
    assert main(["lock"]) == 128 + number
    assert capsys.readouterr().err == f"cop lock: stopped by {name}\n"
    assert not list(tmp_path.iterdir()) and signal.getsignal(number) is former


@POSIX
def test_a_second_signal_does_not_disturb_the_cleanup(monkeypatch):
    done = []

    def run(args):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(True)

    import cop_repro.cli.lock

    monkeypatch.setattr(cop_repro.cli.lock, "run", run)
    assert main(["lock"]) == 143 and done


@POSIX
def test_an_ignored_signal_stays_ignored():
    "As `nohup` wants it."
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _process.stoppable():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert callable(signal.getsignal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGHUP, former)


@POSIX
def test_a_fork_dies_of_the_signal():
    "Worker processes inherit the handler, and must not clean up for their parent."
    there, here = os.pipe()
    with _process.stoppable():
        child = os.fork()
        if child == 0:
            try:
                os.write(here, b"x")
                time.sleep(30)
            finally:
                os._exit(3)
        os.read(there, 1)  # Python drops what arrives before it has begun in the child
        os.kill(child, signal.SIGTERM)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
    os.close(there)
    os.close(here)


@POSIX
def test_child_processes_end_too(tmp_path):
    "A child that is waited for is asked to end, and awaited."
    waiting = "import time; open('here', 'w'); time.sleep(60)"
    began = []

    class Popen(subprocess.Popen):
        def wait(self, timeout=None):
            if not began:
                began.append(self)
                raise _process.Stopped(signal.SIGTERM)
            return super().wait(timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_process.subprocess, "Popen", Popen)
        with pytest.raises(_process.Stopped):
            _process.run_child([sys.executable, "-c", waiting], cwd=tmp_path)
    assert began[0].returncode == -signal.SIGTERM


# Kernels


def test_the_kernel_is_this_python(tmp_path, monkeypatch):
    "Another kernel of the same name, on any of Jupyter's paths, is not used."
    spec = {"argv": ["false", "{connection_file}"], "display_name": "x", "language": "python"}
    for name, below in (
        ("JUPYTER_PATH", ""),
        ("JUPYTER_DATA_DIR", ""),
        ("HOME", ".local/share/jupyter"),
    ):
        folder = tmp_path / name / below / "kernels" / "python3"
        folder.mkdir(parents=True)
        (folder / "kernel.json").write_text(json.dumps(spec))
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "nowhere")
    manager = _kernel.kernel_manager()
    assert manager.kernel_spec.argv[0] == sys.executable
    assert "ipykernel_launcher" in manager.kernel_spec.argv


NOTEBOOK = """
import nbformat, sys
from pathlib import Path
from cop_repro.cli import notebooks
from cop_repro.core import CopError

cell = nbformat.v4.new_code_cell("import sys; sys.executable")
notebook = nbformat.v4.new_notebook(cells=[cell])
notebooks._run_cells(notebook, Path("a.ipynb").absolute())
assert sys.executable in notebook.cells[0].outputs[0].data["text/plain"]
notebook.cells.append(nbformat.v4.new_code_cell("1 / 0"))
try:
    notebooks._run_cells(notebook, Path("a.ipynb").absolute())
except CopError as error:
    print(error)
"""


def test_a_notebook_runs_in_it(root, tmp_path):
    "Though JUPYTER_PATH has another kernel of that name; a failing cell is one line."
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {"argv": ["false", "{connection_file}"], "display_name": "x", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    env = {**os.environ, "JUPYTER_PATH": str(tmp_path), "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", NOTEBOOK]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "a.ipynb fails" in done.stdout and "ZeroDivisionError" in done.stdout
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments, why",
    [
        (["train_rol"], "did you mean 'train_roll'"),
        (["train_roll", "--item", "x"], "has no variants"),
        (["train_piano"], "needs --item, one of no_guidance"),
        (["train_piano", "--item", "cop_pian"], "did you mean 'cop_piano'"),
        (["evaluate", "--item", "pianos"], "did you mean 'piano'"),
    ],
)
def test_items_are_checked_before_a_kernel_starts(arguments, why, root, monkeypatch, capsys):
    from cop_repro.cli import run

    monkeypatch.chdir(root)
    monkeypatch.setattr(run, "_kernel", None)
    refused(["run", *arguments], capsys, why)


# Machines without a home


def locked(*folders: Path):
    "A chooser's view of a machine on which nothing below these folders can be written."
    return lambda folder: not any(folder.is_relative_to(f) for f in folders)


def chosen(monkeypatch, env: dict, *unwritable: Path) -> dict:
    "What the chooser adds to an environment."
    monkeypatch.setattr(_caches, "is_writable", locked(*unwritable))
    environ = dict(env)
    monkeypatch.setattr(_caches.os, "environ", environ)
    _caches.choose_caches()
    return {name: value for name, value in environ.items() if name not in env}


def test_caches_stay_where_they_can_be_written(tmp_path, monkeypatch):
    assert chosen(monkeypatch, {"HOME": str(tmp_path)}) == {}


def test_caches_without_a_home(tmp_path, monkeypatch):
    import librosa

    package, home = Path(librosa.__file__).parent, tmp_path / "home"
    monkeypatch.setattr(_caches, "private_folder", lambda: tmp_path)
    env = {"HOME": str(home)}
    made = chosen(monkeypatch, env, home)
    assert set(made) == {"MPLCONFIGDIR", "JUPYTER_RUNTIME_DIR", "HF_HOME"}
    assert set(chosen(monkeypatch, env, package)) == set()
    made = chosen(monkeypatch, env, home, package)
    assert made["NUMBA_CACHE_DIR"] == str(tmp_path / "numba") and len(made) == 4
    given = {**env, "NUMBA_CACHE_DIR": str(tmp_path / "own")}
    assert "NUMBA_CACHE_DIR" not in chosen(monkeypatch, given, home, package)


@pytest.mark.parametrize(
    "given, kept", [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")]
)
def test_waiting_threads_sleep_unless_the_user_decides(given, kept, monkeypatch):
    environ = dict(given)
    monkeypatch.setattr(_threads.os, "environ", environ)
    _threads.choose_waiting()
    assert environ == {"OMP_WAIT_POLICY": kept}


def test_the_package_decides_before_torch_is_loaded():
    "PyTorch reads the environment once, when it is loaded; the command line must come before it."
    code = "import os, sys, cop_repro.cli; print(os.environ['OMP_WAIT_POLICY'], *sys.modules)"
    env = {name: v for name, v in os.environ.items() if name != "OMP_WAIT_POLICY"}
    made = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    policy, *loaded = made.stdout.split()
    assert policy == "PASSIVE" and "cop_repro.cli" in loaded and "torch" not in loaded, made.stderr


@POSIX
def test_the_cache_folder_is_private(tmp_path, monkeypatch):
    "Compiled code is loaded from there, so a folder that others can write to is not used."
    monkeypatch.setattr(_caches.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(_caches.tempfile, "tempdir", str(tmp_path))
    first = _caches.private_folder()
    assert first == _caches.private_folder() and first.stat().st_mode & 0o077 == 0
    first.chmod(0o777)
    assert _caches.private_folder() != first
    first.rmdir()
    first.symlink_to(tmp_path)
    assert _caches.private_folder() != first


@POSIX
def test_is_writable(tmp_path):
    assert _caches.is_writable(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    assert not _caches.is_writable(tmp_path / "file" / "b")
    assert not _caches.is_writable(Path("~/.cache"))


NOBODY = "--reuid=65534 --regid=65534 --clear-groups".split()
MAY_READ = "--inh-caps=+dac_read_search --ambient-caps=+dac_read_search".split()


@pytest.mark.skipif(
    not shutil.which("setpriv") or os.geteuid() != 0, reason="needs root and setpriv"
)
def test_an_installation_that_may_not_be_written(sides, root):
    "Metrics of librosa under a read-only home: values, and nothing on stderr but progress."
    home = sides / "home"
    home.mkdir()
    user = ["setpriv", *NOBODY, *MAY_READ, "env", "-i", "PATH=/usr/bin:/bin", f"HOME={home}"]
    command = [*user, f"PYTHONPATH={root}", sys.executable, "-m", "cop_repro.cli", "score"]
    for path in (*sides.parents, sides, *sides.rglob("*")):
        if path.is_relative_to(sides):
            path.chmod(0o755)
    names = ["--metrics", "mel_distance", "chroma_similarity", "--json"]
    done = subprocess.run(
        [*command, sides / "ref", sides / "est", *names], capture_output=True, text=True
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("capabilities cannot be passed on here")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["mel_distance"]["value"] == 0
    assert all(line.startswith("[") for line in done.stderr.splitlines()), done.stderr
    assert not list(home.iterdir())


# Small things


def test_version(capsys):
    from cop_repro import __version__

    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0 and __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, meant",
    [
        (["scroe", "a", "b"], "score"),
        (["score", "a", "b", "--metrcis", "fad"], "--metrics"),
        (["perform", "a.mp4", "--ouput", "x"], "--output"),
        (["perform", "a.mp4", "-o", "x", "--sed=3"], "--seed"),
        (["weights", "fetsch"], "fetch"),
    ],
)
def test_a_slip_gets_a_suggestion(arguments, meant, capsys):
    with pytest.raises(SystemExit) as done:
        main(arguments)
    text = capsys.readouterr().err
    assert done.value.code == 2 and f"did you mean '{meant}'" in text
    assert len(text.splitlines()) == 1 and "choose from" not in text


def test_a_word_like_no_command_gets_the_list(capsys):
    with pytest.raises(SystemExit):
        main(["xyzzy"])
    text = capsys.readouterr().err
    assert text.startswith("cop: no command 'xyzzy': choose from ablation, adapt, animate, bench, ")
    assert len(text.splitlines()) == 1


def commands() -> dict:
    "Every parser by name: those of the commands, and of the actions that a command has."
    found = dict(next(a for a in build_parser()._actions if a.dest == "command").choices)
    for name, parser in list(found.items()):
        actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        found |= {f"{name} {n}": p for a in actions for n, p in a.choices.items()}
    return found


@pytest.mark.parametrize("name", commands())
def test_every_argument_has_help(name):
    "And shows its default, where it has one."
    parser = commands()[name]
    assert parser.description
    for action in parser._actions:
        assert action.help, f"{name} {action.dest}"
        if action.default not in (None, False, "", []) and action.dest != "help":
            shown = parser._get_formatter()._expand_help(action)
            assert f"default: {action.default}" in shown, shown


def test_a_warning_about_a_midi_file_is_one_line(tmp_path):
    "Others are shown as Python shows them."
    for side in ("ref", "est"):
        (tmp_path / side).mkdir()
        messages = [mido.Message("note_on", note=60), mido.Message("note_off", note=60, time=480)]
        mido.MidiFile(tracks=[mido.MidiTrack(messages)]).save(tmp_path / side / "a.mid")
        data = (tmp_path / side / "a.mid").read_bytes()
        head, size, body = data[:18], int.from_bytes(data[18:22], "big"), data[22:-4]
        lacking = head + (size - 4).to_bytes(4, "big") + body  # without the end of the track
        (tmp_path / side / "a.mid").write_bytes(lacking)
    command = [sys.executable, "-W", "default", "-m", "cop_repro.cli", "score", "ref", "est"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    env["PYTHONPATH"] = str(Path(core.__file__).parents[1])
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "a.mid" in line]
    shown = {line for line in lines if not line.startswith("[")}
    assert {line.partition(" is not")[0] for line in shown} == {
        f"cop score: warning: {side}/a.mid" for side in ("ref", "est")
    }
    assert "MidiWarning" not in done.stderr and "1 clip of 1 work " in done.stdout
    matched = next(x for x in done.stdout.splitlines() if x.startswith("velocity_matched"))
    assert "better" not in matched
    with pytest.warns(UserWarning, match="other"), _process.plain_warnings("cop score"):
        warnings.warn("other", stacklevel=1)


@pytest.mark.parametrize(
    "arguments, meant",
    [
        (["score", "ref", "est", "--metrics", "si_sdr,si_sd"], "si_sdr"),
        (["plan", "--profile", "papre"], "paper"),
        (["profile", "smokee"], "smoke"),
        (["notebooks", "42_flo"], "42_flow"),
        (["weights", "fetch", "encodek"], "encodec"),
        (["nuisance", "--variants", "without_hand"], "without_hands"),
        (["ablation", "--rows", "pape"], "paper"),
    ],
)
def test_a_mistyped_name_gets_a_suggestion(arguments, meant, root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    refused(arguments, capsys, f"did you mean '{meant}'")


def test_doctor_outside_a_checkout(tmp_path, monkeypatch, capsys):
    "The package's own requirements are checked, and the last line says how many are missing."
    from cop_repro.cli import doctor

    monkeypatch.chdir(tmp_path)
    required = {None: ["numpy", "no-such-package"]}
    monkeypatch.setattr(doctor, "_required", lambda extra=None: required.get(extra, []))
    assert main(["doctor"]) == 2
    text = capsys.readouterr().out
    assert "ok      numpy" in text and "MISSING no-such-package" in text
    assert text.splitlines()[-1] == "1 missing"
    required[None].pop()
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "all checks passed"


def test_doctor_finds_every_asset_that_is_missing_or_damaged(root, tmp_path, capsys):
    from cop_repro.cli import doctor

    for name in ("params.yaml", "data.dvc"):
        shutil.copy2(root / name, tmp_path / name)
    assets = tmp_path / "data" / "assets"
    assets.mkdir(parents=True)
    shutil.copy2(root / "data" / "assets" / "roll.safetensors", assets)
    (assets / "judges.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    checks = {check.what.split(",")[0]: check for check in doctor._data(tmp_path)}
    assert [n for n, c in checks.items() if c.present] == ["asset roll.safetensors"]
    assert "damaged" in checks["asset judges.safetensors"].remedy
    assert {"asset encoders.safetensors", "asset general.safetensors"} <= set(checks)
    assert all(check.present for check in doctor._data(root))


def test_doctor_imports_what_is_installed(monkeypatch):
    from cop_repro.cli import doctor

    assert doctor._import_error("open_clip_torch") == ""
    monkeypatch.setitem(sys.modules, "mido", None)
    assert "mido" in doctor._import_error("mido")


def test_plan_without_arguments(root, monkeypatch, capsys):
    "The default profile on as many GPUs as it has processes."
    monkeypatch.chdir(root)
    assert main(["plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["machine"]["gpus"] == 1


@pytest.mark.parametrize("module", ["resource", "fcntl"])
def test_unix_modules_are_not_needed_to_import(module, root):
    code = (
        f"import sys; sys.modules[{module!r}] = None; import cop_repro.cli as c; c.build_parser();"
        "import cop_repro.training.launch, cop_repro.data.shards, cop_repro.cli._speed_memory"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_lock_that_the_system_lacks_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with open(tmp_path / "lock", "w") as file, pytest.raises(CopError, match="cannot lock"):
        core.lock_file(file)
