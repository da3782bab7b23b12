"""The layouts of so many GPUs, the best first, and why others fall; and the best for each
number of GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from alia_ctx.planner.stage import HOPPER_NODES, StagePlan, plan_of, plan_stage
from alia_ctx.planner.timing import spans_nodes
from alia_ctx.planner.workload import RECOMPUTE_MODES, RowSizes
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.execution import (
    GPU_LOSS_CHUNK,
    AskedLayers,
    Fp8,
    Precision,
    Recompute,
    fp8_problem,
)
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec

_NEAR = 1.5  # what needs more than so many times the memory is no near miss
# Layouts whose times are nearer than this are not told apart: of one model on one and two
# GPUs the planner's errors differ by up to a tenth, of TP2 and DP2 by a twentieth
# (docs/benchmarks/gpu-several.md). In FP8 too: it moves the error of a case by 2.5% at most,
# and of TP2 and DP2 the errors differ by 4.1%.
_ALIKE = 1.05


@dataclass(frozen=True)
class LayoutChoice:
    """A layout that was tried: `reason` is empty where it fits and can be used. What may
    fit can be used too, and `reason` says what stands in doubt.
    """

    layout: Layout
    recompute: Recompute
    plan: StagePlan
    reason: str

    @property
    def fits(self) -> bool:
        """Whether it can be used without a doubt about its memory."""
        return not self.reason

    @property
    def usable(self) -> bool:
        return self.fits or (self.plan.may_fit and not _obstacle(self.plan))

    @property
    def offload(self) -> bool:
        return self.plan.work.offload


@dataclass(frozen=True)
class GpuCount:
    """So many GPUs: their best layout, usable or not, and the near misses.

    way_out: where none is usable, settings that give one, and it.
    """

    gpus: int
    best: LayoutChoice
    misses: tuple[LayoutChoice, ...]
    way_out: tuple[str, LayoutChoice] | None = None


def suggest_layouts(
    model: ModelSpec,
    rope: RopeSpec,
    context: int,
    world_size: int,
    tokens: int,
    update_tokens: int,
    precision: Precision = "bf16",
    cluster: ClusterSpec = HOPPER_NODES,
    loss_chunk_tokens: int = GPU_LOSS_CHUNK,
    *,
    recompute: Recompute | None = None,
    offload: bool | None = False,
    overlap: bool = True,
    packed: RowSizes | None = None,
    shortest_row: int | None = None,
    fp8: Fp8 = "off",
    fp8_bf16_layers: int = 0,
    mlp_chunk_tokens: int | None = None,
    layers: AskedLayers = "local",
    attention: str = "auto",
) -> list[LayoutChoice]:
    """All layouts that divide model, row and world: first those that fit, fastest first,
    then those that may, then why the others fall, the least too large first.

    The very first is, of those that fit and whose times the planner cannot tell from the
    fastest's, the one that cuts the model and its rows least: what it gains is not from
    messages that are taken to cost nothing, or memory that nobody has measured.

    Each layout appears once, with the recomputation that is fastest among those that
    fit (where none does, the one that needs least memory). Data-parallel ranks may
    have unequal numbers of rows.

    Args:
        recompute: only this one; None tries all.
        offload: whether activations wait on the host; None tries both.
        shortest_row: tokens of the shortest row, which the layout has to divide too;
            None where all rows have `context` tokens.
    """
    start = plan_stage(
        model,
        rope,
        context,
        Layout(),
        world_size,
        tokens,
        update_tokens,
        recompute or "none",
        precision,
        cluster,
        loss_chunk_tokens,
        overlap=overlap,
        packed=packed,
        fp8=fp8,
        fp8_bf16_layers=fp8_bf16_layers,
        mlp_chunk_tokens=mlp_chunk_tokens,
        layers=layers,
        attention=attention,
    )
    modes = list(
        product(
            [recompute] if recompute else RECOMPUTE_MODES,
            [False, True] if offload is None else [offload],
        )
    )
    contexts = {context, shortest_row or context}
    choices = [
        _best_mode(start, layout, modes)
        for layout in _layouts(model, contexts, world_size)
    ]
    return _simplest_first(sorted(choices, key=_rank))


def best_by_count(
    model: ModelSpec,
    rope: RopeSpec,
    context: int,
    counts: Sequence[int],
    *sizes: int,
    misses: int = 2,
    known: Mapping[int, Sequence[LayoutChoice]] | None = None,
    **shared: object,
) -> list[GpuCount]:
    """The best layout for each number of GPUs, and `misses` that would be faster and lack
    little memory, or the nearest ones where nothing fits. `known`: what
    `suggest_layouts` gave for some of the numbers already; the rest is as there.
    """
    found = []
    for gpus in counts:
        at = (model, rope, context, gpus, *sizes)
        choices = (known or {}).get(gpus)
        if choices is None:
            choices = suggest_layouts(*at, **shared)  # type: ignore[arg-type]
        best = choices[0]
        fallen = [c for c in choices[1:] if not c.usable and not c.plan.fits]
        if best.usable:
            seconds = best.plan.timing.total
            fallen = [
                choice
                for choice in fallen
                if choice.plan.timing.total < seconds and _excess(choice.plan) < _NEAR
            ]
        found.append(GpuCount(gpus, best, tuple(fallen[:misses])))
    return found


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`, and `most` itself."""
    return sorted({2**n for n in range(most.bit_length()) if 2**n <= most} | {most})


