# SPDX-License-Identifier: Apache-2.0
"A plan as tables."


def plan_text(made: dict) -> str:
    "A plan as tables."
    machine = made["machine"]
    parts = (
        [
            f"profile {made['profile']} on {machine['gpus']} x {machine['kind'].upper()} "
            f"with {machine['memory_gb']:g} GB"
        ],
        _parameter_lines(made["parameters"]),
        _written_lines(made),
        _fit_lines(made["jobs"], machine["sharded"]),
        _total_lines(made),
        [f"- {text}" for text in made["assumptions"]],
    )
    return "\n\n".join("\n".join(part) for part in parts)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _time(hours: float) -> str:
    "A time in the unit that suits it."
    if hours >= 1:
        return f"{hours:,.2f} hours"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"


def _parameter_lines(counts: dict[str, int]) -> list[str]:
    "Parameters by network."
    return [
        f"{'network':22s} {'parameters':>14s}",
        *(f"{name:22s} {count:14,d}" for name, count in counts.items()),
    ]


def _written_lines(made: dict) -> list[str]:
    "Every job as the profile is written, whether it fits or not."
    gpus, processes = made["machine"]["gpus"], made["processes"]
    other = (
        ""
        if processes == gpus
        else f" (its machines are {processes} processes, this plan is for {gpus} GPUs)"
    )
    limit = made["machine"]["memory_gb"]
    jobs = [_written_line(job, limit) for job in made["as_written"]]
    return [f"as the profile is written{other}:", *jobs]


def _written_line(job: dict, memory_gb: float) -> str:
    "One job as written."
    return (
        f"{job['job']:32s} {'fits' if job['fits'] else 'does not fit'}: "
        f"{job['memory_gb']:.2f} GB of {memory_gb:g} with {job['clips_per_gpu']} clips/GPU, "
        f"accumulate {job['accumulate']}, recompute {_yes(job['checkpointing'])}, "
        f"sharding {'full' if job['sharded'] else 'none'}, {_time(job['hours'])}"
    )


def _fit_lines(jobs: list[dict], sharded: bool) -> list[str]:
    "Every job in the cheapest way that fits."
    how = "weights divided among the GPUs" if sharded else "whole weights on each GPU"
    return [
        f"cheapest way with {how}:",
        f"{'training run':32s} {'steps':>8s} {'clips/GPU':>10s} {'accumulate':>10s} "
        f"{'recompute':>10s} {'GB/GPU':>8s} {'PFLOP':>12s} {'time':>14s}",
        *(_fit_line(job) for job in jobs),
    ]


def _fit_line(job: dict) -> str:
    "One job that fits."
    return (
        f"{job['job']:32s} {job['steps']:8d} {job['clips_per_gpu']:10d} {job['accumulate']:10d} "
        f"{_yes(job['checkpointing']):>10s} {job['memory']['total']:8.2f} "
        f"{job['flops'] / 1e15:12,.3f} {_time(job['hours']):>14s}"
    )


def _total_lines(made: dict) -> list[str]:
    "Memory of the largest job, disk, hours."
    full = max(made["jobs"], key=lambda job: job["memory"]["total"])
    memory = ", ".join(f"{purpose} {gb:.2f} GB" for purpose, gb in full["memory"].items())
    disk = ", ".join(f"{purpose} {gb:,.2f} GB" for purpose, gb in made["disk_gb"].items())
    clips = ", ".join(f"{count:,} {kind}" for kind, count in made["clips"].items())
    total, encoders = made["hours"]["total"], made["hours"]["frozen_encoders"]
    filling = made["filling"]
    counts = filling["workers"]
    prepared = (
        [
            f"shards of recorded sets (engine {filling['engine']}): prepare "
            f"{_time(filling['hours']['prepare'])} with {counts['prepare']} workers, encode "
            f"{_time(encoders)} with {counts['encode']}"
        ]
        if encoders
        else []
    )
    return [
        f"memory of one GPU in {full['job']}: {memory}",
        f"disk: {disk} ({clips} clips)",
        *prepared,
        f"time: training {_time(total - encoders)}, frozen encoders {_time(encoders)}, "
        f"together {_time(total)}",
    ]
