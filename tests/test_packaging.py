# SPDX-License-Identifier: Apache-2.0
"""The package as others install it: what a wheel holds, what it requires, what runs without extras.

The wheel is built without a network from a copy of the files that git knows; git has no data/, so
the shipped files come from the objects of the data store, as in a fresh clone.
"""

import ast
import email
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from cop_repro import __version__
from cop_repro.cli._assets import assets_folder, etudes_folder

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "cop_repro/",
    "dvcstore/",
    "CITATION.cff",
    "LICENSE",
    "LICENSES.md",
    "MANIFEST.in",
    "README.md",
    "data.dvc",
    "pyproject.toml",
    "settings.ini",
    "setup.py",
    "tests/",
)
# Import name -> extra; what a core requirement needs as well (scikit-learn, torchvision) is absent.
OPTIONAL = {
    "basic_pitch": "judges",
    "onnxruntime": "judges",
    "torchvggish": "judges",
    "transkun": "judges",
    "encodec": "encodec",
    "dvc": "pipeline",
    "jupyter_client": "pipeline",
    "jupyter_core": "pipeline",
    "jupyterlab": "pipeline",
    "music21": "pipeline",
    "nbconvert": "pipeline",
    "nbdev": "pipeline",
    "nbformat": "pipeline",
    "papermill": "pipeline",
    "pretty_midi": "pipeline",
    "tinysoundfont": "pipeline",
    "auraloss": "dev",
    "beartype": "dev",
    "muspy": "dev",
    "pytest": "dev",
    "torchdiffeq": "dev",
    "torchmetrics": "dev",
    "math_core": "docs",
    "myst_nb": "docs",
    "sphinx": "docs",
}
GUARDED = {name: (extra,) for name, extra in OPTIONAL.items()}
GUARDED["sklearn"] = ("judges", "dev")  # guarded as well, though librosa brings it
# Libraries also probe for each other with `find_spec`, so that the answer must be None there.
BLOCKED = f"""
import sys
from importlib.machinery import PathFinder


class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in {sorted(OPTIONAL)}:
            return None
        return PathFinder.find_spec(name, path, target)


sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""


def build(folder: Path, out: Path, kind: str = "wheel") -> subprocess.CompletedProcess:
    "Build a wheel or an sdist with setuptools alone."
    out.mkdir(exist_ok=True)
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    "A copy of what a clone needs for a build, without data/."
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folder = tmp_path_factory.mktemp("clone")
    for name in names.split("\0"):
        if name.startswith(SOURCES) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    assert not (folder / "data").exists()
    return folder


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory) -> zipfile.ZipFile:
    "Built where an earlier build has left a module that is no more."
    out, stale = tmp_path_factory.mktemp("wheel"), sources / "build" / "lib" / "cop_repro"
    stale.mkdir(parents=True)
    (stale / "removed.py").write_text("")
    done = build(sources, out)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    assert path.name == f"cop_repro-{__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    "The unpacked wheel."
    folder = tmp_path_factory.mktemp("installed")
    wheel.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(wheel) -> email.message.Message:
    return email.message_from_bytes(wheel.read(f"cop_repro-{__version__}.dist-info/METADATA"))


def run_installed(installed: Path, code: str, folder: Path) -> str:
    "What a Python prints that imports the unpacked wheel, in a folder outside every checkout."
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def settings() -> dict[str, str]:
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


TEMPLATES = ("cop_repro/evaluation/listening.html", "cop_repro/benchmark/leaderboard.html")


def tracked_data() -> dict[str, str]:
    "Path -> MD5 of the weights and études that data.dvc tracks."
    md5 = re.search(r"md5: (\w+\.dir)", (ROOT / "data.dvc").read_text()).group(1)
    entries = json.loads((ROOT / "dvcstore" / "files" / "md5" / md5[:2] / md5[2:]).read_text())
    lists = ("manifest.json", "scenes.json")  # of works and splits, which only the pipeline reads
    return {e["relpath"]: e["md5"] for e in entries if e["relpath"] not in lists}


def test_wheel_holds_every_module(wheel, sources):
    "And none that an earlier build has left in build/."
    modules = {p.relative_to(sources).as_posix() for p in (sources / "cop_repro").rglob("*.py")}
    assert modules == {name for name in wheel.namelist() if name.endswith(".py")}


def test_wheel_holds_the_tracked_data(wheel):
    "The same names and bytes that data.dvc tracks, once; beside the modules only their template."
    prefix = "cop_repro/shipped/"
    held = {
        name.removeprefix(prefix): hashlib.md5(wheel.read(name)).hexdigest()
        for name in wheel.namelist()
        if name.startswith("cop_repro/") and not name.endswith((".py", *TEMPLATES))
    }
    assert all(wheel.read(name) == (ROOT / name).read_bytes() for name in TEMPLATES)
    assert held == tracked_data() and "assets/piano.safetensors" in held


def test_metadata(metadata, wheel):
    assert (metadata["Name"], metadata["Version"]) == ("cop_repro", __version__)
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert metadata.get_payload(decode=True).decode().strip() == readme.strip()
    assert metadata.get_all("License-File") == ["LICENSE", "LICENSES.md"]
    assert "Programming Language :: Python :: 3.12" in metadata.get_all("Classifier")
    folder = f"cop_repro-{__version__}.dist-info"
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()
    assert "cop = cop_repro.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()


def required(metadata, extra: str | None = None) -> set[str]:
    "Names of required distributions, of the core or of an extra."
    found = set()
    for line in metadata.get_all("Requires-Dist"):
        asked = re.search(r'extra == "(\w+)"', line)
        if (asked.group(1) if asked else None) == extra:
            found.add(re.match(r"[\w.-]+", line).group())
    return found


def names_of(requirements: str) -> set[str]:
    return {re.match(r"[\w.-]+", word).group() for word in requirements.split()}


def test_requirements_are_those_of_the_settings(metadata):
    asked = settings()
    assert required(metadata) == names_of(asked["requirements"])
    extras = {key.removeprefix("extras_") for key in asked if key.startswith("extras_")}
    assert set(metadata.get_all("Provides-Extra")) == extras | {"all"}
    for extra in extras:
        assert required(metadata, extra) == names_of(asked[f"extras_{extra}"]), extra
    running = extras - {"dev", "docs"}
    assert required(metadata, "all") == set().union(*(required(metadata, e) for e in running))


def test_core_requires_nothing_hard_to_install(metadata):
    "basic-pitch asks for tensorflow, tinysoundfont for the headers of portaudio."
    hard = {"basic-pitch", "tinysoundfont", "transkun", "dvc", "nbdev", "jupyterlab", "music21"}
    assert not hard & required(metadata)


def test_wheel_from_sdist_is_the_same(sources, wheel, tmp_path):
    done = build(sources, tmp_path / "sdist", "sdist")
    assert done.returncode == 0, done.stderr
    shutil.unpack_archive(tmp_path / "sdist" / f"cop_repro-{__version__}.tar.gz", tmp_path)
    unpacked = tmp_path / f"cop_repro-{__version__}"
    assert not (unpacked / "dvcstore").exists() and not (unpacked / "tests").exists()
    done = build(unpacked, tmp_path / "wheel")
    assert done.returncode == 0, done.stderr
    again = zipfile.ZipFile(next((tmp_path / "wheel").iterdir()))
    made, given = ({i.filename: i.CRC for i in w.infolist()} for w in (again, wheel))
    assert made.pop(f"cop_repro-{__version__}.dist-info/RECORD")
    assert given.pop(f"cop_repro-{__version__}.dist-info/RECORD")
    assert made == given


@pytest.fixture
def small_clone(sources, tmp_path) -> Path:
    "A clone whose store can be damaged."
    folder = tmp_path / "clone"
    shutil.copytree(sources, folder, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    return folder


def test_build_without_data_says_so(small_clone, tmp_path):
    shutil.rmtree(small_clone / "dvcstore")
    done = build(small_clone, tmp_path / "out")
    assert done.returncode and not list((tmp_path / "out").iterdir())
    assert "error: no files for assets and etudes" in done.stderr.splitlines()[-1]


def test_damaged_object_is_refused(small_clone, tmp_path):
    md5 = tracked_data()["etudes/03_hammer.yaml"]
    (small_clone / "dvcstore" / "files" / "md5" / md5[:2] / md5[2:]).write_text("other notes")
    done = build(small_clone, tmp_path / "out")
    assert done.returncode and not list((tmp_path / "out").iterdir())
    assert "03_hammer.yaml in dvcstore/ is damaged" in done.stderr.splitlines()[-1]


def test_folders_of_shipped_files(root, installed, tmp_path):
    "A checkout reads data/, an installed package its own folder."
    assert assets_folder() == root / "data" / "assets"
    assert etudes_folder() == root / "data" / "etudes"
    code = (
        "from cop_repro.cli._assets import assets_folder, etudes_folder; "
        "print(assets_folder(), etudes_folder(), sep='\\n')"
    )
    shipped = installed / "cop_repro" / "shipped"
    printed = run_installed(installed, code, tmp_path).split()
    assert printed == [str(shipped / "assets"), str(shipped / "etudes")]


@pytest.mark.parametrize(
    "code",
    [
        "import cop_repro.measure.music_metrics",
        "from cop_repro.cli import build_parser; build_parser().format_help()",
    ],
    ids=["metrics", "help"],
)
def test_no_heavy_import(installed, tmp_path, code):
    "What loads is asserted; how long it takes depends on the machine."
    heavy = "{'torch', 'mir_eval', 'scipy.stats', 'numba', 'transformers', 'matplotlib'}"
    printed = run_installed(
        installed, f"{code}\nimport sys\nprint(*{heavy} & set(sys.modules))", tmp_path
    )
    assert printed.strip() == ""


def test_version(installed, tmp_path):
    code = "import sys; from cop_repro.cli import main; sys.exit(main(['--version']))"
    assert run_installed(installed, code, tmp_path).strip() == f"cop_repro {__version__}"


IMPORT_ALL = """
import importlib, pkgutil, cop_repro
from cop_repro.core import MissingExtra

