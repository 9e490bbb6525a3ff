# SPDX-License-Identifier: Apache-2.0
"`cop plan`: what the training runs of a profile will need, before anything starts."

import json

from cop_repro.cli._profiles import profile_params
from cop_repro.core import project_root

HELP = (
    "parameters, memory, operations, disk and hours of a profile's training runs, "
    "before anything starts"
)


def add_arguments(parser) -> None:
    "A profile and a machine."
    parser.add_argument("--profile", default="default", help="a file of profiles/, without .yaml")
    parser.add_argument("--gpus", type=int, help="default: as many as the profile has processes")
    parser.add_argument("--gpu-memory", type=float, default=80.0, help="GB of one GPU")
    parser.add_argument(
        "--gpu", default="a100", help="a100, a800 or h100: the GPU whose peak speed is assumed"
    )
    parser.add_argument(
        "--mfu", type=float, default=0.35, help="assumed fraction of the peak speed, 0 to 1"
    )
    parser.add_argument(
        "--sharded",
        action="store_true",
        help="divide weights, gradients and moments among the GPUs",
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="that prepare and encode recorded sets; default: with machines.engine dask one a GPU, "
        "else prepare.workers processes and one that encodes",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> int:
    "Print the plan of a profile on a machine, as tables or as JSON."
    from cop_repro.cli._plan import make_plan, manifest_items
    from cop_repro.cli._plan_costs import Costs
    from cop_repro.cli._plan_text import plan_text
    from cop_repro.training.planning import Machine

    root = project_root()
    params = profile_params(root, args.profile)
    items = manifest_items(root, params)
    costs = Costs(root / "work" / "plan-costs.json")
    try:
        gpus = _processes(params) if args.gpus is None else args.gpus
        machine = Machine(gpus, args.gpu_memory, args.gpu, args.mfu, args.sharded)
        made = make_plan(params, machine, items, costs, args.workers)
    finally:
        costs.save()
    print(json.dumps(made, indent=1) if args.json else plan_text(made))
    return 0


def _processes(params: dict) -> int:
    "Training processes of a profile, one a GPU."
    return params["machines"]["processes"] * params["machines"]["nodes"]
