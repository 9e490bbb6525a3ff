# SPDX-License-Identifier: Apache-2.0
"`cop mos FILES`: mean opinion scores from the ratings that the listening page saves."

import json
from dataclasses import asdict
from pathlib import Path

from cop_repro.core import BadInput, check_output_file, project_root, read_json, write_json

HELP = "mean opinion scores, with intervals over raters and clips, from files of ratings"


def add_arguments(parser) -> None:
    "Files of ratings, and the page that they were made with."
    parser.add_argument("files", nargs="+", help="what the listening page saved, one file a rater")
    parser.add_argument(
        "--page",
        metavar="FOLDER",
        help="the listening page that was heard; default: reports/listen of this checkout",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-o", "--output", help="write JSON to this file")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")


def run(args) -> int:
    "Mean opinion scores of every row that was rated."
    from cop_repro.evaluation.listening import check_ratings, opinion_scores

    if args.output is not None:
        check_output_file(args.output, args.files)
    page = _page(Path(args.page) if args.page else project_root() / "reports" / "listen")
    contents = {name: read_json(name) for name in _once(args.files)}
    scores = opinion_scores(check_ratings(contents, page), page, args.seed)
    made = {"page": page["id"], "scores": [asdict(score) for score in scores]}
    if args.output is not None:
        write_json(args.output, made)
    if args.json:
        print(json.dumps(made, indent=1))
    elif args.output is None:
        print("\n".join(map(_line, made["scores"])))
    return 0


def _once(names: list[str]) -> list[str]:
    "Files, each given once."
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"{name} is given {names.count(name)} times")
    return names


def _page(folder: Path) -> dict:
    "What raters could hear."
    path = folder / "page.json"
    if not path.is_file():
        raise BadInput(
            f"{folder.name} holds no listening page: `cop run report` makes one in reports/listen; "
            "give the one that was heard with --page FOLDER"
        )
    page = read_json(path)
    if not isinstance(page, dict) or set(page) != {"id", "rated", "clips"}:
        raise BadInput(f"{path} describes no listening page: id, rated and clips are needed")
    return page


def _line(score: dict) -> str:
    "One mean opinion score for people to read."
    interval = f"[{score['ci_low']:.2f}, {score['ci_high']:.2f}]"
    counts = f"{score['raters']} raters, {score['clips']} clips, {score['ratings']} ratings"
    return f"{score['question']:8s} {score['row']:24s} {score['value']:.2f} {interval} ({counts})"
