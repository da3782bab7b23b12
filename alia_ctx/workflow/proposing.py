"""A run proposed for a Hugging Face model: stages to a longer context, each with its RoPE,
budget and layout, and why.
"""

from __future__ import annotations

import dataclasses
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from alia_ctx.config.base import Published, published
from alia_ctx.config.layouts import first_choice
from alia_ctx.config.room import roomier
from alia_ctx.config.run import (
    DataConfig,
    EngineConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    StageConfig,
)
from alia_ctx.data.packing import PackSpec
from alia_ctx.errors import ConfigError, Problem
from alia_ctx.hf.trained_length import TrainedLength, trained_length
from alia_ctx.planner import (
    LayoutChoice,
    RopeFigures,
    left_out_choices,
    rope_figures,
    standard_choices,
    stretched_further,
)
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import ROPE_TYPES, RopeSpec
from alia_ctx.workflow.proposed_machines import MOST_GPUS, gpus_here, machines_in_turn

STEP = 8  # the card's 4,096 -> 32,768; more than this is done in two stages or more
_UPDATES = 500  # of a stage; the card's first has 477
# Two runs that are known: parameters, tokens of an update, learning rate. Of
# SmolLM2-135M docs/smollm2.md, of ALIA-40b its model card.
_SMALL, _LARGE = (134_515_008, 131_072, 4.0e-4), (40_433_885_184, 4_194_304, 9.0e-7)
# Models nearer, by the logarithm of their parameters, to the first than to the second are
# trained as the first was (docs/smollm2.md), all others as the second.
SMALL = round(math.sqrt(_SMALL[0] * _LARGE[0]))
SMALL_SCHEDULE, SMALL_DECAY = ScheduleConfig("linear", warmup=0.05), 0.01


@dataclass(frozen=True)
class ProposedStage:
    """A stage with its reasons.

    Args:
        figures: of the RoPE that is left as it was, where that can be computed at this
            context, and of the others that were compared, by name; `chosen` is the name
            of the one that is taken.
        choice: the planner's first layout, usable or not.
    """

    name: str
    stage: StageConfig
    figures: dict[str, RopeFigures]
    chosen: str
    choice: LayoutChoice


@dataclass(frozen=True)
class Proposal:
    """A run of the model in `directory`, on `gpus` GPUs of `machine` (0: the processor)."""

    directory: Path
    base: Published
    run: RunConfig
    stages: list[ProposedStage]
    gpus: int
    machine: str

    @property
    def reads(self) -> TrainedLength:
        """Tokens that the base reads with its own RoPE."""
        return trained_length(self.directory, self.base.rope, self.base.context)

    @property
    def is_small(self) -> bool:
        """Whether what was found with a small model is taken over."""
        return _is_small(self.base.model)

    @property
    def fits(self) -> bool:
        return all(stage.choice.fits for stage in self.stages)

    @property
    def usable(self) -> bool:
        """Whether it fits, or may: guesses of memory stand in doubt."""
        return all(stage.choice.usable for stage in self.stages)


def propose(
    directory: Path,
    name: str,
    context: int | None = None,
    gpus: int | None = None,
    machine: str | None = None,
) -> Proposal:
    """A run that extends the model in `directory`.

    Args:
        name: of the run.
        context: of its last stage; None is `STEP` times the base's.
        gpus: how many; 0 is the processor. None takes the GPUs of this machine; where it
            has none the processor, or, where that has too little memory, as few GPUs as
            will do.
        machine: a name of `MACHINES`.

    CheckpointError where the directory has no model that can be computed, ConfigError
    where there is nothing to extend, or no layout of so many GPUs can be used.
    """
    base = published(str(directory))
    target = base.context * STEP if context is None else context
    if target <= base.context:
        rule = f"is not above the {base.context} tokens that the base has already"
        problem = Problem("--context", target, rule, "give a longer one, as in 160k")
        raise ConfigError("", [problem])
    counts = machines_in_turn(gpus, machine)
    first = next(counts)
    proposal = _proposal(directory, name, base, target, *first)
    given = gpus or (proposal.gpus if machine is None and gpus_here() else 0)
    if gpus and proposal.usable:
        return proposal
    if given and not proposal.usable and (roomy := _roomier(proposal, name, target)):
        return roomy
    tried = proposal
    while not tried.fits and (more := next(counts, None)) is not None:
        tried = _proposal(directory, name, base, target, *more)
    if gpus:
        stage = next(s for s in proposal.stages if not s.choice.usable)
        rule = f"no layout can be used for {stage.name}: {stage.choice.reason}"
        remedy = _remedy(proposal, tried, name, target)
        raise ConfigError("", [Problem("--gpus", gpus, rule, remedy)])
    return tried if tried.fits else proposal


