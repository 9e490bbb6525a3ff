"Parameter files: what params.yaml may hold, and how a profile changes it. A door: library code never imports it."

import hashlib
import importlib
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

import yaml

from cop_repro.core import ParamsError, did_you_mean, from_dict

OPEN = {
    "keep",
    "sets",
    "repeats",
    "models",
    "settings",
}  # mappings with free keys: a profile replaces them whole

KEYS = {  # keys of a plain section; * is any name. What becomes a dataclass is in SHAPES, everything else is a value
    "": "profile seed threads device machines manifest prepare train_codec train_encoders train_judges encode train_general train_roll train_piano train_preference train_systems evaluate report release",
    "manifest": "seed fractions duration_s sizes",
    "manifest.fractions": "train val test",
    "prepare": "manifest etudes strip keep registers workers sets shard_size",
    "train_codec": "source asset init learn codec data crop_s train",
    "train_encoders": "source asset encoders training train",
    "train_judges": "source asset judges data crop_s train",
    "encode": "max_tokens",
    "train_general": "init relearn dit crop_s dropout t2a_steps data train",
    "train_roll": "init roll crop_s train",
    "train_piano": "init relearn roll_stream crop_s dropout general_items train variants",
    "train_preference": "crop_s preferred dropout variants",
    "train_preference.variants.*": "objective start made settings train",
    "train_systems": "variants",
    "train_systems.variants.*": "system settings train",
    "evaluate": "sample clips touches general_clips workers variants",
    "report": "paper tables real seeds nuisance examples",
    "release": "assets",
}

TRAIN, SCENES, DROPOUT, SAMPLE = (
    "training.loop.TrainConfig",
    "training.features.SceneData",
    "model.flow.DropoutConfig",
    "model.flow.SampleConfig",
)
SHAPES = {  # place -> its dataclass, or several of which the stage chooses; the first that fits counts
    "machines": "training.launch.Machines",
    "manifest.sizes": "data.clips.SetSizes",
    "prepare.strip": "data.clips.StripSize",
    "train_codec.codec": "model.codec.CodecConfig",
    "train_codec.data": SCENES,
    "train_codec.train": TRAIN,
    "train_encoders.encoders": "model.encoders.EncodersConfig",
    "train_encoders.training": "model.encoders.EncodersTraining",
    "train_encoders.train": TRAIN,
    "train_judges.judges": "judges.networks.JudgeSizes",
    "train_judges.data": "judges.networks.JudgeData",
    "train_judges.train": TRAIN,
    "train_general.dit": "model.dit.DiTConfig",
    "train_general.dropout": DROPOUT,
    "train_general.data": SCENES,
    "train_general.train": TRAIN,
    "train_roll.roll": "model.roll.RollConfig",
    "train_roll.train": TRAIN,
    "train_piano.roll_stream": "model.dit.StreamConfig",
    "train_piano.dropout": DROPOUT,
    "train_piano.train": TRAIN,
    "train_piano.variants.*": "training.guidance.GuidanceConfig",
    "train_preference.dropout": DROPOUT,
    "train_preference.variants.*.train": TRAIN,
    "train_systems.variants.*.train": TRAIN,
    "train_preference.variants.*.settings": "training.contrast.ContrastConfig training.preference.PreferenceConfig",
    "evaluate.sample": SAMPLE,
    "evaluate.variants.*.*.sample": SAMPLE,
    "evaluate.variants.*.*": "evaluation.evaluate.RowEntry",
}
PARTS = (
    "evaluate.variants.*.*.sample",
)  # fields that differ from another mapping: none is missing
ENTRIES = (
    "train_piano.variants",
    "train_preference.variants",
    "train_systems.variants",
    "evaluate.variants",
    "evaluate.variants.*",
)  # a profile drops an entry of these with null


def settings_hash(params: Mapping) -> str:
    "What two runs that differ in their seed alone have in common."
    shared = {
        k: v
        for k, v in params.items()
        if k not in ("profile", "seed", "threads", "device", "machines", "report", "release")
    }
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]


