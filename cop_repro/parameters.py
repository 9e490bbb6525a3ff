# SPDX-License-Identifier: Apache-2.0
"Parameter files: what params.yaml may hold, and how a profile changes it. Not for library code."

import hashlib
import importlib
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

import yaml

from cop_repro.core import ParamsError, did_you_mean, from_dict

# Mappings with free keys: a profile replaces them whole.
OPEN = {"keep", "sets", "repeats", "models", "settings"}

# Keys of a plain section; * is any name. What becomes a dataclass is in SHAPES, everything else is
# a value.
KEYS = {
    "": (
        "profile seed threads device machines manifest prepare prepare_scenes train_codec "
        "train_encoders train_judges train_vmcp encode train_general train_renderer train_roll "
        "train_piano train_preference train_systems train_composers train_animator "
        "evaluate_systems evaluate_bridges evaluate_cycle evaluate report release"
    ),
    "manifest": "seed fractions duration_s sizes",
    "manifest.fractions": "train val test",
    "prepare": "manifest etudes strip keep registers workers sets shard_size",
    "prepare_scenes": "scenes coupling splits free limit workers",
    "train_codec": "source asset init learn codec data crop_s train",
    "train_encoders": "source asset encoders training train",
    "train_judges": "source asset judges data crop_s train",
    "train_vmcp": "source asset scenes vmcp data pool piano train",
    "train_vmcp.piano": "vmcp data pool train",
    "encode": "max_tokens",
    "train_general": "init relearn dit crop_s dropout t2a_steps data train",
    "train_renderer": "init renderer data errors crop_s codec_weight train",
    "train_roll": "init learn roll crop_s touch train",
    "train_piano": "init relearn roll_stream crop_s dropout general_items train variants",
    "train_preference": "crop_s preferred dropout variants",
    "train_preference.variants.*": "objective start made settings train",
    "train_systems": "variants",
    "train_systems.variants.*": "system start settings train",
    "train_composers": "variants",
    "train_composers.variants.*": "system start settings train",
    "train_animator": "variants",
    "train_animator.variants.*": "start settings train",
    "evaluate_systems": "variants",
    "evaluate_bridges": "rows",
    "evaluate": "sample clips touches general_clips listening workers variants",
    "report": "paper tables claims real seeds nuisance ablation sampling injectors examples "
    "ratings",
    "release": "profile assets",
}

TRAIN = "training.loop.TrainConfig"
SCENES = "training.features.SceneData"
DROPOUT = "model.flow.DropoutConfig"
SAMPLE = "model.flow.SampleConfig"

# Place -> its dataclass; or a table of objects with `settings`, of which the stage chooses one.
# The first place that fits counts.
SHAPES = {
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
    "train_vmcp.vmcp": "judges.vmcp.VmcpConfig",
    "train_vmcp.data": "judges.vmcp.VmcpData",
    "train_vmcp.train": TRAIN,
    "train_vmcp.piano.vmcp": "judges.vmcp.VmcpConfig",
    "train_vmcp.piano.data": "judges.vmcp.VmcpData",
    "train_vmcp.piano.train": TRAIN,
    "train_general.dit": "model.dit.DiTConfig",
    "train_general.dropout": DROPOUT,
    "train_general.data": SCENES,
    "train_general.train": TRAIN,
    "train_renderer.renderer": "model.renderer.RendererConfig",
    "train_renderer.data": "training.features.PerformanceData",
    "train_renderer.errors": "training.components.NoteErrors",
    "train_renderer.train": TRAIN,
    "train_roll.roll": "model.roll.RollConfig",
    "train_roll.touch": "training.components.TouchTraining",
    "train_roll.train": TRAIN,
    "train_piano.roll_stream": "model.dit.StreamConfig",
    "train_piano.dropout": DROPOUT,
    "train_piano.train": TRAIN,
    "train_piano.variants.*": "training.guidance.GuidanceConfig",
    "train_preference.dropout": DROPOUT,
    "train_preference.variants.*.train": TRAIN,
    "train_preference.variants.*.settings": "training.stages.OBJECTIVES",
    "train_systems.variants.*.train": TRAIN,
    "train_composers.variants.*.train": TRAIN,
    "train_animator.variants.*.train": TRAIN,
    "evaluate_systems.variants.*": "evaluation.composition.ComposeRows",
    "evaluate_cycle": "evaluation.cycle.CycleRows",
    "evaluate_bridges.rows": "evaluation.bridging.BridgeRows",
    "evaluate.sample": SAMPLE,
    "evaluate.listening": "evaluation.evaluate.ListeningRule",
    "evaluate.variants.*.*.sample": SAMPLE,
    "evaluate.variants.*.*": "evaluation.evaluate.RowEntry",
}

# Fields that differ from another mapping: none is missing.
PARTS = ("evaluate.variants.*.*.sample",)

