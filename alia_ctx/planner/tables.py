"""Plans as rich tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from rich.table import Table

from alia_ctx.planner.kernels import SPEED_ON_HOPPER, speed_words
from alia_ctx.planner.rope_reach import plain_bases
from alia_ctx.planner.search import GpuCount, LayoutChoice, why_first
from alia_ctx.planner.stage import StagePlan
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.execution import Fp8, Precision
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.machines import speeds_from


def plan_table(
    plan: StagePlan, name: str = "stage", mfu: float = 0.4, *, kept: int = 1
) -> Table:
    """The plan line by line: tokens, rows, FLOPs, time at `mfu` and as estimated, node-hours,
    disk for `kept` checkpoints, RoPE, memory.
    """
    table = Table(title=f"Plan of {name}", show_header=False)
    for heading, text in {
        **_size_lines(plan),
        **_time_lines(plan, mfu),
        **_limit_lines(plan, kept),
    }.items():
        table.add_row(heading, text)
    return table


def _size_lines(plan: StagePlan) -> dict[str, str]:
    work = plan.work
    rows = f"{work.rows_per_update:,} rows x {work.row_tokens:,}"
    update = f"{rows} = {work.tokens_per_update:,} tokens"
    share = f"{_span(*work.rows_per_rank)} rows a data-parallel rank"
    reached = work.updates * work.tokens_per_update
    asked, all_asked = (
        f" ({tokens:,} asked for)" for tokens in (work.update_tokens, work.tokens)
    )
    if work.row_tokens != work.context and work.packed is not None:
        asked = (
            f" (means of the pack plan; its longest row has {work.packed.longest:,})"
        )
        all_asked = ""
    return {
        "layout": (
            f"{_layout(work.layout)}, dp={work.data_parallel} on {work.world_size} "
            f"GPUs, {work.precision}"
            + ("" if work.fp8 == "off" else f", products of layers in FP8 ({work.fp8})")
        ),
        "recompute": work.recompute + (", offloaded" if work.offload else ""),
        "update": f"{update}{asked}, {share}",
        "stage": f"{work.updates:,} updates = {reached:,} tokens{all_asked}",
    }


def _time_lines(plan: StagePlan, mfu: float) -> dict[str, str]:
    timing = plan.timing
    linear, attention = plan.flops_per_token
    parts = {
        "compute": timing.compute,
        "tp": timing.tensor_parallel,
        "cp": timing.context_parallel,
        "dp": timing.data_parallel,
        "offload": timing.offload,
        "step": timing.step,
        "pipeline idle": timing.pipeline_idle,
    }
    shares = ", ".join(f"{name} {duration(s)}" for name, s in parts.items() if s)
    estimate = (
        f"{duration(timing.total)} an update ({timing.mfu:.0%} MFU), "
        f"{duration(plan.seconds)}, {_node_hours(plan)}: {shares}"
    )
    if plan.untimed:
        estimate = f"none: {plan.untimed}"
    elif slower := speed_words(plan.cluster, plan.work.attention):
        estimate += f"; {slower}"
    documents = "one document a row"
    if plan.masked_share is not None:
        documents = (
            f"masked as in the pack plan, {plan.masked_share:.1%} of the attention of "
            "one document a row"
        )
    flops = (
        f"{linear + attention:.3g} = {linear:.3g} linear + {attention:.3g} attention"
    )
    seconds = plan.seconds_at_mfu(mfu)
    return {
        "FLOPs per token": f"{flops}, {documents}",
        f"at {mfu:.0%} MFU": (
            f"{duration(seconds)} an update, {duration(seconds * plan.work.updates)}"
        ),
        "estimate, not measured": estimate,
    }


def _limit_lines(plan: StagePlan, kept: int) -> dict[str, str]:
    host = ", ".join(f"{name} {gib:.1f}" for name, gib in plan.host_items.items())
    lines = {
        "RoPE (heuristic)": _reach(plan),
        "logits never formed": f"{plan.row_logits_gib:.2f} GiB a row in fp32",
        "memory": plan.verdict,
        "host memory": (
            f"{plan.host_gib:.1f} of {plan.cluster.host_memory_gib:g} GiB a node: {host}"
        ),
        "disk": (
            f"{plan.checkpoint_gib:.1f} GiB a checkpoint, "
            f"{kept * plan.checkpoint_gib:,.1f} GiB for {kept}, one being written among "
            "them"
        ),
    }
    if plan.idle_ranks:
        lines["idle"] = (
            f"{plan.idle_ranks} data-parallel ranks have no row; use more cp or pp, or "
            "a larger update"
        )
    return lines


def _reach(plan: StagePlan) -> str:
    first = plan.reach.first_negative
    smallest, safe = plain_bases(plan.work.model.head_dim, plan.work.context)
    ours = (
        "holds over the context"
        if first is None
        else f"sum of cosines first below 0 at distance {first:,}"
    )
    if smallest is None or safe is None:
        return f"{ours}; no plain base up to 1e9 holds"
    return f"{ours}; the smallest plain base that holds is {smallest:.1e}, all from {safe:.1e} do"


def memory_table(plan: StagePlan) -> Table:
    """GiB of each item, a column per pipeline rank (the first, second, and last where
    there are more than four).
    """
    shown = (
        plan.memory if len(plan.memory) <= 4 else (*plan.memory[:2], plan.memory[-1])
    )
    table = Table(title=f"Memory per GPU (GiB of {plan.cluster.memory_gib:g})")
    table.add_column("item")
    for rank in shown:
        table.add_column(f"pp rank {rank.pipeline_rank}", justify="right")
    names = dict.fromkeys(name for rank in shown for name in rank.items)
    for name in names:
        cells = (f"{r.items[name]:.2f}" if name in r.items else "-" for r in shown)
        table.add_row(name, *cells)
    table.add_section()
    sums = (sum(rank.items.values()) for rank in shown)
    table.add_row("forward and backward", *(f"{gib:.2f}" for gib in sums))
    steps = (sum(rank.step_items.values()) for rank in shown)
    table.add_row("optimizer's step", *(f"{gib:.2f}" for gib in steps))
    table.add_row("peak", *(f"{rank.total:.2f}" for rank in shown))
    return table


def choices_table(choices: Sequence[LayoutChoice], limit: int = 20) -> Table:
    """The first `limit` layouts of `suggest_layouts`."""
    table = Table(
        title="Layouts by estimated time of an update (arithmetic, not measured)"
    )
    _columns(table, "layout", "recompute", "dp", "rows a rank", *_FIGURES, "remark")
    for choice in choices[:limit]:
        table.add_row(
            *_layout_cells(choice), *_figure_cells(choice), choice.reason or "fits"
        )
    _notes_under(table, why_first(choices), _without_times(choices))
    return table


def _without_times(choices: Sequence[LayoutChoice]) -> str:
    """Why a table has no times, where it has none."""
    why = choices[0].plan.untimed if choices else ""
    return f"No times: {why}. The order is that of a fast kernel." if why else ""


def _notes_under(table: Table, *notes: str) -> None:
    table.caption = "\n".join(filter(None, notes)) or None
    table.caption_justify = "left"


def counts_table(counts: Sequence[GpuCount], name: str = "stage") -> Table:
    """For each number of GPUs the best layout with memory, time and node-hours, and below it
    why the near misses do not fit.
    """
    table = Table(title=f"{name} by number of GPUs (arithmetic, not measured)")
    left = ("layout", "recompute", "dp", "rows a rank")
    _columns(table, "GPUs", *left, *_FIGURES, "stage", "node-hours", "remark")
    for count in counts:
        table.add_section()
        gpus = f"{count.gpus:,}"
        table.add_row(gpus, *_count_cells(count.best, count.best.reason or "fits"))
        if count.way_out is not None:
            settings, choice = count.way_out
            remark = f"{choice.reason or 'fits'} with {settings}"
            table.add_row("", *_count_cells(choice, remark))
        for miss in count.misses:
            cells = (*_layout_cells(miss), *_figure_cells(miss))
            table.add_row("", *cells, "-", "-", miss.reason)
    _notes_under(table, _without_times([count.best for count in counts]))
    return table


def _count_cells(choice: LayoutChoice, remark: str) -> tuple[str, ...]:
    timed = choice.usable and not choice.plan.untimed
    time = duration(choice.plan.seconds) if timed else "-"
    hours = _node_hours(choice.plan, "") if timed else "-"
    return *_layout_cells(choice), *_figure_cells(choice), time, hours, remark


_FIGURES = ("an update", "MFU", "GiB")
_WORDS = {"layout", "recompute", "remark"}


def _columns(table: Table, *headings: str) -> None:
    for heading in headings:
        table.add_column(heading, justify="left" if heading in _WORDS else "right")


def _layout_cells(choice: LayoutChoice) -> tuple[str, ...]:
    work = choice.plan.work
    mode = choice.recompute + (" + offload" if choice.offload else "")
    rows = _span(*work.rows_per_rank)
    return _layout(choice.layout), mode, str(work.data_parallel), rows


def _figure_cells(choice: LayoutChoice) -> tuple[str, ...]:
    plan = choice.plan
    times = duration(plan.timing.total), f"{plan.timing.mfu:.0%}"
    return *(("-", "-") if plan.untimed else times), f"{plan.fullest.total:.1f}"


def assumptions_table(
    cluster: ClusterSpec,
    precision: Precision = "bf16",
    fp8: Fp8 = "off",
    attention: str = "auto",
) -> Table:
    """What the estimates take for granted, and the setting of each."""
    table = Table(title="Assumed; alia_ctx/spec/cluster.py says where each is from")
    for heading in ("setting", "value", "default"):
        table.add_column(heading, justify="left" if heading == "setting" else "right")
    for field in fields(cluster):
        value, default = getattr(cluster, field.name), field.default
        if field.name == "compute_capability":
            there = cluster.capability
            words = "not known" if there is None else f"{there:.1f}"
            table.add_row(f"cluster.{field.name}", words, "")
            continue
        shown = "" if value == default else f"{default:g}"
        table.add_row(f"cluster.{field.name}", f"{value:g}", shown)
    peak = f"{cluster.peak_flops(precision) / 1e12:g}e12 FLOP/s a GPU"
    table.add_row("engine.precision", f"{precision}: {peak}", "")
    notes = [f"Both efficiencies are {speeds_from(cluster)}."]
    if fp8 != "off":
        table.add_row("engine.fp8", fp8, "")
        notes.append(f"FP8: {_FP8_MEASURED}.")
    if slower := speed_words(cluster, attention):
        table.add_row("engine.attention", attention, "")
        source = f" ({_SLOWER_MEASURED})" if attention in SPEED_ON_HOPPER else ""
        notes.append(f"{slower[0].upper()}{slower[1:]}{source}.")
    _notes_under(table, *notes)
    return table


_SLOWER_MEASURED = "beside the fastest kernel on one H100, docs/benchmarks/gpu.md"
_FP8_MEASURED = (
    "memory and time by what one H100 measured; right to 6% on one and two GPUs, with "
    "recomputation among them (docs/planner.md); on more not measured"
)


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use, two or more digits."""
    for unit, size, below in (
        ("ms", 1e-3, 0.1),
        ("s", 1, 120),
        ("min", 60, 7200),
        ("hours", 3600, 48 * 3600),
    ):
        if seconds < below:
            return f"{seconds / size:.{0 if seconds / size >= 100 else 1}f} {unit}"
    return f"{seconds / 86_400:,.1f} days"


def _node_hours(plan: StagePlan, unit: str = " node-hours") -> str:
    hours = plan.node_hours
    return f"{hours:,.{0 if hours >= 100 else 1 if hours >= 1 else 3}f}{unit}"


def _layout(layout: Layout) -> str:
    return f"tp={layout.tp} cp={layout.cp} pp={layout.pp}"


def _span(fewest: int, most: int) -> str:
    return str(most) if fewest == most else f"{fewest} to {most}"
