# SPDX-License-Identifier: Apache-2.0
"The models of `cop perform`, loaded quickly and prepared for sampling."

from dataclasses import replace
from pathlib import Path

from cop_repro.core import BadInput, file_hash
from cop_repro.model.codec import check_latents, load_codec
from cop_repro.model.cop_piano import load_piano
from cop_repro.model.dit import MultiStreamDiT
from cop_repro.model.prepared import PreparedDiT
from cop_repro.model.quick_encoders import quick_encoders
from cop_repro.systems.cop import ASSETS, SAMPLE, Performer


def quick_performer(
    folder: Path,  # with the assets
    steps: int = SAMPLE.num_steps,  # ODE intervals
    precision: str = "float32",  # of large matrix products
) -> Performer:
    "What `load_performer` returns, in less time; in float32 its sound differs by some 0.001."
    if steps < 1:
        raise BadInput(f"--steps {steps}: at least 1 is needed")
    paths = [folder / name for name in ASSETS]
    for path in paths:
        if not path.is_file():
            raise BadInput(
                f"asset {path.name} is missing in {folder.name}/: "
                "`make setup` fetches the shipped ones"
            )
    piano, meta = load_piano(paths[2])
    codec = load_codec(paths[0], meta["split_hash"])
    check_latents(paths[2].name, meta, codec.latent_id)
    encoders = quick_encoders(paths[1], meta["split_hash"])
    if type(piano.dit) is MultiStreamDiT:  # one with an injector is used as it is
        piano.dit = PreparedDiT(piano.dit, precision)
    hashes = {path.name: file_hash(path) for path in paths}
    return Performer(codec, encoders, piano, replace(SAMPLE, num_steps=steps), hashes)
