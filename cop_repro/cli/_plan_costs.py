# SPDX-License-Identifier: Apache-2.0
"Counted costs of networks, kept in a file between calls."

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch

from cop_repro.core import code_fingerprint, write_json
from cop_repro.model.dit import DiTConfig
from cop_repro.model.roll import RollConfig
from cop_repro.training import planning
from cop_repro.training.planning import Cost

COUNTED_CODE = (
    "cop_repro.training.planning",
    "cop_repro.model.dit",
    "cop_repro.model.controlformer",
    "cop_repro.model.roll",
    "cop_repro.model.flow",
)


class Costs:
    """Counted costs, kept in a file between calls.

    Counting a network takes seconds, reading its cost none. Other code or another torch counts
    anew, and a damaged file is no file.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        self.counted = 0
        self.code = f"{code_fingerprint(*COUNTED_CODE)} torch {torch.__version__}"
        self.known = self._kept()

    def _kept(self) -> dict:
        "Costs of the file, if the same code counted them."
        try:
            kept = json.loads(self.path.read_text("utf-8")) if self.path else {}
        except (OSError, ValueError):
            return {}
        same = isinstance(kept, dict) and kept.get("code") == self.code
        return kept["costs"] if same else {}

    def __call__(
        self,
        kind: str,  # dit, predictor; flops: a DiT's operations alone
        config: DiTConfig | RollConfig,
        length: int,  # latents of a DiT, frames of a predictor
        tokens: int,  # of the text
        precision: str = "fp32",
    ) -> Cost | int:
        "Cost of one clip, or its operations alone."
        key = repr((kind, config, length, tokens, precision))
        if key not in self.known:
            self.known[key] = _count(kind, config, length, tokens, precision)
            self.counted += 1
        found = self.known[key]
        return found if kind == "flops" else Cost(**found)

    def save(self) -> None:
        "Write what was counted, if anything was."
        if self.path and self.counted:
            with suppress(OSError):  # without write access the next call counts again
                write_json(self.path, {"code": self.code, "costs": self.known})


def _count(kind: str, config, length: int, tokens: int, precision: str) -> dict | int:
    "One cost, counted, as JSON can hold it."
    if kind == "flops":
        return planning.dit_flops(config, length, tokens)
    if kind == "dit":
        return asdict(planning.dit_cost(config, length, tokens, precision))
    return asdict(planning.predictor_cost(config, length, precision))
