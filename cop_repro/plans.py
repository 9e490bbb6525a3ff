"What a profile's training runs will need: jobs from its parameters, costs that were counted before, tables. A door: library code never imports it."

import json
from dataclasses import asdict, replace
from pathlib import Path

from cop_repro.core import RATES, BadInput, code_fingerprint, from_dict, write_json


class Costs:
    "Counted costs, kept in a file between calls: counting a network takes seconds, reading its cost none. Other code or another torch counts anew."

    def __init__(self, path: Path | None = None):
        import torch

        self.path, self.known, self.counted = path, {}, 0
        self.code = f"{code_fingerprint('cop_repro.training.planning', 'cop_repro.model.dit', 'cop_repro.model.roll', 'cop_repro.model.flow')} torch {torch.__version__}"
        try:
            kept = json.loads(path.read_text()) if path else {}
        except (OSError, ValueError):
            kept = {}
        if isinstance(kept, dict) and kept.get("code") == self.code:
            self.known = kept["costs"]

    def __call__(self, kind: str, config, length: int, tokens: int, precision: str = "fp32"):
        "Cost of one clip (`dit`, `predictor`), or operations alone (`flops`)."
        from cop_repro.training import planning as P

        key = repr((kind, config, length, tokens, precision))
        if key not in self.known:
            made = {
                "dit": lambda: P.dit_cost(config, length, tokens, precision),
                "predictor": lambda: P.predictor_cost(config, length, precision),
                "flops": lambda: P.dit_flops(config, length, tokens),
            }[kind]()
            self.known[key], self.counted = (
                made if kind == "flops" else asdict(made),
                self.counted + 1,
            )
        return self.known[key] if kind == "flops" else P.Cost(**self.known[key])

    def save(self) -> None:
        if self.path and self.counted:
            write_json(self.path, {"code": self.code, "costs": self.known})


