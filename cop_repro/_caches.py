# SPDX-License-Identifier: Apache-2.0
"""Where libraries keep their caches on a machine without a home or a writable installation.

numba refuses to import librosa there, matplotlib and Jupyter complain. What can be written stays
where it is.
"""

import importlib.util
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

COMPILED = ("", "core", "util")  # folders of librosa whose functions numba keeps


def choose_caches() -> None:
    "Set the environment for every cache whose usual folder cannot be written, before any import."
    wanting = {name: sub for name, sub in _wanting(os.environ)}
    folder = private_folder() if wanting else None
    if folder is not None:
        os.environ.update({name: str(folder / sub) for name, sub in wanting.items()})


def _wanting(env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    "Variables of caches that cannot be written, and how their folders are called."
    home = Path(os.path.expanduser("~"))
    cache, config = (
        Path(env.get(name) or home / usual)
        for name, usual in (("XDG_CACHE_HOME", ".cache"), ("XDG_CONFIG_HOME", ".config"))
    )
    data = Path(env.get("XDG_DATA_HOME") or home / ".local" / "share") / "jupyter"
    data = Path(env.get("JUPYTER_DATA_DIR") or data)
    places = {
        "MPLCONFIGDIR": (config / "matplotlib", cache / "matplotlib"),
        "JUPYTER_RUNTIME_DIR": (data / "runtime",),
    }
    for name, usual in places.items():
        given = (Path(env[name]),) if env.get(name) else usual
        if not all(map(is_writable, given)):
            yield name, name.lower()
    models = Path(env.get("HF_HOME") or cache / "huggingface")
    if not is_writable(models) and not os.access(models, os.R_OK | os.X_OK):
        yield "HF_HOME", "huggingface"  # models that can be read stay of use
    if not _numba_can_write(env, cache):
        yield "NUMBA_CACHE_DIR", "numba"


def _numba_can_write(env: Mapping[str, str], cache: Path) -> bool:
    "Whether numba finds a place for what it compiles of librosa: given, beside it, or the user's."
    given = env.get("NUMBA_CACHE_DIR")
    if given and is_writable(Path(given)):
        return True
    found = importlib.util.find_spec("librosa")
    if found is None or not found.origin:
        return True
    package = Path(found.origin).parent
    beside = all(is_writable(package / part / "__pycache__") for part in COMPILED)
    return beside or is_writable(cache / "numba")


def is_writable(folder: Path) -> bool:
    "Whether a folder, or the lowest one above it that exists, can be written to."
    if not folder.is_absolute():  # "~" where there is no home
        return False
    try:
        place = next(p for p in (folder, *folder.parents) if p.exists())
    except OSError:  # it may not even be looked at
        return False
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def private_folder() -> Path | None:
    "A temporary folder of this user alone, the same in every process; None where there is none."
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    try:
        folder = Path(tempfile.gettempdir()) / f"cop_repro-{user}"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder if _is_own(folder) else Path(tempfile.mkdtemp(prefix="cop_repro-"))
    except OSError:
        return None


def _is_own(folder: Path) -> bool:
    "Whether nobody else can put files there: numba's cache is code."
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode):
        return False
    own = not hasattr(os, "getuid") or about.st_uid == os.getuid()
    return own and (os.name == "nt" or not about.st_mode & 0o022)
