# SPDX-License-Identifier: Apache-2.0
"What a profile's training runs will need: jobs from its parameters, counted costs, tables."

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

from cop_repro.cli._plan_costs import Costs
from cop_repro.core import RATES, BadInput, from_dict
from cop_repro.data.clips import keep_items, read_manifest
from cop_repro.data.cluster import filling_s
from cop_repro.data.real_sets import REAL_SETS
from cop_repro.model.cop_piano import RollInput
from cop_repro.model.dit import DiTConfig, StreamConfig
from cop_repro.model.roll import RollConfig
from cop_repro.training import planning
from cop_repro.training.contrast import ContrastConfig
from cop_repro.training.guidance import GuidanceConfig, guidance_job
from cop_repro.training.loop import TrainConfig
from cop_repro.training.planning import Cost, Fit, Job, Machine, NetworkCosts
from cop_repro.training.stages import OBJECTIVES, published_counts

CLIP_S = 10.0
PIANO_CLIPS = 12 * 360  # twelve hours in windows of 10 s: PianoYT 2 h, Piano-10h
# Seconds of one core for a clip of 10 s, measured on one recording each: VGGSound in 1280 x 720,
# its sound alone, PianoYT in 1840 x 200.
PREPARE_S = {"video": 5.6, "sound": 0.15, "piano": 1.7}


def manifest_items(root: Path, params: dict) -> list | None:
    "Clips that `prepare` would render, None where there is no manifest."
    path = root / params["prepare"]["manifest"]
    if not path.exists():
        return None
    return keep_items(read_manifest(path)[0], params["prepare"]["keep"])


def _settings_of(variant: str) -> tuple[str, ...]:
    "Where the parameters of a stage-3 objective lie."
    return ("train_preference", "variants", variant, "settings")


class Plan:
    "The training runs of one parameters file, and what each of them costs."

    def __init__(self, params: dict, costs: Costs):
        self.params = params
        self.costs = costs
        self.tokens = params["encode"]["max_tokens"]
        self.dit = self.config(DiTConfig, "train_general", "dit")
        self.stream = self.config(StreamConfig, "train_piano", "roll_stream")
        self.predictor = self.config(RollConfig, "train_roll", "roll")
        self.grown = replace(self.dit, roll=self.stream, roll_keys=88)
        self.real_encoders = params["train_encoders"]["encoders"]["kind"] == "real"

    def config(self, cls: type, *keys: str):
        "A dataclass from one mapping of the parameters; errors name the mapping."
        value = self.params
        for key in keys:
            value = value[key]
        return from_dict(cls, value, ".".join(keys))

    def variants(self, stage: str) -> dict[str, dict]:
        "Matrix entries of a stage."
        return self.params[stage]["variants"]

    def train(self, stage: str, variant: str | None = None) -> TrainConfig:
        "How a stage, or a variant of it, trains."
        inside = ("variants", variant) if variant else ()
        return self.config(TrainConfig, stage, *inside, "train")

    def crop_s(self, stage: str) -> float:
        "Window of a stage's clips, seconds."
        return self.params[stage]["crop_s"]

    def dit_cost(self, config: DiTConfig, seconds: float, cfg: TrainConfig) -> Cost:
        "One clip of so many seconds through a DiT."
        return self.costs("dit", config, RATES.latents(seconds), self.tokens, cfg.precision)

    def predictor_cost(self, seconds: float, cfg: TrainConfig) -> Cost:
        "One video of so many seconds through the roll predictor."
        return self.costs("predictor", self.predictor, RATES.frames(seconds), 0, cfg.precision)

    def piano_costs(self, seconds: float, cfg: TrainConfig, way: RollInput) -> tuple[Cost, Cost]:
        "Both networks of the piano model: the DiT with a place for the roll, the roll predictor."
        grown = way.sizes(self.dit, self.stream, 88)
        return self.dit_cost(grown, seconds, cfg), self.predictor_cost(seconds, cfg)

    def guidance(self, variant: str) -> GuidanceConfig:
        "A variant of stage 2."
        return self.config(GuidanceConfig, "train_piano", "variants", variant)

    def way_of(self, start: str) -> RollInput:
        "How the roll enters the model that a stage-3 variant starts from."
        stage, *names = start.split("/")
        known = stage == "train_piano" and names and names[0] in self.variants("train_piano")
        return self.guidance(names[0]).roll_input if known else RollInput()

    def _heads(self) -> ContrastConfig:
        "The contrastive heads of the profile; their defaults where no variant trains any."
        for name, entry in self.variants("train_preference").items():
            if OBJECTIVES[entry["objective"]].settings is ContrastConfig:
                return self.config(ContrastConfig, *_settings_of(name))
        return ContrastConfig()

    def parameters(self) -> dict[str, int]:
        "Parameters of every network that the papers name, and of this profile's piano model."
        counts = published_counts(self.dit, self.stream, self.predictor.width, self._heads().width)
        piano = self.piano_costs(self.crop_s("train_piano"), self.train("train_piano"), RollInput())
        return {
            **counts,
            "predictor": piano[1].parameters,
            "piano": sum(cost.parameters for cost in piano),
        }