# A profile drops an entry of these with null.
ENTRIES = (
    "train_piano.variants",
    "train_preference.variants",
    "train_systems.variants",
    "train_composers.variants",
    "train_animator.variants",
    "evaluate_systems.variants",
    "evaluate.variants",
    "evaluate.variants.*",
)

# What two runs of the same settings may differ in.
UNSHARED = ("profile", "seed", "threads", "device", "machines", "report", "release")


def settings_hash(params: Mapping) -> str:
    "What two runs that differ in their seed alone have in common."
    shared = {key: value for key, value in params.items() if key not in UNSHARED}
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]


def load_params(path: Path) -> dict:
    "The whole parameters file."
    if not path.is_file():
        raise ParamsError(f"no parameters file {path.name}")
    try:
        made = yaml.safe_load(path.read_text("utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParamsError(f"{path.name} is not YAML in UTF-8: {error}") from None
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


def _classes(name: str) -> tuple[type, ...]:
    "The dataclass of an entry of SHAPES, or the settings of every object of a table."
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(f"cop_repro.{module}"), attribute)
    if isinstance(found, Mapping):
        return tuple(entry.settings for entry in found.values())
    return (found,)


def shapes_at(place: tuple[str, ...]) -> tuple[type, ...]:
    "The dataclasses that a place of the parameters becomes; none for a plain section."
    pattern = next((p for p in SHAPES if _fits(p, place)), None)
    if pattern is not None:
        return _classes(SHAPES[pattern])
    outer = shapes_at(place[:-1]) if place else ()
    return tuple(inner for cls in outer for inner in _named(cls, place[-1]))


def _known_keys(base: dict, place: tuple[str, ...]) -> list[str]:
    "Keys that a profile may set at a place: those of params.yaml, and fields at their default."
    shapes = [f.name for cls in shapes_at(place) for f in fields(cls)]
    return list(dict.fromkeys(map(str, [*base, *shapes])))


def _is_dropped(place: tuple[str, ...], value: object) -> bool:
    "Whether a profile drops an entry: null among the variants."
    return value is None and any(_fits(p, place) for p in ENTRIES)


def merge(base: dict, over: dict, place: tuple[str, ...] = ()) -> dict:
    """A profile's values over those of params.yaml.

    A profile changes values, sets fields that params.yaml leaves at their default, and drops a
    variant with null; an unknown key is an error.
    """
    made = dict(base)
    for key, value in over.items():
        here = (*place, key)
        if key not in base and key not in (known := _known_keys(base, place)):
            raise _unknown(".".join(map(str, here)), key, known, "profile: ")
        old = base.get(key)
        if _is_dropped(place, value):
            del made[key]
        elif isinstance(old, dict) and isinstance(value, dict) and key not in OPEN:
            made[key] = merge(old, value, here)
        else:
            made[key] = value
    return made


def _unknown(where: str, key: str, known: list[str], whose: str = "") -> ParamsError:
    "An unknown key, with the one that was probably meant."
    return ParamsError(
        f"{whose}unknown parameter {where!r}{did_you_mean(key, known)}; "
        f"known are {', '.join(known)}"
    )


def _check_keys(value: object, known: list[str], where: str, complete: bool = True) -> None:
    "Refuse unknown and missing keys by name."
    if not isinstance(value, Mapping):
        needed = ", ".join(known)
        raise ParamsError(f"{where or 'the file'} is {value!r}; a mapping with {needed} is needed")
    for key in value:
        if key not in known:
            raise _unknown(f"{where}.{key}".strip("."), key, known)
    for key in known if complete else ():
        if key not in value:
            raise ParamsError(f"missing parameter {f'{where}.{key}'.strip('.')!r}")


def _check_dataclass(value: object, classes: tuple[type, ...], place: tuple[str, ...]) -> None:
    "Refuse what a dataclass does not take; of several, or of a part, unknown keys alone."
    where = ".".join(place)
    if len(classes) == 1 and not any(_fits(p, place) for p in PARTS):
        from_dict(classes[0], value, where)
        return
    known = [f.name for cls in classes for f in fields(cls)]
    _check_keys(value, known, where, complete=False)


def check_params(params: dict, *sections: str, place: tuple[str, ...] = ()) -> None:
    """Refuse unknown, missing and ill-typed parameters by name.

    Dataclasses of the named sections alone are checked, those of all where none is named.
    """
    wanted = place and (not sections or place[0] in sections)
    classes = shapes_at(place) if wanted else ()
    pattern = next((p for p in KEYS if _fits(p, place)), None)
    if classes:
        _check_dataclass(params, classes, place)
    elif pattern is not None:
        _check_keys(params, KEYS[pattern].split(), ".".join(place))
    if isinstance(params, Mapping) and (not place or place[-1] not in OPEN):
        for key, inner in params.items():
            check_params(inner, *sections, place=(*place, str(key)))