def make_plan(
    params: dict, machine, manifest_items: list | None = None, costs: Costs | None = None
) -> dict:
    "Counts, memory, operations, disk and hours of all training runs of one parameters file; a job that does not fit is an error."
    from cop_repro.data.real_sets import REAL_SETS
    from cop_repro.model.dit import DiTConfig, StreamConfig
    from cop_repro.model.roll import RollConfig
    from cop_repro.training import planning as P
    from cop_repro.training.contrast import ContrastConfig
    from cop_repro.training.guidance import GuidanceConfig, guidance_job
    from cop_repro.training.loop import TrainConfig
    from cop_repro.training.stages import OBJECTIVES, published_counts

    def section(cls, value, where, drop=()):
        return from_dict(cls, {k: v for k, v in value.items() if k not in drop}, where)

    general, rolls, piano, later = (
        params[n] for n in ("train_general", "train_roll", "train_piano", "train_preference")
    )
    dit, stream = (
        section(DiTConfig, general["dit"], "train_general.dit"),
        section(StreamConfig, piano["roll_stream"], "train_piano.roll_stream"),
    )
    predictor, tokens = (
        section(RollConfig, rolls["roll"], "train_roll.roll"),
        params["encode"]["max_tokens"],
    )
    heads = section(
        ContrastConfig, later["variants"]["cl"]["settings"], "train_preference.variants.cl.settings"
    )
    counts = published_counts(dit, stream, predictor.width, heads.width)
    train = {
        "stage1": section(TrainConfig, general["train"], "train_general.train"),
        "roll": section(TrainConfig, rolls["train"], "train_roll.train"),
        "piano": section(TrainConfig, piano["train"], "train_piano.train"),
        **{
            n: section(TrainConfig, v["train"], f"train_preference.variants.{n}.train")
            for n, v in later["variants"].items()
        },
    }
    costs = costs or Costs()

    def cost(kind, config, seconds, precision):
        return costs(
            kind,
            config,
            RATES.latents(seconds) if kind == "dit" else RATES.frames(seconds),
            tokens if kind == "dit" else 0,
            precision,
        )

    grown = replace(dit, roll=stream, roll_keys=88)
    base = lambda seconds, cfg: cost("dit", dit, seconds, cfg.precision)
    both = lambda seconds, cfg: (
        cost("dit", grown, seconds, cfg.precision),
        cost("predictor", predictor, seconds, cfg.precision),
    )
    first = (
        replace(train["stage1"], steps=general["t2a_steps"], warmup_steps=0, ema=0.0)
        if general["t2a_steps"]
        else None
    )

    def jobs():
        if first:
            yield P.network_job(
                "train_general: sound and text", base(general["crop_s"], first), first
            )
        yield P.network_job(
            "train_general", base(general["crop_s"], train["stage1"]), train["stage1"]
        )
        yield P.network_job(
            "train_roll",
            cost("predictor", predictor, rolls["crop_s"], train["roll"].precision),
            train["roll"],
        )
        for n, v in piano["variants"].items():
            yield guidance_job(
                f"train_piano@{n}",
                *both(piano["crop_s"], train["piano"]),
                train["piano"],
                section(GuidanceConfig, v, f"train_piano.variants.{n}"),
                piano["general_items"],
            )
        for n, v in later["variants"].items():
            objective, where = OBJECTIVES[v["objective"]], f"train_preference.variants.{n}.settings"
            networks = P.NetworkCosts(
                dit, base(later["crop_s"], train[n]), *both(later["crop_s"], train[n])
            )
            yield objective.cost(
                f"train_preference@{n}",
                networks,
                train[n],
                section(objective.settings, v["settings"], where),
            )

    def planned(job):
        exact = P.fit_as_written(job, machine)
        try:
            return job, exact, P.fit_job(job, machine)
        except (
            BadInput
        ):  # no other way fits, which ends the plan at once, unless it fits as written
            if exact.memory["total"] > machine.memory_gb:
                raise
            return job, exact, exact

    jobs, exact, fits = zip(
        *(planned(replace(job, checkpointing=dit.checkpointing)) for job in jobs())
    )
    real_encoders = params["train_encoders"]["encoders"]["kind"] == "real"
    clips = (
        _planned_clips(params, manifest_items)
        if not real_encoders
        else {
            "video": REAL_SETS["VGGSound"].num_paper,
            "sound": sum(
                s.num_paper for s in REAL_SETS.values() if s.num_paper and s.name != "VGGSound"
            ),
            "piano": 12 * 360,
        }
    )
    size = params["prepare"]["strip"]
    each = {
        n: P.feature_bytes(
            10.0,
            tokens,
            dit.text_width,
            dit.video_features,
            (size["height"], size["width"]) if n == "piano" else None,
            n != "sound",
        )
        for n in clips
    }
    encoding = (
        sum(
            n * P.encoder_flops(0 if kind == "sound" else RATES.frames(10.0), tokens)
            for kind, n in clips.items()
        )
        if real_encoders
        else 0
    )
    encoder_hours = P.hours(
        encoding, replace(machine, gpus=1), "fp32"
    )  # stage `encode` is one process on one GPU
    sample_steps = params["evaluate"]["sample"]["num_steps"]
    at10 = (
        cost("dit", grown, 10.0, train["piano"].precision).flops
        if piano["crop_s"] == 10.0
        else costs("flops", grown, RATES.latents(10.0), tokens)
    )
    return {
        "profile": params["profile"],
        "machine": asdict(machine),
        "parameters": {
            **counts,
            "predictor": both(piano["crop_s"], train["piano"])[1].parameters,
            "piano": sum(c.parameters for c in both(piano["crop_s"], train["piano"])),
        },
        "processes": params["machines"]["processes"] * params["machines"]["nodes"],
        "as_written": [
            {
                "job": e.job,
                "fits": e.memory["total"] <= machine.memory_gb,
                "memory_gb": e.memory["total"],
                "clips_per_gpu": e.clips_per_gpu,
                "accumulate": e.accumulate,
                "checkpointing": e.checkpointing,
                "sharded": j.sharded,
                "hours": e.hours,
            }
            for j, e in zip(jobs, exact)
        ],
        "jobs": [asdict(f) for f in fits],
        "memory_gb": max(f.memory["total"] for f in fits),
        "flops": {
            "training": sum(f.flops for f in fits),
            "frozen_encoders": encoding,
            "one_clip_forward": at10,
            "sampling_one_clip": 3 * sample_steps * at10,
        },
        "clips": clips,
        "disk_gb": {
            "features": sum(n * each[k] for k, n in clips.items()) / 1e9,
            "checkpoints": max(P.checkpoint_bytes(j.trained, j.ema, 2) for j in jobs) / 1e9,
            "models": sum(4 * j.trained for j in jobs if "sound and text" not in j.name) / 1e9,
        },
        "hours": {
            **{f.job: f.hours for f in fits},
            "frozen_encoders": encoder_hours,
            "total": sum(f.hours for f in fits) + encoder_hours,
        },
        "assumptions": _plan_assumptions(machine, real_encoders),
    }


