# SPDX-License-Identifier: Apache-2.0
"`cop weights ACTION`: networks of others that the published model uses."

import json
from pathlib import Path

from cop_repro.cli._progress import progress
from cop_repro.core import (
    CopError,
    check_output_file,
    check_output_folder,
    did_you_mean,
    project_root,
)

HELP = (
    "list, fetch, lock or check EnCodec, FLAN-T5 and OpenCLIP; make assets of them; "
    "convert a pickled checkpoint"
)

ACTIONS = ("list", "fetch", "lock", "verify", "use", "convert")
NAME_HELP = (
    "encodec, flan_t5_large, openclip_bigg; default: all; for convert: a pickled checkpoint, "
    "which is read once, tensors only"
)
MAX_SOUNDS = 512  # training clips that EnCodec's statistics are fitted on
SOUNDS_AT_ONCE = 4


def add_arguments(parser) -> None:
    "What to do with which network."
    parser.add_argument("action", choices=ACTIONS, help="what to do")
    parser.add_argument("name", nargs="?", default="", help=NAME_HELP)
    parser.add_argument("--folder", help="where they lie; default: weights/ of the checkout")
    parser.add_argument("--json", action="store_true", help="for list")
    parser.add_argument(
        "--clips",
        default="features/clips/piano",
        help="for use: store whose training sound EnCodec's statistics are fitted on",
    )
    parser.add_argument(
        "-o", "--output", default="weights/assets", help="for use: folder of the assets"
    )


def run(args) -> int:
    "List, fetch, lock or check the networks of others; `use` makes assets of them."
    folder = Path(args.folder) if args.folder else project_root() / "weights"
    if args.action == "list":
        _list(folder, args.json)
    elif args.action == "convert":
        _convert(args.name)
    elif args.action == "use":
        _use(folder, Path(args.clips), Path(args.output))
    else:
        _fetch_lock_verify(args.action, args.name, folder)
    return 0


def _list(folder: Path, as_json: bool) -> None:
    "Every network with its state, source and licence, and what is missing."
    from cop_repro.model.weights import weights_rows

    rows = weights_rows(folder)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print("\n".join(_row_lines(row)))
    print(_summary(rows))


def _row_lines(row: dict) -> list[str]:
    "One network."
    unconfirmed = f" ({row['unconfirmed']}: not confirmed)" if row["unconfirmed"] else ""
    details = (
        f"from {row['source']} at {row['revision']}{unconfirmed}",
        f"files {', '.join(row['files'])}",
        f"licence {row['licence']}",
        f"looked for in {row['looked_for']}",
    )
    head = f"{row['name']:14s} {row['state']:16s} {row['gigabytes']:7.3f} GB  {row['purpose']}"
    return [head, *(f"{'':14s} {detail}" for detail in details)]


def _summary(rows: list[dict]) -> str:
    "How many are there, and how to get the others."
    missing = [row for row in rows if not row["state"].startswith("present")]
    present = f"{len(rows) - len(missing)} of {len(rows)} present"
    if not missing:
        return present
    size = sum(row["gigabytes"] for row in missing)
    return f"{present}; to fetch: {size:.1f} GB, e.g. `cop weights fetch {missing[0]['name']}`"


def _convert(checkpoint: str) -> None:
    "A pickled checkpoint as safetensors."
    from cop_repro.judges.pretrained import convert_checkpoint

    if not checkpoint:
        raise CopError("convert needs a file: `cop weights convert CHECKPOINT`")
    target = check_output_file(Path(checkpoint).with_suffix(".safetensors"), [checkpoint])
    print(f"wrote {convert_checkpoint(checkpoint, target).name}")


def _fetch_lock_verify(action: str, name: str, folder: Path) -> None:
    "Fetch or lock one network or all, and check each."
    from cop_repro.model.weights import WEIGHTS, fetch_weights, lock_weights

    if name and name not in WEIGHTS:
        hint = did_you_mean(name, WEIGHTS)
        raise CopError(f"no network {name!r}{hint}; there are {', '.join(WEIGHTS)}")
    if action != "verify":
        check_output_folder(folder)
    for network in [name] if name else list(WEIGHTS):
        if action == "fetch":
            fetch_weights(network, folder, progress)
        elif action == "lock":
            lock_weights(network, folder)
        print(_verified(network, folder))


def _verified(name: str, folder: Path) -> str:
    "What the check of a network found."
    from cop_repro.model.weights import LOCK, verify_weights, weights_folder

    found = f"{name}: {len(verify_weights(name, folder))} files as they should be"
    if (weights_folder(name, folder) / LOCK).is_file():
        return found
    return f"{found}; no lock yet, so only format and shapes were checked: `cop weights lock`"


def _use(folder: Path, clips: Path, output: Path) -> None:
    "Assets for the pipeline: EnCodec with statistics of these clips, the real encoders' places."
    from cop_repro.data.shards import open_store
    from cop_repro.model.codec import save_codec
    from cop_repro.model.encoders import build_encoders, save_encoders
    from cop_repro.model.weights import real_codec, real_encoders

    encoders, codec = output / "encoders.safetensors", output / "codec.safetensors"
    check_output_folder(output, [encoders.name, codec.name])
    store = open_store(clips)
    rows, split = store.select(split="train"), store.about.get("split_hash", "")
    if not len(rows):
        raise CopError(f"{clips} holds no training clips to fit EnCodec's statistics on")
    save_encoders(encoders, build_encoders(real_encoders(folder)), split)
    save_codec(codec, real_codec(folder, _sounds(store, rows)), split)
    print(f"{encoders} and {codec}: name them in train_encoders.asset and train_codec.asset")


def _sounds(store, rows):
    "Training sounds of a store, a few at a time."
    from cop_repro.data.clips import store_wav

    for begin in range(0, min(len(rows), MAX_SOUNDS), SOUNDS_AT_ONCE):
        yield store_wav(store, rows[begin : begin + SOUNDS_AT_ONCE])