def load_params(path: Path) -> dict:
    "The whole parameters file."
    if not path.is_file():
        raise ParamsError(f"no parameters file {path.name}")
    try:
        made = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ParamsError(f"{path.name} is not YAML: {error}") from None
    if not isinstance(made, dict):
        raise ParamsError(f"{path.name} holds no parameters")
    return made


def _fits(pattern: str, place: tuple) -> bool:
    "Whether a pattern names a place."
    parts = pattern.split(".") if pattern else []
    return len(parts) == len(place) and all(p in ("*", q) for p, q in zip(parts, place))


def _named(cls: type, key: str) -> Iterator[type]:
    "Dataclasses that a field may hold."
    kind = typing.get_type_hints(cls).get(key)
    yield from (k for k in (kind, *typing.get_args(kind)) if is_dataclass(k))


def shapes_at(place: tuple[str, ...]) -> tuple[type, ...]:
    "The dataclasses that a place of the parameters becomes; none for a plain section."
    pattern = next((p for p in SHAPES if _fits(p, place)), None)
    if pattern is None:
        return tuple(
            inner
            for cls in (shapes_at(place[:-1]) if place else ())
            for inner in _named(cls, place[-1])
        )
    return tuple(
        getattr(importlib.import_module(f"cop_repro.{module}"), name)
        for module, _, name in (n.rpartition(".") for n in SHAPES[pattern].split())
    )


def merge(base: dict, over: dict, place: tuple[str, ...] = ()) -> dict:
    "A profile changes values of params.yaml and fields that it leaves at their default; null drops a variant; an unknown key is an error."
    made = dict(base)
    for key, value in over.items():
        here = (*place, key)
        if key not in base and key not in (
            known := [*base, *(f.name for cls in shapes_at(place) for f in fields(cls))]
        ):
            raise ParamsError(
                f"profile: unknown parameter {'.'.join(map(str, here))!r}{did_you_mean(key, known)}; known are {', '.join(dict.fromkeys(map(str, known)))}"
            )
        if value is None and any(_fits(p, place) for p in ENTRIES):
            del made[key]
        elif isinstance(base.get(key), dict) and isinstance(value, dict) and key not in OPEN:
            made[key] = merge(base[key], value, here)
        else:
            made[key] = value
    return made


def _check_keys(value: object, known: list[str], where: str, complete: bool = True) -> None:
    "Refuse unknown and missing keys by name."
    if not isinstance(value, Mapping):
        raise ParamsError(
            f"{where or 'the file'} is {value!r}; a mapping with {', '.join(known)} is needed"
        )
    for key in value:
        if key not in known:
            raise ParamsError(
                f"unknown parameter {f'{where}.{key}'.strip('.')!r}{did_you_mean(key, known)}; known are {', '.join(known)}"
            )
    for key in known if complete else ():
        if key not in value:
            raise ParamsError(f"missing parameter {f'{where}.{key}'.strip('.')!r}")


def check_params(params: dict, *sections: str, place: tuple[str, ...] = ()) -> None:
    "Refuse unknown, missing and ill-typed parameters by name; dataclasses of the named sections alone, of all where none is named."
    value, where = params, ".".join(place)
    if classes := shapes_at(place) if place and (not sections or place[0] in sections) else ():
        part = any(_fits(p, place) for p in PARTS)
        if part or len(classes) > 1:
            _check_keys(
                value, [f.name for cls in classes for f in fields(cls)], where, complete=False
            )
        else:
            from_dict(classes[0], value, where)
    elif (pattern := next((p for p in KEYS if _fits(p, place)), None)) is not None:
        _check_keys(value, KEYS[pattern].split(), where)
    if isinstance(value, Mapping) and (not place or place[-1] not in OPEN):
        for key, inner in value.items():
            check_params(inner, *sections, place=(*place, str(key)))
