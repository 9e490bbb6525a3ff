# SPDX-License-Identifier: Apache-2.0
"`cop bench ACTION`: the Chain-of-Perform benchmark as files, and scores of submissions."

from dataclasses import replace
from pathlib import Path

from cop_repro.cli._failures import one_line
from cop_repro.cli._process import say
from cop_repro.cli._progress import progress, progress_beside
from cop_repro.core import BadInput, check_output_folder, project_root

HELP = "export, check and import the benchmark; score submissions; make the leaderboard"

BENCHMARK = "benchmark"  # where `score` looks for an exported folder
RESULTS = "results"  # where it writes


def add_arguments(parser) -> None:
    "One parser for each action."
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", help="what to do"
    )

    def action(name: str, text: str, act):
        made = actions.add_parser(name, help=text, description=text)
        made.set_defaults(act=act)
        return made

    _add_export(action("export", "write the clips of a split as files", _export))
    check = action("validate", "list all faults of an export or a submission", _validate)
    check.add_argument("folder", help="an exported folder, or one with submission.json")
    check.add_argument(
        "--benchmark", default=BENCHMARK, help="for a submission: the exported folder"
    )
    read = action("import", "lay an exported folder out as a recorded set", _import)
    read.add_argument("folder", help="an exported folder")
    read.add_argument("-o", "--output", required=True, help="folder to make")
    _add_score(action("score", "score a submission, and write its result", _score))
    _add_ladder(action("ladder", "score our own systems on true and on predicted inputs", _ladder))
    _add_style(action("style", "train and score four ways of playing in a style at L4", _style))
    _add_views(action("views", "train and score a predictor that reads all five views", _views))
    page = action("board", "make the leaderboard of a folder of results", _board)
    page.add_argument("results", help="a folder that `score` or `ladder` has filled")
    page.add_argument("-o", "--output", required=True, help="folder to make: index.html")


def _add_export(parser) -> None:
    "The arguments of `export`."
    parser.add_argument("output", help="folder to make")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="clips")
    parser.add_argument("--limit", type=int, help="at most so many clips of each kind")
    parser.add_argument(
        "--only-levels",
        action="store_true",
        help="leave out the general track and the style pairs",
    )
    parser.add_argument("--manifest", default="data/manifest.json", help="which clips there are")
    parser.add_argument("--workers", type=int, default=1, help="processes")


def _add_score(parser) -> None:
    "The arguments of `score`."
    parser.add_argument("folder", help="a submission")
    parser.add_argument("--benchmark", default=BENCHMARK, help="the exported folder")
    parser.add_argument("-o", "--output", default=RESULTS, help="folder of results")
    parser.add_argument("--judges", help="weights behind FAD and the like, as for `cop score`")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")


def _add_ladder(parser) -> None:
    "The arguments of `ladder`."
    parser.add_argument("--benchmark", default=BENCHMARK, help="the exported folder")
    parser.add_argument("-o", "--output", default=RESULTS, help="folder of results")
    parser.add_argument("--assets", help="folder with other weights; default: the shipped ones")
    parser.add_argument("--styles", help="styles.safetensors of `style`: its rows join at L4")
    parser.add_argument("--dpo", help="dpo.safetensors of `style`, for the rows dpo and both")
    parser.add_argument("--judges", help="weights behind FAD and the like, as for `cop score`")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise and the bootstrap")


def _add_style(parser) -> None:
    "The arguments of `style`."
    parser.add_argument("--split", choices=("val", "test"), default="test", help="clips")
    parser.add_argument("--clips", type=int, default=16, help="how many, of as many works")
    parser.add_argument("--rows", help="e.g. none,reference; default: every row")
    parser.add_argument("-o", "--output", default="reports/style", help="folder of the results")


def _add_views(parser) -> None:
    "The arguments of `views`."
    parser.add_argument(
        "--train",
        action="store_true",
        help="train it and its control first (else: score views.safetensors of --assets)",
    )
    parser.add_argument("--split", choices=("val", "test"), default="test", help="clips to score")
    parser.add_argument("--clips", type=int, help="with --train: clips of 5 s; default: 128")
    parser.add_argument("--steps", type=int, help="with --train: optimiser steps; default: 1500")
    parser.add_argument("--assets", help="folder with other weights; default: the shipped ones")
    parser.add_argument("-o", "--output", default="reports/views", help="folder of the results")


def run(args) -> int:
    "Run the action; a folder with faults is answered with all of them and code 2."
    from cop_repro.benchmark.protocol import Faulty

    try:
        return args.act(args)
    except Faulty as error:
        return _refused(error.what, error.faults)


