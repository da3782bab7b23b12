"""Plans as rich tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from alia_ctx.planner.rope_reach import plain_bases
from alia_ctx.planner.stage import LayoutChoice, StagePlan
from alia_ctx.spec.layout import Layout


def plan_table(plan: StagePlan, name: str = "stage", mfu: float = 0.4) -> Table:
    """The plan line by line:

    tokens, rows, FLOPs, time at `mfu` and as estimated, RoPE, memory verdict.
    """
    table = Table(title=f"Plan of {name}", show_header=False)
    for heading, text in {
        **_size_lines(plan),
        **_time_lines(plan, mfu),
        **_limit_lines(plan),
    }.items():
        table.add_row(heading, text)
    return table


def _size_lines(plan: StagePlan) -> dict[str, str]:
    work = plan.work
    update = f"{work.rows_per_update:,} rows x {work.context:,} = {work.tokens_per_update:,} tokens"
    share = f"{_span(*work.rows_per_rank)} rows a data-parallel rank"
    reached = work.updates * work.tokens_per_update
    return {
        "layout": (
            f"{_layout(work.layout)}, dp={work.data_parallel} on {work.world_size} "
            f"GPUs, {work.precision}"
        ),
        "recompute": work.recompute,
        "update": f"{update} ({work.update_tokens:,} asked for), {share}",
        "stage": f"{work.updates:,} updates = {reached:,} tokens ({work.tokens:,} asked for)",
    }


def _time_lines(plan: StagePlan, mfu: float) -> dict[str, str]:
    timing = plan.timing
    linear, attention = plan.flops_per_token
    parts = {
        "compute": timing.compute,
        "tp": timing.tensor_parallel,
        "cp": timing.context_parallel,
        "dp": timing.data_parallel,
        "pipeline idle": timing.pipeline_idle,
    }
    shares = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items())
    estimate = (
        f"{timing.total:.1f} s an update ({timing.mfu:.0%} MFU), {_duration(plan.days)}"
    )
    flops = (
        f"{linear + attention:.3g} = {linear:.3g} linear + {attention:.3g} attention"
    )
    return {
        "FLOPs per token": f"{flops}, one document a row",
        f"at {mfu:.0%} MFU": (
            f"{plan.seconds_at_mfu(mfu):.1f} s an update, "
            f"{_duration(plan.days_at_mfu(mfu))}"
        ),
        "estimate, not measured": f"{estimate}: {shares}; no overlap",
    }


def _limit_lines(plan: StagePlan) -> dict[str, str]:
    lines = {
        "RoPE (heuristic)": _reach(plan),
        "logits never formed": f"{plan.row_logits_gib:.2f} GiB a row in fp32",
        "memory": plan.verdict,
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
        table.add_row(
            name,
            *(
                f"{rank.items[name]:.2f}" if name in rank.items else "-"
                for rank in shown
            ),
        )
    table.add_section()
    table.add_row("total", *(f"{rank.total:.2f}" for rank in shown))
    return table


def choices_table(choices: Sequence[LayoutChoice], limit: int = 20) -> Table:
    """The first `limit` layouts of `suggest_layouts`."""
    table = Table(
        title="Layouts by estimated time of an update (arithmetic, not measured)"
    )
    for heading in (
        "layout",
        "recompute",
        "dp",
        "rows a rank",
        "s/update",
        "MFU",
        "GiB",
        "remark",
    ):
        table.add_column(
            heading,
            justify="left" if heading in ("layout", "recompute", "remark") else "right",
        )
    for choice in choices[:limit]:
        plan = choice.plan
        table.add_row(
            _layout(choice.layout),
            choice.recompute,
            str(plan.work.data_parallel),
            _span(*plan.work.rows_per_rank),
            f"{plan.timing.total:.1f}",
            f"{plan.timing.mfu:.0%}",
            f"{plan.fullest.total:.1f}",
            choice.reason or "fits",
        )
    return table


def _layout(layout: Layout) -> str:
    return f"tp={layout.tp} cp={layout.cp} pp={layout.pp}"


def _duration(days: float) -> str:
    return f"{days:.1f} days" if days >= 2 else f"{days * 24:.1f} hours"


def _span(fewest: int, most: int) -> str:
    return str(most) if fewest == most else f"{fewest} to {most}"