def _roomier(proposal: Proposal, name: str, target: int) -> Proposal | None:
    """The proposal with what takes less memory at hardly any time; None where that is not
    enough.
    """
    found = []
    for _, run in roomier(proposal.run):
        at = proposal.gpus, proposal.machine, run.cluster
        other = _proposal(
            proposal.directory, name, proposal.base, target, *at, run.engine
        )
        found += [other] if other.usable else []
    return next((p for p in found if p.fits), found[0] if found else None)


def _remedy(proposal: Proposal, tried: Proposal, name: str, target: int) -> str:
    """More GPUs where they do, or else the longest context, halved and halved again, that
    these do for.
    """
    if tried.fits:
        return f"take {tried.gpus:,} GPUs"
    base, context = proposal.base, target // 2
    at = proposal.gpus, proposal.machine, proposal.run.cluster
    while context > base.context:
        if _proposal(proposal.directory, name, base, context, *at).usable:
            return f"take a shorter --context: {stage_name(context)} has room"
        context //= 2
    return (
        f"neither {MOST_GPUS:,} of these GPUs nor a shorter --context do; name others "
        "with --on"
    )


def contexts(base: int, target: int) -> list[int]:
    """The contexts of the stages from `base` to `target` tokens: times `STEP`, then the
    rest, as few as do.
    """
    stages, context = [], base
    while target > STEP * context:
        context *= STEP
        stages.append(context)
    return [*stages, target]


def stage_name(context: int) -> str:
    """163840 -> 160k, 2097152 -> 2m, 5000 -> 5000."""
    for unit, word in ((1 << 20, "m"), (1 << 10, "k")):
        if context % unit == 0:
            return f"{context // unit}{word}"
    return str(context)


def rope_choices(base: Published, reads: int, context: int) -> dict[str, RopeSpec]:
    """What a RoPE for `context` tokens may be, the first choice first. A base that is
    scaled already keeps its type and original length, and is stretched by as much more
    as `context` is above what it reads. dynamic stretches by the length of the row
    itself; being plain at the length that it was trained at, it also has the choices of
    a base that is not scaled.

    reads: tokens that the base reads with its own RoPE.
    """
    rope = base.rope
    if rope.type not in ("default", "dynamic"):
        further = stretched_further(rope, max(1.0, context / reads), context)
        return {rope.type: further}
    standard = standard_choices(rope, base.model.head_dim, reads, context)
    own = {"dynamic": rope} if rope.type == "dynamic" else {}
    return own | {k: v for k, v in standard.items() if k in ("llama3", "yarn")}


def _compared_at(base: Published, reads: int) -> int:
    """The context by which angles count as seen: what the base reads, or what its factor
    reaches where that is less (Llama 3.1 has 131,072 tokens at 8 x 8,192).
    """
    rope, original = base.rope, base.rope.original_max_position_embeddings
    if not ROPE_TYPES[rope.type].reaches or original is None or rope.factor is None:
        return reads
    return min(reads, int(original * rope.factor))


def budget(model: ModelSpec, context: int) -> tuple[int, float]:
    """(tokens of an update in whole rows, learning rate): between the two runs that are
    known, by the logarithm of the parameters; at and beyond them theirs.
    """
    (few, small_update, high), (many, large_update, low) = _SMALL, _LARGE
    share = math.log(model.parameters() / few) / math.log(many / few)
    share = min(1.0, max(0.0, share))
    tokens = small_update * (large_update / small_update) ** share
    rate = high * (low / high) ** share
    return max(1, round(tokens / context)) * context, float(f"{rate:.0e}")


