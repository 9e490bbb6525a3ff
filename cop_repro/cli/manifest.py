# SPDX-License-Identifier: Apache-2.0
"`cop manifest`: data/manifest.json from the installed scores."

from cop_repro.cli._progress import progress
from cop_repro.core import check_output_file, from_dict, project_root
from cop_repro.parameters import load_params

HELP = "make the corpus manifest anew from the installed scores and our études"


def add_arguments(parser) -> None:
    "It takes no arguments."


def run(args) -> int:
    "Write data/manifest.json: works, split, clips, seeds."
    from cop_repro.data.clips import SetSizes, rendered_items, write_manifest
    from cop_repro.data.performance import group_works, split_works

    root = project_root()
    cfg = load_params(root / "params.yaml")["manifest"]
    check_output_file(root / "data" / "manifest.json")
    seed, fractions = cfg["seed"], cfg["fractions"]
    scores = _scores(root / "data" / "etudes")
    works = split_works(group_works(scores), seed, fractions)
    sizes = from_dict(SetSizes, cfg["sizes"], "manifest.sizes")
    items = rendered_items(scores, works, sizes, cfg["duration_s"], seed)
    about = {"seed": seed, "fractions": fractions, "sizes": cfg["sizes"]}
    write_manifest(root / "data" / "manifest.json", items, works, **about)
    print(f"{len(items)} clips of {len(works)} works")
    return 0


def _scores(etudes_folder) -> list:
    "Our études and the chosen works of the installed corpus."
    from cop_repro.data.performance import DEFAULT_WORKS, corpus_scores, etudes

    return [*etudes(etudes_folder), *corpus_scores(DEFAULT_WORKS, progress)]