def _refused(what: str, faults: list[str]) -> int:
    "Every fault on a line of its own."
    say(f"cop bench: {what}: {_count(faults)}, nothing is written")
    for fault in faults:
        say(f"  {one_line(fault)}")
    return 2


def _count(faults: list[str]) -> str:
    "How many faults there are."
    return f"{len(faults)} fault{'' if len(faults) == 1 else 's'}"


def _new_folder(name: str) -> Path:
    "A folder that is yet to be made, or is empty."
    folder = check_output_folder(name)
    if folder.is_dir() and any(folder.iterdir()):
        raise BadInput(f"{folder} is not empty: give another folder, or remove it")
    return folder


def _export(args) -> int:
    "Render and write the clips of a split."
    from cop_repro.benchmark.exchange import export_benchmark, plan_export
    from cop_repro.cli._assets import etudes_folder
    from cop_repro.data.clips import load_works, read_manifest

    if min(args.workers, 1 if args.limit is None else args.limit) < 1:
        raise BadInput("--workers and --limit: at least 1 is needed")
    folder = _new_folder(args.output)
    plan = plan_export(*read_manifest(args.manifest), args.split, args.limit)
    if args.only_levels:
        plan = replace(plan, general=(), pairs=())
    scores = load_works(plan.works, etudes_folder(), progress)
    made = export_benchmark(plan, scores, folder, args.workers, progress)
    print(f"{folder}: {len(made['clips'])} clips of split {args.split}, described in DATACARD.md")
    return 0


def _validate(args) -> int:
    "Check an exported folder or a submission."
    from cop_repro.benchmark.checks import benchmark_faults
    from cop_repro.benchmark.exchange import read_benchmark
    from cop_repro.benchmark.submissions import check_submission

    folder = Path(args.folder)
    if (folder / "submission.json").exists():
        check_submission(folder, read_benchmark(args.benchmark))
    elif faults := benchmark_faults(folder):
        return _refused(folder.name, faults)
    print(f"{folder}: no faults")
    return 0


def _import(args) -> int:
    "Lay the piano clips out as a recorded set."
    from cop_repro.benchmark.checks import import_benchmark

    target = _new_folder(args.output)
    made = import_benchmark(args.folder, target, progress)
    notes = sum(len(played) for played in made.values())
    print(f"{target}: {len(made)} clips, {notes} notes; name it in prepare.sets")
    return 0


def _score(args) -> int:
    "Score a submission and write its result."
    from cop_repro.benchmark.scores import (
        make_scoring,
        open_submission,
        result_path,
        score_submission,
        write_result,
    )
    from cop_repro.cli.score import find_judge

    submission, bench = open_submission(args.folder, args.benchmark)
    name = result_path(submission.about["system"], args.output).name
    check_output_folder(args.output, (name,))
    judges, report = find_judge(args.judges), progress_beside()
    result = score_submission(
        submission, make_scoring(submission, bench, judges, args.seed, report)
    )
    path = write_result(result, args.output)
    print("\n".join(_lines(result)))
    print(f"wrote {path}")
    return 0


def _lines(result: dict) -> list[str]:
    "A result for people to read."
    counts = ", ".join(
        f"{s['clips']} clips of {s['works']} works" for s in result["scored"].values()
    )
    head = one_line(f"{result['system']['system']}: {counts}")
    return [head, *(_line(line) for line in result["lines"])]


def _line(line: dict) -> str:
    "One metric; the headline of a level is marked."
    mark = "*" if line["headline"] else " "
    name = f"{line['level']:8s}{mark}{line['metric']:28s}"
    if line["value"] is None:
        return f"{name} {line['note']}"
    low, high = line["ci_low"], line["ci_high"]
    interval = "" if low is None or high is None else f" [{low:.4f}, {high:.4f}]"
    return f"{name} {line['value']:.4f}{interval} {line['unit']} n={line['n']}".rstrip()