def _planned_clips(params: dict, items: list | None) -> dict[str, int]:
    "Clips of the rendered corpus by what they bring."
    found = {"video": 0, "sound": 0, "piano": 0}
    for item in items or []:
        found[{"foley": "video", "t2a": "sound"}.get(item.domain, item.domain)] += 1
    return found


def _plan_assumptions(machine, real_encoders: bool) -> list[str]:
    "What the plan does not know."
    return [
        "counted: parameters, operations (products, convolutions, attention; a training step is 3 forward passes), kept tensors, features, checkpoints",
        f"assumed: a step reaches {machine.mfu:.0%} of the peak of a {machine.kind} ({', '.join(f'{k} {v:g} TFLOP/s' for k, v in _peaks(machine.kind).items())}); --mfu changes it",
        f"assumed: the allocator wastes {machine.waste:.0%} and context and workspaces take {machine.context_gb} GB; {'weights, gradients and moments are divided among the GPUs' if machine.sharded else 'every GPU holds all weights (--sharded divides them)'}",
        "clips: Table 1 of arXiv 2503.22200 and twelve hours of piano (PianoYT 2 h, Piano-10h) in windows of 10 s"
        if real_encoders
        else "clips: those of the manifest that prepare.keep leaves; embedded encoders are too small to count",
        "frozen encoders: one process on one GPU in fp32, whatever the number of GPUs"
        if real_encoders
        else "embedded encoders and codec compute on the parameters' device",
        "not counted: loading, communication between GPUs, evaluation (codec, encoders and models on the parameters' device; judges, transcription and rendering on the CPU), the decoded recordings themselves",
    ]


def _peaks(kind: str) -> dict[str, float]:
    from cop_repro.training.planning import PEAK_TFLOPS

    return PEAK_TFLOPS[kind]


def plan_text(made: dict) -> str:
    "A plan as tables."
    m = made["machine"]
    lines = [
        f"profile {made['profile']} on {m['gpus']} x {m['kind']} with {m['memory_gb']:g} GB",
        "",
        f"{'network':22s} {'parameters':>14s}",
    ]
    lines += [f"{n:22s} {c:14,d}" for n, c in made["parameters"].items()]
    lines += [
        "",
        "as the profile is written"
        + (
            ""
            if made["processes"] == m["gpus"]
            else f" (its machines are {made['processes']} processes, this plan is for {m['gpus']} GPUs)"
        )
        + ":",
    ]
    for w in made["as_written"]:
        lines.append(
            f"{w['job']:32s} {'fits' if w['fits'] else 'does not fit'}: {w['memory_gb']:.2f} GB of {m['memory_gb']:g} with {w['clips_per_gpu']} clips/GPU, accumulate {w['accumulate']}, recompute {'yes' if w['checkpointing'] else 'no'}, sharding {'full' if w['sharded'] else 'none'}, {w['hours']:.3f} h"
        )
    lines += [
        "",
        f"cheapest way with {'weights divided among the GPUs' if m['sharded'] else 'whole weights on each GPU'}:",
        f"{'training run':32s} {'steps':>8s} {'clips/GPU':>10s} {'accumulate':>10s} {'recompute':>10s} {'GB/GPU':>8s} {'PFLOP':>12s} {'hours':>9s}",
    ]
    for j in made["jobs"]:
        lines.append(
            f"{j['job']:32s} {j['steps']:8d} {j['clips_per_gpu']:10d} {j['accumulate']:10d} {'yes' if j['checkpointing'] else 'no':>10s} {j['memory']['total']:8.2f} {j['flops'] / 1e15:12,.3f} {j['hours']:9.3f}"
        )
    full = max(made["jobs"], key=lambda j: j["memory"]["total"])
    lines += [
        "",
        f"memory of one GPU in {full['job']}: "
        + ", ".join(f"{k} {v:.2f} GB" for k, v in full["memory"].items()),
    ]
    lines += [
        "disk: "
        + ", ".join(f"{k} {v:,.2f} GB" for k, v in made["disk_gb"].items())
        + f" ({', '.join(f'{n:,} {k}' for k, n in made['clips'].items())} clips)"
    ]
    lines += [
        f"hours: training {made['hours']['total'] - made['hours']['frozen_encoders']:.2f}, frozen encoders {made['hours']['frozen_encoders']:.2f}, together {made['hours']['total']:.2f}"
    ]
    return "\n".join([*lines, "", *(f"- {a}" for a in made["assumptions"])])
