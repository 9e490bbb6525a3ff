# SPDX-License-Identifier: Apache-2.0
"How time and memory of the shipped model grow with the length of a clip, in a fresh process."

import json
import subprocess
import sys
from pathlib import Path

LENGTHS_S = (10.0, 30.0, 60.0)
STEPS = 2
MEASURE = "from cop_repro.cli._speed_growth import measure; measure()"


def speed_growth() -> list[dict]:
    "Seconds a step and peak memory by length, in windows and as a whole."
    command = [sys.executable, "-c", MEASURE]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    return json.loads(done.stdout)


def measure() -> None:
    "Print all measurements as JSON, in the order in which the peak memory grows."
    import torch

    from cop_repro.cli._assets import assets_folder
    from cop_repro.cli._quick import quick_performer

    performer = quick_performer(assets_folder(), STEPS)
    with torch.inference_mode():
        rows = [_row(performer, s, "in windows") for s in LENGTHS_S]
        rows += [_row(performer, s, "as a whole") for s in LENGTHS_S]
    print(json.dumps(rows))


def _row(performer, seconds: float, how: str) -> dict:
    "One length."
    import resource
    from dataclasses import replace

    import torch

    from cop_repro.cli._speed_time import fastest
    from cop_repro.core import RATES
    from cop_repro.model.flow import Conditions, sample

    config, n = performer.piano.dit.config, RATES.latents(seconds)
    how_long = performer.sample.window_s if how == "in windows" else None
    solver = replace(performer.sample, window_s=how_long)
    cond = Conditions(
        text=torch.zeros(1, 8, config.text_width),
        video=torch.zeros(1, n, config.video_features),
        roll=torch.zeros(1, n, config.roll_keys),
    )
    x0 = torch.zeros(1, n, config.latent_channels)
    taken = fastest(lambda: sample(performer.piano, x0, cond, solver), 1) / STEPS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"seconds": seconds, "how": how, "step_s": taken, "peak_mb": peak}


def growth_lines(rows: list[dict]) -> list[str]:
    "Seconds a step, and memory of the process, by length."
    lines = ["", f"{'shipped model, a step by length of the clip':62s}"]
    for row in rows:
        first = next(r for r in rows if r["how"] == row["how"])
        name = f"{row['seconds']:g} s {row['how']}"
        lines.append(
            f"{name:62s} {row['step_s']:8.3f} s, {row['step_s'] / first['step_s']:5.1f} times "
            f"that of {first['seconds']:g} s; peak memory so far {row['peak_mb']:.0f} MB"
        )
    return lines