def _jobs(plan: Plan) -> Iterator[Job]:
    "Every training run, in the pipeline's order."
    stages = (_general_jobs, _roll_jobs, _piano_jobs, _preference_jobs)
    for job in chain.from_iterable(stage(plan) for stage in stages):
        yield replace(job, checkpointing=plan.dit.checkpointing)


def _general_jobs(plan: Plan) -> Iterator[Job]:
    "Stage 1: sound and text alone where asked for, then all conditions."
    cfg, seconds = plan.train("train_general"), plan.crop_s("train_general")
    first_steps = plan.params["train_general"]["t2a_steps"]
    if first_steps:
        first = replace(cfg, steps=first_steps, warmup_steps=0, ema=0.0)
        cost = plan.dit_cost(plan.dit, seconds, first)
        yield planning.network_job("train_general: sound and text", cost, first)
    yield planning.network_job("train_general", plan.dit_cost(plan.dit, seconds, cfg), cfg)


def _roll_jobs(plan: Plan) -> Iterator[Job]:
    "The roll predictor."
    cfg = plan.train("train_roll")
    cost = plan.predictor_cost(plan.crop_s("train_roll"), cfg)
    yield planning.network_job("train_roll", cost, cfg)


def _piano_jobs(plan: Plan) -> Iterator[Job]:
    "Stage 2, one run a variant."
    cfg = plan.train("train_piano")
    seconds = plan.crop_s("train_piano")
    general_items = plan.params["train_piano"]["general_items"]
    for name in plan.variants("train_piano"):
        guidance = plan.guidance(name)
        costs = plan.piano_costs(seconds, cfg, guidance.roll_input)
        yield guidance_job(f"train_piano@{name}", *costs, cfg, guidance, general_items)


def _preference_jobs(plan: Plan) -> Iterator[Job]:
    "Stage 3, one run a variant."
    seconds = plan.crop_s("train_preference")
    for name, entry in plan.variants("train_preference").items():
        objective = OBJECTIVES[entry["objective"]]
        cfg = plan.train("train_preference", name)
        settings = plan.config(objective.settings, *_settings_of(name))
        base = plan.dit_cost(plan.dit, seconds, cfg)
        costs = plan.piano_costs(seconds, cfg, plan.way_of(entry["start"]))
        networks = NetworkCosts(plan.dit, base, *costs)
        yield objective.cost(f"train_preference@{name}", networks, cfg, settings)


def _clips(plan: Plan, items: list | None) -> dict[str, int]:
    "Clips by what they bring: real sets for real encoders, else the rendered corpus."
    if not plan.real_encoders:
        return _rendered_clips(items or [])
    sets = [s for s in REAL_SETS.values() if s.num_paper and s.name != "VGGSound"]
    return {
        "video": REAL_SETS["VGGSound"].num_paper,
        "sound": sum(s.num_paper for s in sets),
        "piano": PIANO_CLIPS,
    }


def _clip_bytes(plan: Plan, kind: str) -> int:
    "Features of one clip of 10 s."
    strip = plan.params["prepare"]["strip"]
    size = (strip["height"], strip["width"]) if kind == "piano" else None
    widths = (plan.dit.text_width, plan.dit.video_features)
    return planning.feature_bytes(CLIP_S, plan.tokens, *widths, size, kind != "sound")


