"""The RoPE of each stage of a run beside other choices, as numbers; nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from alia_ctx import checkpoint
from alia_ctx.config.base import published
from alia_ctx.config.run import RANDOM, RunConfig
from alia_ctx.errors import CheckpointError
from alia_ctx.hf.trained_length import trained_length
from alia_ctx.planner import (
    RopeFigures,
    left_out_choices,
    rope_figures,
    standard_choices,
    with_configured,
)
from alia_ctx.spec.rope import RopeSpec

_KIND = ("type", "theta", "original_max_position_embeddings")


def compare_rope(
    run: RunConfig, names: Sequence[str] = ()
) -> dict[str, list[RopeFigures]]:
    """For each stage (default: all) its RoPE and the published choices for its context.

    They are judged against what the chain of the stage started from: its base's RoPE
    and context. ConfigError where a RoPE breaks a rule.
    """
    found = {}
    for name in names or run.stages:
        stage = run.stage(name)
        base, trained = base_rope(run, name)
        head_dim = run.model.head_dim
        choices = standard_choices(base, head_dim, trained, stage.context)
        found[name] = [
            rope_figures(label, rope, head_dim, stage.context, base, trained)
            for label, rope in with_configured(choices, stage.rope).items()
        ]
    return found


def left_out_ropes(run: RunConfig, name: str) -> dict[str, str]:
    """Which published choices `compare_rope` has not for a stage, and why."""
    base, trained = base_rope(run, name)
    context = run.stage(name).context
    return left_out_choices(base, run.model.head_dim, trained, context)


def base_rope(run: RunConfig, name: str) -> tuple[RopeSpec, int]:
    """(RoPE, context) of what the chain of a stage started from: of its checkpoint, or of
    its first stage where that starts from random weights or the checkpoint is not here.
    """
    stage = run.stage(name)
    while stage.init_from in run.stages:
        stage = run.stages[stage.init_from]
    if stage.init_from != RANDOM:
        try:
            manifest = checkpoint.read_manifest(Path(stage.init_from))
            return manifest.rope, manifest.context
        except CheckpointError:
            with suppress(CheckpointError):
                if run.hf_base is not None:
                    base, place = published(run.hf_base), Path(run.hf_base)
                    trained = trained_length(place, base.rope, base.context)
                    return base.rope, trained.tokens
    original = stage.rope.original_max_position_embeddings
    if original is not None and original < stage.context:
        return RopeSpec("default", stage.rope.theta), original
    return stage.rope, stage.context


def rope_in_words(rope: RopeSpec) -> str:
    """`yarn, theta 10,000, factor 8 of 1,024: reaches 8,192 tokens`: type, base, how far it is
    stretched and what length that comes to.
    """
    words = f"{rope.type}, theta {rope.theta:,.12g}"
    if rope.factor is not None:
        words += f", factor {rope.factor:g}"
    original = rope.original_max_position_embeddings
    if original is None:
        return words
    words += f" of {original:,}"
    return words if rope.reach is None else f"{words}: reaches {rope.reach:,} tokens"


def rope_notes(run: RunConfig, names: Sequence[str] = ()) -> Iterator[str]:
    """Where a stage (default: each) has another kind of RoPE than the stage before it in
    its chain: what that one learned of positions, this one has to learn anew. A larger
    factor is what extends a context, and so is the first scaling of a plain RoPE.

    A stage inherits no RoPE, and its own is laid over `stage_defaults`, so that a change
    of one alone is easily made without being meant.
    """
    for name in names or run.stages:
        stage = run.stage(name)
        if stage.init_from not in run.stages:
            continue
        before, now = run.stages[stage.init_from].rope, stage.rope
        changed = [k for k in _KIND if getattr(before, k) != getattr(now, k)]
        if changed and before.type != "default":
            told = ", ".join(
                f"{key} {getattr(before, key)} in {stage.init_from}, "
                f"{getattr(now, key)} here"
                for key in changed
            )
            yield (
                f"stages.{name}.rope: is of another kind than that of the stage before it "
                f"({told}): what {stage.init_from} learned of positions is learned anew; "
                "a stage's own rope goes before stage_defaults.rope"
            )