def _rank(choice: LayoutChoice) -> tuple[int, float]:
    plan = choice.plan
    if choice.usable:
        return 0 if choice.fits else 1, plan.timing.total
    return 3 if plan.fits else 2, _excess(plan)


def _simplest_first(choices: list[LayoutChoice]) -> list[LayoutChoice]:
    """`choices`, sorted, with the simplest of the first ones that are alike before them."""
    if not choices or not choices[0].fits:
        return choices
    fastest = choices[0].plan
    near = [
        choice
        for choice in choices
        if choice.fits and choice.plan.timing.total <= _ALIKE * fastest.timing.total
    ]
    simplest = min(near, key=lambda choice: choice.layout.model_ranks)
    return [simplest, *(choice for choice in choices if choice is not simplest)]


def why_first(choices: Sequence[LayoutChoice]) -> str:
    """Why the first of `suggest_layouts`' choices is first, and how much slower than the
    fastest that can be used; empty where it is the fastest, or none can be used.
    """
    usable = [choice for choice in choices if choice.usable]
    if not usable:
        return ""
    first, fastest = choices[0], min(usable, key=lambda c: c.plan.timing.total)
    slower = first.plan.timing.total / fastest.plan.timing.total - 1
    if slower <= 0:
        return ""
    at = fastest.layout
    words = (
        f"The first row is not the fastest: tp={at.tp} cp={at.cp} pp={at.pp} with "
        f"{fastest.recompute}{' + offload' if fastest.offload else ''} is planned to take "
        f"{slower / (1 + slower):.1%} less, "
    )
    if fastest.fits:
        return words + (
            f"and of those that fit and are within {_ALIKE - 1:.0%} of the fastest the one "
            "that cuts model and rows least is first, as by so much the planner's errors of "
            "layouts differ."
        )
    return words + "and what may fit comes after all that fits."


def _excess(plan: StagePlan) -> float:
    """How much more memory it needs than there is: 1 is as much."""
    return max(
        plan.fullest.total / plan.cluster.memory_gib,
        plan.host_gib / plan.cluster.host_memory_gib,
    )


def _layouts(model: ModelSpec, contexts: set[int], world_size: int) -> Iterator[Layout]:
    for tp in _divisors(model.num_key_value_heads):
        for cp in _divisors(min(contexts) // 2):
            for pp in _divisors(model.num_hidden_layers):
                layout = Layout(tp, cp, pp)
                if layout.model_ranks <= world_size and not any(
                    layout.problems("", model, context, world_size)
                    for context in contexts
                ):
                    yield layout


def _divisors(number: int) -> list[int]:
    return [
        divisor for divisor in range(1, min(number, 1024) + 1) if number % divisor == 0
    ]


def _best_mode(
    start: StagePlan, layout: Layout, modes: Sequence[tuple[Recompute, bool]]
) -> LayoutChoice:
    plans = [
        plan_of(
            replace(start.work, layout=layout, recompute=recompute, offload=offload),
            start.cluster,
            start.reach,
        )
        for recompute, offload in modes
    ]
    by_time = sorted(plans, key=lambda plan: plan.timing.total)
    plan = (
        next((p for p in by_time if p.fits), None)
        or next((p for p in by_time if p.may_fit), None)
        or min(by_time, key=_excess)
    )
    return LayoutChoice(layout, plan.work.recompute, plan, _reason(plan))


def _reason(plan: StagePlan) -> str:
    return _obstacle(plan) if plan.fits else plan.verdict


def _obstacle(plan: StagePlan) -> str:
    """Why a layout cannot be used, its memory apart."""
    if plan.idle_ranks:
        return (
            f"{plan.idle_ranks} of {plan.work.data_parallel} data-parallel ranks "
            "have no row in an update"
        )
    if spans_nodes(plan.work.layout, plan.cluster):
        return f"tp={plan.work.layout.tp} leaves the node of {plan.cluster.ranks_per_node} GPUs"
    work = plan.work
    if work.fp8 != "off":
        broken = fp8_problem(work.model, work.layout, work.fp8_bf16_layers)
        return "" if broken is None else f"in FP8 {broken[0]}"
    return ""