for module in pkgutil.walk_packages(cop_repro.__path__, "cop_repro."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except MissingExtra:
        print(module.name)
"""


def test_every_module_imports_without_extras(installed, tmp_path):
    "All but the comparison with other libraries, which is theirs by definition."
    printed = run_installed(installed, BLOCKED + IMPORT_ALL, tmp_path)
    compared = ["cop_repro.cli._speed_libraries", "cop_repro.cli._speed_scoring"]
    assert printed.split() == compared


USE_EXTRAS = """
import json
import numpy as np
from cop_repro.core import MissingExtra
from cop_repro.data.notes import default_soundfont, make_notes, synthesise
from cop_repro.data.performance import corpus_scores
from cop_repro.judges.pretrained import vggish_extractor
from cop_repro.judges.transcription import transcribe, transcribe_piano
from cop_repro.model.codec import CodecConfig, EnCodec24

notes = make_notes([60], [0.0], [0.5], [64])
uses = {
    "synthesise": lambda: synthesise(notes, 1.0),
    "default_soundfont": default_soundfont,
    "corpus_scores": lambda: corpus_scores(["bwv66.6"]),
    "vggish": lambda: vggish_extractor("vggish.safetensors"),
    "transcribe": lambda: transcribe(np.zeros(24_000)),
    "transcribe_piano": lambda: transcribe_piano(np.zeros(24_000)),
    "encodec": lambda: EnCodec24(CodecConfig()),
}
found = {}
for name, use in uses.items():
    try:
        use()
    except MissingExtra as error:
        found[name] = str(error)
print(json.dumps(found))
"""


def test_missing_library_names_its_extra(installed, tmp_path):
    found = json.loads(run_installed(installed, BLOCKED + USE_EXTRAS, tmp_path))
    wanted = {
        "synthesise": ("tinysoundfont", "pipeline"),
        "default_soundfont": ("pretty_midi", "pipeline"),
        "corpus_scores": ("music21", "pipeline"),
        "vggish": ("torchvggish", "judges"),
        "transcribe": ("basic_pitch", "judges"),
        "transcribe_piano": ("transkun", "judges"),
        "encodec": ("encodec", "encodec"),
    }
    assert set(found) == set(wanted)
    for name, (library, extra) in wanted.items():
        assert library in found[name] and f"pip install 'cop_repro[{extra}]'" in found[name], name


SCORE_AND_LOAD = """
import json, sys
import numpy as np, soundfile
from cop_repro.cli import main
from cop_repro.cli._assets import assets_folder
from cop_repro.data.notes import make_notes, write_midi
from cop_repro.systems.cop import load_performer

for folder in ("ref", "est"):
    write_midi(make_notes([60, 64], [0.5, 1.0], [0.9, 1.5], [64, 80]), f"{folder}/a.mid")
    soundfile.write(f"{folder}/a.wav", np.sin(np.arange(48_000) / 9) / 2, 24_000)
assert main(["score", "ref", "est", "-o", "scores.json"]) == 0
metrics = json.load(open("scores.json"))["metrics"]
assert main(["score", "ref", "est", "--metrics", "transcription_f1"]) == 2
load_performer(assets_folder())
print(json.dumps({name: metrics[name] for name in ("note_f1", "transcription_f1", "fad")}))
"""


def test_scores_and_weights_without_extras(installed, tmp_path):
    "Notes, sounds and the shipped judges are scored; a transcription says what it needs."
    for name in ("ref", "est"):
        (tmp_path / name).mkdir()
    made = json.loads(run_installed(installed, BLOCKED + SCORE_AND_LOAD, tmp_path))
    assert made["note_f1"]["value"] == 1.0
    assert made["fad"]["extractor"].startswith("embedded judges")
    assert "pip install 'cop_repro[judges]'" in made["transcription_f1"]["note"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["est", "ref", "scores.json"]


def guarded_extra(ancestors: list[ast.AST]) -> str | None:
    "The extra that an enclosing `with needs_extra(...)` names."
    for node in ancestors:
        if isinstance(node, ast.With):
            for item in node.items:
                call = item.context_expr
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "needs_extra":
                    return call.args[0].value
    return None


def optional_imports(node: ast.AST, ancestors: tuple = ()) -> list[tuple[str, str | None]]:
    "Every import of an optional library below a node, with the extra that its guard names."
    found = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        names = [node.module]
    else:
        names = []
    for name in names:
        if name.split(".")[0] in GUARDED:
            found.append((name.split(".")[0], guarded_extra(list(ancestors))))
    for child in ast.iter_child_nodes(node):
        found += optional_imports(child, (*ancestors, node))
    return found


def test_optional_imports_are_guarded():
    "Each stands under `needs_extra` with the extra that installs it."
    seen = set()
    for path in sorted((ROOT / "cop_repro").rglob("*.py")):
        for name, extra in optional_imports(ast.parse(path.read_text())):
            if name == "auraloss":  # `cop speed` leaves it out where it is missing
                continue
            assert extra in GUARDED[name], f"{path.name}: {name} ({extra})"
            seen.add(name)
    assert {"basic_pitch", "encodec", "music21", "papermill", "sklearn"} <= seen