def _encoding_flops(plan: Plan, clips: dict[str, int]) -> float:
    "Operations of the frozen encoders; the embedded ones are too small to count."
    if not plan.real_encoders:
        return 0
    frames = RATES.frames(CLIP_S)
    return sum(
        count * planning.encoder_flops(0 if kind == "sound" else frames, plan.tokens)
        for kind, count in clips.items()
    )


def _clip_flops(plan: Plan) -> int:
    "One forward pass of the piano DiT over 10 s."
    if plan.crop_s("train_piano") == CLIP_S:
        return plan.dit_cost(plan.grown, CLIP_S, plan.train("train_piano")).flops
    return plan.costs("flops", plan.grown, RATES.latents(CLIP_S), plan.tokens)


def _rendered_clips(items: list) -> dict[str, int]:
    "Clips of the rendered corpus by what they bring."
    found = {"video": 0, "sound": 0, "piano": 0}
    kinds = {"foley": "video", "t2a": "sound"}
    for item in items:
        found[kinds.get(item.domain, item.domain)] += 1
    return found


def _fit(job: Job, machine: Machine) -> tuple[Job, Fit, Fit]:
    "A job, how it runs as written, and the cheapest way that fits; none at all is an error."
    written = planning.fit_as_written(job, machine)
    try:
        return job, written, planning.fit_job(job, machine)
    except BadInput:
        if written.memory["total"] > machine.memory_gb:
            raise
        return job, written, written


def make_plan(
    params: dict,  # a whole parameters file
    machine: Machine,
    items: list | None = None,  # of the manifest
    costs: Costs | None = None,
    workers: int | None = None,  # that fill shards; None: as the parameters say
) -> dict:
    "Counts, memory, operations, disk and hours of all training runs; all that fit, or an error."
    plan = Plan(params, costs or Costs())
    jobs, written, fits = zip(*(_fit(job, machine) for job in _jobs(plan)))
    clips = _clips(plan, items)
    encoding = _encoding_flops(plan, clips)
    filling = _filling(plan, machine, clips, workers)
    return {
        "profile": params["profile"],
        "machine": asdict(machine),
        "parameters": plan.parameters(),
        "processes": params["machines"]["processes"] * params["machines"]["nodes"],
        "as_written": [_as_written(j, e, machine) for j, e in zip(jobs, written)],
        "jobs": [asdict(fit) for fit in fits],
        "memory_gb": max(fit.memory["total"] for fit in fits),
        "flops": _operations(plan, fits, encoding),
        "clips": clips,
        "disk_gb": _disk(plan, jobs, clips),
        "filling": filling,
        "hours": _hours(fits, filling["hours"]["encode"]),
        "assumptions": _assumptions(machine, plan.real_encoders, filling),
    }


def _num_workers(params: dict, machine: Machine, workers: int | None) -> dict[str, int]:
    "Workers by stage: those asked for; one a GPU under Dask; else processes of one machine."
    if workers is not None and workers < 1:
        raise BadInput(f"{workers} workers: at least one is needed")
    if workers is None and params["machines"].get("engine", "local") == "local":
        return {"prepare": params["prepare"]["workers"], "encode": 1}
    return dict.fromkeys(("prepare", "encode"), workers or machine.gpus)


def _filling(plan: Plan, machine: Machine, clips: dict[str, int], workers: int | None) -> dict:
    "Workers and hours of the stages that fill shards with recorded sets, a store a kind of clip."
    counts = _num_workers(plan.params, machine, workers)
    made = {"engine": plan.params["machines"].get("engine", "local"), "workers": counts}
    if not plan.real_encoders:
        return made | {"hours": {"prepare": 0.0, "encode": 0.0}}
    size, hours = plan.params["prepare"]["shard_size"], {"prepare": 0.0, "encode": 0.0}
    for kind, count in clips.items():
        encode_s = 3600 * _encoding_hours(plan, machine, kind)
        for stage, clip_s in (("prepare", PREPARE_S[kind]), ("encode", encode_s)):
            hours[stage] += filling_s(count, clip_s, counts[stage], size) / 3600
    return made | {"hours": hours}


def _encoding_hours(plan: Plan, machine: Machine, kind: str) -> float:
    "Hours of one GPU for one clip in the frozen encoders."
    flops = _encoding_flops(plan, {kind: 1})
    return planning.hours(flops, replace(machine, gpus=1), "fp32")


