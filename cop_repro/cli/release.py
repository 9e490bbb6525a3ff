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
        help="names of release.assets in the parameters, e.g. general.safetensors; default: all",
    )


def run(args) -> int:
    "Copy models into data/assets (large ones in bfloat16), track them, push their objects."
    root = project_root()
    release = load_params(root / "params.yaml")["release"]
    profile = args.profile or release["profile"]
    assets = {name: s for name, s in release["assets"].items() if _is_made_by(profile, s)}
    made = profile_folder(root, profile)
    unknown = [name for name in args.names if name not in assets]
    if unknown:
        hint = did_you_mean(unknown[0], assets)
        raise ParamsError(f"no asset {unknown[0]!r}{hint}; assets are {', '.join(assets)}")
    check_output_folder(root / "data" / "assets", args.names or assets)
    sources = {name: _sources(root, made, assets[name]) for name in args.names or assets}
    ready = {target: _asset(root, source) for target, source in sources.items()}
    for target, (tensors, about) in ready.items():
        save_weights(root / "data" / "assets" / target, tensors, about)
        print(f"{' + '.join(sources[target].values())} -> data/assets/{target}")
    for command in (["dvc", "add", "data"], ["dvc", "push", "data.dvc"]):
        subprocess.run(command, cwd=root, check=True)
    return 0


def _is_made_by(profile: str, source: str | dict[str, str]) -> bool:
    "Whether a profile makes an asset; one that names a profile is made by no other."
    return isinstance(source, str) or source.get("profile", profile) == profile


def _sources(root: Path, made: Path, source: str | dict[str, str]) -> dict[str, str]:
    "Files of one asset by what they hold, from the checkout; one that does not exist is an error."
    named = {"model": source} if isinstance(source, str) else dict(source)
    named.pop("profile", None)
    paths = {what: f"{made.relative_to(root)}/{path}" for what, path in named.items()}
    for path in paths.values():
        if not (root / path).exists():
            raise CopError(
                f"no trained model at {path}, so nothing is released: run the pipeline or the "
                "profile that makes it first"
            )
    return paths


def _asset(root: Path, source: dict[str, str]) -> tuple[dict, dict]:
    "Weights and description of one asset: a model, with a predictor of its own where one is named."
    tensors, meta = load_weights(root / source["model"])
    if "predictor" in source:
        tensors |= _predictor(root, source, meta)
    return _in_half(tensors, meta), {**meta, "released_from": source}


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
