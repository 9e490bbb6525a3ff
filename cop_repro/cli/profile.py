# SPDX-License-Identifier: Apache-2.0
"`cop profile NAME`: the whole pipeline with a profile's numbers."

from pathlib import Path

from cop_repro.cli._profiles import profile_params, publish, reproduce, scratch_copy
from cop_repro.core import CopError, project_root

HELP = "run the pipeline with a profile's numbers in a scratch copy"


def add_arguments(parser) -> None:
    "A profile, and the stages to run."
    parser.mixed = True
    parser.add_argument("name", help="a file of profiles/, without .yaml")
    parser.add_argument("targets", nargs="*", default=[], help="stages of dvc.yaml; default: all")
    parser.add_argument(
        "-S",
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value of a parameter, e.g. threads=1; may be repeated",
    )
    parser.add_argument(
        "--as", dest="copy", metavar="COPY", help="name of the scratch copy; default: NAME"
    )
    parser.add_argument(
        "--publish", action="store_true", help="copy its reports to reports/profiles/NAME"
    )


def run(args) -> int:
    "Run the whole pipeline with a profile's numbers in a scratch copy of the work tree."
    root, name = project_root(), args.name
    copy = name if args.copy is None else args.copy
    if not copy or Path(copy).name != copy or copy == "..":
        raise CopError(f"--as {copy!r}: the name of a folder in work/profiles is needed, no path")
    if args.publish and (args.set or copy != name):
        raise CopError("--publish is for a profile as it is written, without --set and --as")
    scratch = scratch_copy(root, copy, profile_params(root, name, args.set))
    print(f"profile {name}: scratch copy in {scratch.relative_to(root)}", flush=True)
    reproduce(scratch, name, args.targets)
    reports = scratch / "reports"
    print(f"profile {name}: reports are in {reports.relative_to(root)}", flush=True)
    if args.publish:
        target = root / "reports" / "profiles" / name
        publish(reports, target)
        print(f"published to {target.relative_to(root)}", flush=True)
    return 0
