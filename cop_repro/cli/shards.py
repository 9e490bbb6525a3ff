# SPDX-License-Identifier: Apache-2.0
"`cop shards FOLDER`: an integrity check of a sharded store."

from cop_repro.cli._progress import progress

HELP = "check every byte of a sharded store, and list its refused clips"


def add_arguments(parser) -> None:
    "A store."
    parser.add_argument("folder", help="a sharded store, such as features/real/NAME")
    parser.add_argument("--show", type=int, default=20, help="refused clips to print")


def run(args) -> int:
    "Read every byte of a sharded store; print what it holds and which clips were refused."
    from cop_repro.data.shards import ShardedStore

    store = ShardedStore(args.folder)
    files = store.verify(progress)
    columns = ", ".join(f"{n} {c.shape[1:]} {c.dtype}" for n, c in store.columns.items())
    print(
        f"{store.folder.name}: {len(store)} clips in {len(store.names)} shards, "
        f"{files} files as they were written; columns {columns}"
    )
    print(f"{len(store.rejects)} clips refused")
    for name, why in list(store.rejects.items())[: args.show]:
        print(f"  {name}: {why}")
    return 0
