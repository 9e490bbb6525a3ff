# SPDX-License-Identifier: Apache-2.0
"A command as a process: its streams, the signals that end it, its child processes."

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cop_repro.cli._failures import one_line

# `kill`, `docker stop`, batch systems; a closed terminal; Ctrl-\; a used-up allotment of time
ENDING = ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGXCPU")
CLEANUP_S = 10  # in which a repeated signal does not disturb the cleanup
CHILD_S = 20  # in which a child that was asked to end may clean up


class Stopped(KeyboardInterrupt):
    "A signal asks this process to end; whatever cleans up after Ctrl-C cleans up after it, too."

    def __init__(self, number: int):
        self.number = number
        super().__init__(signal.Signals(number).name)


@contextmanager
def stoppable() -> Iterator[None]:
    """Signals of `ENDING` raise `Stopped` in the main thread; former handlers are restored.

    A signal that this process ignores (`nohup`) or handles already stays as it is.
    """
    former = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ENDING if hasattr(signal, name)]
        handle = _handler(os.getpid())
        former = {n: signal.getsignal(n) for n in numbers}
        former = {n: old for n, old in former.items() if old is signal.SIG_DFL}
        for number in former:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, old in former.items():
            signal.signal(number, old)


def _handler(owner: int):
    "The handler of one process; in its forks the signal does what it does by default."
    last = {"at": -float("inf")}

    def handle(number: int, frame) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        repeated = time.monotonic() - last["at"] < CLEANUP_S
        last["at"] = time.monotonic()
        if not repeated:
            raise Stopped(number)

    return handle


def steady_streams() -> None:
    "Standard streams that exist and can print every file name, whatever the encoding."
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would take its place
            os.open(os.devnull, os.O_RDWR)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def skip_unused() -> None:
    """Leave out a part of jsonschema, which does without it.

    Its check of non-ASCII web addresses takes a second to load, and no schema here asks for it.
    """
    sys.modules.setdefault("rfc3987_syntax", None)


def discard_stdout() -> None:
    "Nobody reads the standard output, or it cannot be written: drop what is still to be printed."
    with suppress(OSError, ValueError):  # a stream in memory has no number
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def flushed_stdout() -> bool:
    "Whether everything printed could be written."
    try:
        sys.stdout.flush()
    except OSError:
        discard_stdout()
        return False
    return True


def say(line: str) -> None:
    "One line on stderr; a terminal that is gone is no error."
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


@contextmanager
def plain_warnings(command: str) -> Iterator[None]:
    "A warning about a MIDI file is one line on stderr; all others are shown as Python shows them."
    former = warnings.showwarning

    def show(message, category, *place) -> None:
        notes = sys.modules.get("cop_repro.data.notes")
        if notes is not None and issubclass(category, notes.MidiWarning):
            say(f"{command}: warning: {one_line(str(message))}")
        else:
            former(message, category, *place)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = former


def run_child(command: list, **options) -> int:
    "The exit code of a child process, which is asked to end, and awaited, if this one has to."
    child = subprocess.Popen(command, **options)
    try:
        return child.wait()
    except BaseException:
        child.terminate()
        try:
            child.wait(CHILD_S)
        except subprocess.TimeoutExpired:
            child.kill()
        raise
