# SPDX-License-Identifier: Apache-2.0
"`cop release`: trained models become assets of the repository."

import subprocess
from pathlib import Path

from cop_repro.cli._profiles import profile_folder
from cop_repro.core import (
    CopError,
    ParamsError,
    check_output_folder,
    did_you_mean,
    load_weights,
    project_root,
    save_weights,
)
from cop_repro.parameters import load_params

HELP = "copy trained models into data/assets and track them"

LARGE = 1_000_000  # weights; a smaller model gains nothing from 16 bits


def add_arguments(parser) -> None:
    "Which assets, of which profile."
    parser.add_argument("--profile", help="whose trained models; default: release.profile")
    parser.add_argument(
        "names",
        nargs="*",
        help="names of params.yaml's release.assets, e.g. general.safetensors; default all",
    )


def run(args) -> int:
    "Copy models into data/assets (large ones in bfloat16), track them, push their objects."
    root = project_root()
    release = load_params(root / "params.yaml")["release"]
    assets = release["assets"]
    made = profile_folder(root, args.profile or release["profile"])
    unknown = [name for name in args.names if name not in assets]
    if unknown:
        hint = did_you_mean(unknown[0], assets)
        raise ParamsError(f"no asset {unknown[0]!r}{hint}; assets are {', '.join(assets)}")
    check_output_folder(root / "data" / "assets", args.names or assets)
    for target in args.names or assets:
        source = assets[target]
        named = {"model": source} if isinstance(source, str) else source
        _release(root, target, {k: f"{made.relative_to(root)}/{v}" for k, v in named.items()})
    for command in (["dvc", "add", "data"], ["dvc", "push", "data.dvc"]):
        subprocess.run(command, cwd=root, check=True)
    return 0


def _release(root: Path, target: str, source: dict[str, str]) -> None:
    "Write one asset from a model, and from a predictor of its own where one is named."
    for path in source.values():
        if not (root / path).exists():
            raise CopError(
                f"no trained model at {path}: run the pipeline or the profile that makes it first"
            )
    tensors, meta = load_weights(root / source["model"])
    if "predictor" in source:
        tensors |= _predictor(root, source, meta)
    about = {**meta, "released_from": source}
    save_weights(root / "data" / "assets" / target, _in_half(tensors, meta), about)
    print(f"{' + '.join(source.values())} -> data/assets/{target}")


def _predictor(root: Path, source: dict[str, str], meta: dict) -> dict:
    "Weights of another roll predictor, named as the piano model names its own."
    tensors, about = load_weights(root / source["predictor"])
    if about.get("config") != meta.get("predictor"):
        raise CopError(
            f"{source['predictor']} is not of the configuration of the predictor "
            f"in {source['model']}"
        )
    return {f"predictor.{name}": value for name, value in tensors.items()}


def _in_half(tensors: dict, meta: dict) -> dict:
    "Weights of a large model in bfloat16, but those of its predictor; a codec's must not change."
    size = sum(value.numel() for value in tensors.values())
    if meta.get("asset") == "codec" or size <= LARGE:
        return tensors
    return {
        name: value.bfloat16()
        if value.is_floating_point() and not name.startswith("predictor.")
        else value
        for name, value in tensors.items()
    }
