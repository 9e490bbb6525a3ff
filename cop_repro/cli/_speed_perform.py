# SPDX-License-Identifier: Apache-2.0
"What `cop perform` takes as a process, from its start to its five files."

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cop_repro.cli.demo import DEFAULT, render_silent, true_notes

VIDEO_S = 10.0
SPIN = "while True: pass"  # a process that holds one core


@dataclass(frozen=True)
class PerformSpeed:
    "One run of `cop perform`."

    name: str  # on what kind of machine
    wall_s: float  # seconds until it has ended
    cpu_s: float  # seconds of processors, in user and in kernel mode
    video_s: float = VIDEO_S  # seconds of the video


def speed_perform(folder: Path) -> list[PerformSpeed]:
    "`cop perform` on a rendered video, alone and beside a process that holds one core."
    video = folder / "video.mp4"
    render_silent(video, true_notes(DEFAULT, VIDEO_S, 0)[1], VIDEO_S, 0)
    _perform(video, folder / "warm")  # compiled modules and caches of libraries; does not count
    alone = _timed("cop perform", video, folder / "alone")
    with _busy_core():
        busy = _timed("cop perform, one core held by another process", video, folder / "busy")
    return [alone, busy]


def _perform(video: Path, out: Path) -> None:
    "One run as a user starts it."
    command = [sys.executable, "-m", "cop_repro.cli", "perform", str(video), "-o", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _timed(name: str, video: Path, out: Path) -> PerformSpeed:
    "Seconds of one run; the only child that ends meanwhile is its own."
    began, before = time.perf_counter(), os.times()
    _perform(video, out)
    after = os.times()
    user = after.children_user - before.children_user
    kernel = after.children_system - before.children_system
    return PerformSpeed(name, time.perf_counter() - began, user + kernel)


@contextmanager
def _busy_core() -> Iterator[None]:
    "Another process computes meanwhile."
    with subprocess.Popen([sys.executable, "-c", SPIN]) as other:
        try:
            yield
        finally:
            other.kill()


def perform_lines(rows: Sequence[PerformSpeed]) -> list[str]:
    "Seconds of a run and of each second of its video."
    return ["", *(_line(row) for row in rows)]


def _line(row: PerformSpeed) -> str:
    "One run."
    return (
        f"{f'{row.name}, {row.video_s:g} s of video':62s} {row.wall_s:8.1f} s, "
        f"{row.cpu_s:.1f} s of CPU: {row.wall_s / row.video_s:.2f} s a second of video"
    )


def perform_numbers(rows: Sequence[PerformSpeed]) -> list[dict]:
    "The measurements as JSON can hold them."
    return [asdict(row) for row in rows]