def _ladder(args) -> int:
    "Score our own systems with their controls, and write everything that a leaderboard shows."
    from cop_repro.benchmark.checks import benchmark_faults
    from cop_repro.benchmark.exchange import read_benchmark
    from cop_repro.benchmark.own_results import write_run
    from cop_repro.benchmark.own_systems import check_split, open_run, own_systems
    from cop_repro.benchmark.protocol import Faulty
    from cop_repro.benchmark.scores import Scoring, bench_style_judge
    from cop_repro.cli._assets import assets_folder
    from cop_repro.cli.score import find_judge
    from cop_repro.systems.cop import load_performer

    folder, bench = check_output_folder(args.output), read_benchmark(args.benchmark)
    if faults := benchmark_faults(args.benchmark, deep=False):
        raise Faulty(bench.folder.name, faults)
    assets = Path(args.assets) if args.assets else assets_folder()
    check_split(assets / "piano.safetensors", bench)
    judges, style = find_judge(args.judges), bench_style_judge(bench)
    performer = load_performer(assets)
    run = open_run(performer, Scoring(bench, judges, style, args.seed, progress))
    styled = _styled(args, performer, bench)
    views = _views_of(assets, performer, bench)
    entries = write_run(folder, own_systems(performer, args.seed, styled, views), run)
    for entry in entries:
        print("\n".join(_cells(entry)))
    print(f"wrote {folder}: `cop bench board {folder} -o leaderboard` makes the page")
    return 0


def _views_of(assets: Path, performer, bench):
    "The network of five views beside the weights, if there is one."
    from cop_repro.benchmark.own_systems import check_split
    from cop_repro.cli._views import SHIPPED
    from cop_repro.model.views import load_views

    path = assets / SHIPPED
    if not path.is_file():
        say(f"cop bench: no {SHIPPED} in {assets}: the rows of five views are left out")
        return None
    check_split(path, bench)
    return load_views(path, performer.piano.predictor)[0]


def _styled(args, performer, bench) -> dict:
    "Systems of level 4 in a style, from files that `style` has trained."
    if args.styles is None:
        if args.dpo:
            raise BadInput("--dpo without --styles: give both files that `cop bench style` made")
        return {}
    from cop_repro.benchmark.own_systems import check_split
    from cop_repro.benchmark.styles import style_system
    from cop_repro.model.cop_piano import load_piano
    from cop_repro.systems.styles import load_styles

    for path in filter(None, (args.styles, args.dpo)):
        check_split(path, bench)
    styles = load_styles(args.styles, performer.piano, performer.codec.latent_id)[0]
    dpo = load_piano(args.dpo)[0] if args.dpo else None
    rows = ("dpo", "reference", "both") if dpo else ("reference",)
    made = {f"style {row}": style_system(row, performer, styles, dpo) for row in rows}
    for system in made.values():
        system.seed = args.seed
    return made


def _cells(entry: dict) -> list[str]:
    "Cells of a system for people to read."
    head = f"{entry['system']}: {entry['scored']['clips']} clips"
    return [
        head,
        *(f"  {c['level']} given {c['j']} {c['value']:.4f} {c['metric']}" for c in entry["cells"]),
    ]


def _style(args) -> int:
    "Train both ways on style pairs, score the rows on clips of other works, write the table."
    from cop_repro.benchmark.styles import STYLE_ROWS, StylePlan, style_table
    from cop_repro.cli._styles import StyleStudy

    if args.clips < 2:
        raise BadInput(f"--clips is {args.clips}; at least 2, of different works, are needed")
    rows = list(STYLE_ROWS) if args.rows is None else ["none", *args.rows.split(",")]
    study = StyleStudy(project_root(), StylePlan(), check_output_folder(args.output))
    scored = study.score(list(dict.fromkeys(rows)), args.split, args.clips)
    print(style_table(scored))
    print(f"wrote {study.output}")
    return 0


def _views(args) -> int:
    "Render side views, train on those of training works, score those of a split."
    from cop_repro.cli._assets import assets_folder
    from cop_repro.cli._views import SHIPPED, ViewStudy, plan_of

    if not args.train and (args.clips, args.steps) != (None, None):
        raise BadInput("--clips and --steps say how to train: give --train too, or leave them out")
    plan = plan_of(args.clips, args.steps)
    assets = Path(args.assets) if args.assets else assets_folder()
    study = ViewStudy(project_root(), assets, check_output_folder(args.output), plan)
    weights = study.train() if args.train else assets / SHIPPED
    print(study.score(weights, args.split))
    print(f"wrote {study.output}; weights: {weights}")
    return 0


def _page_folder(name: str) -> Path:
    "A folder for the page: new, empty, or that of an earlier page, which is replaced as a whole."
    folder = check_output_folder(name)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "leaderboard.json").is_file():
        raise BadInput(f"{folder} holds other files than a leaderboard: give another folder")
    return folder


def _board(args) -> int:
    "The leaderboard of a folder of results."
    from cop_repro.benchmark.leaderboard import build_leaderboard

    page = build_leaderboard(args.results, _page_folder(args.output))
    print(f"wrote {page}")
    return 0
