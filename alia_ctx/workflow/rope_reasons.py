"""The RoPE of a proposed stage with its reasons, in words."""

from __future__ import annotations

import math

from alia_ctx.config.run import StageConfig
from alia_ctx.config.texts import value_written
from alia_ctx.planner import RopeFigures
from alia_ctx.workflow.proposing import Proposal, ProposedStage


def rope_reasons(proposal: Proposal, proposed: ProposedStage) -> list[str]:
    """Why a proposed stage has its RoPE, as sentences, and what the others come to."""
    base, stage = proposal.base, proposed.stage
    if base.rope.type == "default":
        lines = [
            f"RoPE: the base has turned its pairs through {base.context:,} tokens. "
            f"{_sentence(proposed.figures['unchanged'])}",
            *_why_this_kind(proposal, proposed),
        ]
    else:
        lines = [
            f"RoPE: the base is scaled already ({base.rope.type}, factor "
            f"{base.rope.factor:g}). {_what_was_done(proposal, stage)}:",
            *_how_published(proposal, stage.context),
        ]
    others = [f for label, f in proposed.figures.items() if label != "unchanged"]
    return [*lines, *(f"  {f.name}: {_sentence(f)}" for f in others)]


def _why_this_kind(proposal: Proposal, proposed: ProposedStage) -> list[str]:
    """Of a base that is not scaled."""
    base, rope = proposal.base.context, proposed.stage.rope
    last = proposal.stages[-1].stage.context
    if proposal.is_small and rope.type == "yarn":
        stages = len(proposal.stages)
        when = (
            ", the last stage's from the first stage on, so that the cheap stage learns it"
            if stages > 1
            else ""
        )
        return [
            f"yarn with factor {rope.factor:g} = {last:,} / {base:,}{when}: what the trials "
            "with SmolLM2-135M led to, rather than llama3 (docs/smollm2.md):"
        ]
    why = (
        "is what ALIA-40b and Llama 3.1 were extended with:"
        if rope.type == "llama3"
        else "leaves fewer of them:"
    )
    context = proposed.stage.context
    return [f"{rope.type} with factor {rope.factor:g} = {context:,} / {base:,} {why}"]


def _what_was_done(proposal: Proposal, stage: StageConfig) -> str:
    """How the RoPE of a stage came from that of a base that is scaled already."""
    base, rope, context = proposal.base.rope, stage.rope, stage.context
    if base.type == "dynamic":
        by = "dynamic stretches by the length of the row itself, and is left as it is"
        if rope.type != "dynamic":
            by = (
                "dynamic, left as it is, stretches by the length of the row itself; "
                f"{rope.type} with factor {value_written(rope.factor)} turns fewer pairs "
                "further than they were trained"
            )
        return by
    before, reads = base.require("factor"), proposal.reads.tokens
    kept, now = "It keeps its type", rope.require("factor")
    if now == before:
        return f"{kept} and its factor, which reaches {context:,} tokens"
    further = f"{before:g} x {context:,} / {reads:,}"
    if math.isclose(now, before * context / reads):
        grows = f"{context / reads:g} times as much, as the context grows"
        return f"{kept}; the factor becomes {value_written(now)} = {further}, {grows}"
    original = rope.original_max_position_embeddings or reads
    return (
        f"{kept}; the factor becomes {value_written(now)} = {context:,} / {original:,}, to reach "
        f"the context, which {further} would not: its own reaches "
        f"{round(original * before):,} of its {reads:,} tokens"
    )


def _how_published(proposal: Proposal, context: int) -> list[str]:
    """Of a base whose length may be understood in two ways, both."""
    base, reads = proposal.base, proposal.reads
    if reads.other is None or base.rope.factor is None:
        return []
    otherwise = base.rope.factor * max(1.0, context / reads.other)
    return [
        f"Not known: whether the {base.context:,} tokens of its config.json are from before "
        f"its factor, or what it reads with it. Taken here: it reads {reads.tokens:,}; the "
        f"other reading is {reads.other:,}. In that case write factor: {value_written(otherwise)}."
    ]


def _sentence(figures: RopeFigures) -> str:
    reach = figures.first_negative
    reaches = "it reaches them all" if reach is None else f"it reaches {reach:,}"
    untrained = (
        f"{figures.beyond_training} of {figures.pairs} pairs would turn up to "
        f"x{figures.furthest:.2f} as far as they were trained"
        if figures.beyond_training
        else "no pair turns further than it was trained"
    )
    return f"At {figures.context:,} {untrained}; {reaches} by the heuristic."
