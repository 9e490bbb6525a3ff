# SPDX-License-Identifier: Apache-2.0
"Failures that a user can correct, each as one line; an error of the program keeps its traceback."

import json
import subprocess
import tokenize
import tomllib
import traceback
from pathlib import Path

import yaml

from cop_repro.core import CopError, os_reason

MEMORY = (
    "not enough memory: close other programs, or give less at once (a shorter video, fewer clips, "
    "smaller batches)"
)
DAMAGED = {
    json.JSONDecodeError: "JSON",
    tomllib.TOMLDecodeError: "TOML",
    yaml.YAMLError: "YAML",
}
FILE_LIBRARIES = ("soundfile", "av")  # whose errors are about files
# Functions that take the content of a file as this package writes it, and their argument that
# names the file, or the section of one; what they raise when the content is another one.
TRUSTING = {
    "read_manifest": "path",
    "read_results": "path",
    "Store.__init__": "folder",
    "ShardedStore.__init__": "folder",
    "from_dict": "where",
}
MISREAD = (KeyError, IndexError, TypeError, ValueError, AttributeError, tokenize.TokenError)


def failure(error: Exception) -> str | None:
    "What went wrong and what to do, in one line; None for an error of the program itself."
    found = _failure(error)
    return None if found is None else one_line(found)


def one_line(text: str) -> str:
    "A text without line breaks, and with every unprintable character escaped."
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in joined)


def _failure(error: Exception) -> str | None:
    "The message of an expected failure."
    if isinstance(error, CopError):
        return str(error)
    if _is_memory(error):
        return MEMORY
    if isinstance(error, UnicodeError):
        return _text_failure(error)
    if isinstance(error, OSError):
        return _os_failure(error)
    if isinstance(error, ModuleNotFoundError):
        return _module_failure(error)
    if isinstance(error, subprocess.CalledProcessError):
        return _child_failure(error)
    for kind, name in DAMAGED.items():
        if isinstance(error, kind):
            return f"a file that is read is not valid {name}: {error}"
    if type(error).__module__.partition(".")[0] in FILE_LIBRARIES:
        return _library_failure(error)
    return _misread_failure(error)


def _misread_failure(error: Exception) -> str | None:
    "Content of a file, or of a section of one, that its reader did not expect."
    if not isinstance(error, MISREAD):
        return None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        place = frame.f_locals.get(TRUSTING.get(frame.f_code.co_qualname))
        if place is not None and "cop_repro" in frame.f_globals.get("__name__", ""):
            return (
                f"{_shown(place)} holds something that does not belong there "
                f"({type(error).__name__}: {error}): correct it, or have it made again"
            )
    return None


def _library_failure(error: Exception) -> str:
    "An error of a file's library; libsndfile says `System error` where a write fails."
    if "System error" in str(error):
        return "a sound cannot be written: is the disk full? make room, or choose another place"
    return f"a file cannot be read or written: {error}"


def _is_memory(error: Exception) -> bool:
    "Whether memory is used up; torch says so in an error of its own or in words."
    words = ("can't allocate memory", "out of memory", "not enough memory")
    is_torch = isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
    return isinstance(error, MemoryError) or is_torch


def _text_failure(error: UnicodeError) -> str:
    "Text in another encoding, with the file where it is known."
    if not isinstance(error, UnicodeDecodeError):
        return f"a name or text cannot be written in UTF-8: {error}; rename the file"
    file = _file_being_read(error)
    return f"{file or 'a file that is read'} is not UTF-8 text: {error}; save it as UTF-8"


def _file_being_read(error: Exception) -> Path | None:
    "The path whose `read_text` failed."
    for frame, _ in traceback.walk_tb(error.__traceback__):
        path = frame.f_locals.get("self")
        if frame.f_code.co_name == "read_text" and isinstance(path, Path):
            return path
    return None


def _os_failure(error: OSError) -> str:
    "What the operating system refused, and for which file."
    names = [_shown(n) for n in (error.filename, error.filename2) if n is not None]
    where = f"{' -> '.join(names)}: " if names else ""
    return f"{where}{os_reason(error)}"


def _shown(name: object) -> str:
    "A file's name, of bytes or text."
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)


def _module_failure(error: ModuleNotFoundError) -> str | None:
    "A package that is not installed; a missing module of this project is an error of the program."
    package = (error.name or "").partition(".")[0]
    if not package or package == "cop_repro":
        return None
    return f"the package {package!r} is not installed: run `make setup` in the checkout"


def _child_failure(error: subprocess.CalledProcessError) -> str:
    "A program that was called and failed."
    command = error.cmd if isinstance(error.cmd, str) else " ".join(map(str, error.cmd))
    said = error.stderr or b""
    said = said.decode("utf-8", "backslashreplace") if isinstance(said, bytes) else said
    return f"`{command}` ended with code {error.returncode}{': ' if said else ''}{said}"