def _is_small(model: ModelSpec) -> bool:
    return model.parameters() < SMALL


def _choices(
    base: Published, reads: int, context: int, target: int
) -> dict[str, RopeSpec]:
    """`rope_choices`; of a small base that is not scaled YaRN comes first, with the factor
    of the last stage (`target` tokens) from the first stage on.
    """
    choices = rope_choices(base, reads, context)
    if base.rope.type != "default" or not _is_small(base.model):
        return choices
    last = rope_choices(base, reads, target)
    if "yarn" not in choices or "yarn" not in last:
        return choices
    del choices["yarn"]
    return {"yarn": last["yarn"], **choices}


def _proposal(
    directory: Path,
    name: str,
    base: Published,
    target: int,
    gpus: int,
    machine: str,
    cluster: ClusterSpec,
    engine: EngineConfig | None = None,
) -> Proposal:
    on_gpus = gpus and machine != "laptop"
    if engine is None:
        engine = EngineConfig(device="cuda") if on_gpus else _HOST_ENGINE
    empty = RunConfig(
        name=name,
        output=f"runs/{name}",
        tokenizer=str(directory),
        hf_base=str(directory),
        model=base.model,
        data=DataConfig(sources={}),
        stages={},
        cluster=cluster,
        engine=engine,
    )
    if _is_small(base.model):
        optimizer = OptimizerConfig(weight_decay=SMALL_DECAY)
        empty = dataclasses.replace(empty, optimizer=optimizer)
    stages: list[ProposedStage] = []
    for context in contexts(base.context, target):
        origin = stages[-1].name if stages else f"{empty.output}/base"
        stages.append(_stage(empty, base, context, target, origin))
    run = dataclasses.replace(empty, stages={s.name: s.stage for s in stages})
    return Proposal(directory, base, run, stages, gpus, machine)


_HOST_ENGINE = EngineConfig(device="cpu", precision="fp32")


def _stage(
    run: RunConfig, base: Published, context: int, target: int, origin: str
) -> ProposedStage:
    model, name = base.model, stage_name(context)
    reads = trained_length(Path(run.hf_base or "."), base.rope, base.context).tokens
    choices = _choices(base, reads, context, target)
    figures = {}
    for label, rope in {"unchanged": base.rope, **choices}.items():
        # A base that is scaled already cannot be asked beyond its factor.
        with suppress(ConfigError):
            figures[label] = rope_figures(
                label,
                rope,
                model.head_dim,
                context,
                base.rope,
                _compared_at(base, reads),
            )
    # Of equally many angles that nobody was trained on, the first.
    possible = [label for label in choices if label in figures]
    if not possible:
        problems = [
            problem
            for label, rope in choices.items()
            for problem in rope.problems(
                f"RoPE {label} of {name}", context, model.head_dim
            )
        ] or [
            Problem(f"RoPE {label} of {name}", context, rule, "take another --context")
            for label, rule in left_out_choices(
                base.rope, model.head_dim, reads, context
            ).items()
        ]
        raise ConfigError(f"{run.hf_base} cannot be extended", problems)
    chosen = min(possible, key=lambda label: figures[label].beyond_training)
    # What was found by training goes before what is computed.
    if base.rope.type == "default" and _is_small(model) and "yarn" in possible:
        chosen = "yarn"
    update_tokens, rate = budget(model, context)
    stage = StageConfig(
        init_from=origin,
        context=context,
        rope=choices[chosen],
        tokens=_UPDATES * update_tokens,
        update_tokens=update_tokens,
        learning_rate=rate,
        pack=PackSpec("best_fit", "split"),
        schedule=SMALL_SCHEDULE if _is_small(model) else ScheduleConfig(),
    )
    choice = first_choice(run, stage, free=True)
    if not choice.usable and update_tokens < run.world_size(stage) * context:
        # So few rows that ranks would have none: as many as there are ranks.
        update_tokens = run.world_size(stage) * context
        stage = dataclasses.replace(
            stage, update_tokens=update_tokens, tokens=_UPDATES * update_tokens
        )
        choice = first_choice(run, stage, free=True)
    return ProposedStage(name, stage, figures, chosen, choice)