def _as_written(job: Job, fit: Fit, machine: Machine) -> dict:
    "A job exactly as its parameters say."
    return {
        "job": fit.job,
        "fits": fit.memory["total"] <= machine.memory_gb,
        "memory_gb": fit.memory["total"],
        "clips_per_gpu": fit.clips_per_gpu,
        "accumulate": fit.accumulate,
        "checkpointing": fit.checkpointing,
        "sharded": job.sharded,
        "hours": fit.hours,
    }


def _operations(plan: Plan, fits: tuple[Fit, ...], encoding: float) -> dict:
    "Floating-point operations of training, encoding and sampling."
    one_clip = _clip_flops(plan)
    steps = plan.params["evaluate"]["sample"]["num_steps"]
    return {
        "training": sum(fit.flops for fit in fits),
        "frozen_encoders": encoding,
        "one_clip_forward": one_clip,
        "sampling_one_clip": 3 * steps * one_clip,
    }


def _disk(plan: Plan, jobs: tuple[Job, ...], clips: dict[str, int]) -> dict:
    "GB of features, of the largest run's checkpoints and of all finished models."
    features = sum(count * _clip_bytes(plan, kind) for kind, count in clips.items())
    checkpoints = max(
        planning.checkpoint_bytes(job.trained, job.ema, 2, job.by_muon) for job in jobs
    )
    finished = [job for job in jobs if "sound and text" not in job.name]
    return {
        "features": features / 1e9,
        "checkpoints": checkpoints / 1e9,
        "models": sum(4 * job.trained for job in finished) / 1e9,
    }


def _hours(fits: tuple[Fit, ...], encoder_hours: float) -> dict:
    "Hours by job, of the frozen encoders, and together."
    return {
        **{fit.job: fit.hours for fit in fits},
        "frozen_encoders": encoder_hours,
        "total": sum(fit.hours for fit in fits) + encoder_hours,
    }


def _assumptions(machine: Machine, real_encoders: bool, filling: dict) -> list[str]:
    "What the plan counts, what it assumes, what it leaves out."
    return [
        "counted: parameters, operations (products, convolutions, attention; a training step is "
        "3 forward passes), kept tensors, features, checkpoints",
        _speed_assumption(machine),
        _memory_assumption(machine),
        *_clip_assumptions(real_encoders, filling),
        "not counted: loading, communication between GPUs, the optimiser, evaluation (codec, "
        "encoders and models on the parameters' device; judges, transcription and rendering on the "
        "CPU), the decoded recordings themselves",
    ]


def _speed_assumption(machine: Machine) -> str:
    "How fast a step is taken to be."
    peaks = planning.PEAK_TFLOPS[machine.kind]
    listed = ", ".join(f"{precision} {peak:g} TFLOP/s" for precision, peak in peaks.items())
    return (
        f"assumed: a step reaches {machine.mfu:.0%} of the peak of an {machine.kind.upper()} "
        f"({listed}); "
        "--mfu changes it"
    )


def _memory_assumption(machine: Machine) -> str:
    "What of a GPU's memory is taken to be lost, and what each GPU holds."
    held = (
        "weights, gradients and moments are divided among the GPUs"
        if machine.sharded
        else "every GPU holds all weights (--sharded divides them)"
    )
    return (
        f"assumed: the allocator wastes {machine.waste:.0%} and context and workspaces take "
        f"{machine.context_gb} GB; {held}"
    )


def _clip_assumptions(real_encoders: bool, filling: dict) -> tuple[str, ...]:
    "Which clips there are, and where they are prepared and encoded."
    if real_encoders:
        workers, measured = (
            filling["workers"],
            ", ".join(f"{s} s a {k}" for k, s in PREPARE_S.items()),
        )
        return (
            "clips: Table 1 of arXiv 2503.22200 and twelve hours of piano (PianoYT 2 h, "
            "Piano-10h) in windows of 10 s",
            f"frozen encoders: {workers['encode']} workers with one GPU each in fp32, whole shards "
            "each (--workers, machines.engine)",
            f"prepare: {workers['prepare']} workers with one core each; measured on one recording "
            f"of each kind: {measured}",
        )
    return (
        "clips: those of the manifest that prepare.keep leaves; embedded encoders are too small "
        "to count",
        "embedded encoders and codec compute on the parameters' device",
    )
