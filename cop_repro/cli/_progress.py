# SPDX-License-Identifier: Apache-2.0
"How far a long computation has come: one plain line at a time."

import sys
import time
from functools import partial

from cop_repro.core import Progress

INTERVAL_S = 5  # between two lines

_last = {"at": 0.0}  # time.monotonic() of the last line


def progress(done: int, total: int, message: str = "", beside: bool = False) -> None:
    """At most one line every five seconds, and the last.

    `beside` an output that other programs read: on stderr, and none for a short run.
    """
    now = time.monotonic()
    if (done < total or beside) and now - _last["at"] < INTERVAL_S:
        return
    _last["at"] = now
    stream = sys.stderr if beside else sys.stdout
    print(f"[{done:>5}/{total}] {message}", flush=True, file=stream)


def progress_beside() -> Progress:
    "Progress of a command whose output other programs read; its clock begins now."
    _last["at"] = time.monotonic()
    return partial(progress, beside=True)
