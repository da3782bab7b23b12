"""What a plan holds, as a table and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alia_ctx.data.packing.plan import PackPlan

if TYPE_CHECKING:
    from rich.table import Table

_POINTS = (0, 127, 1023, 4095, 8191, 16383, 32767, 65535, 131071)


def plan_table(plan: PackPlan) -> list[Table]:
    """Three rich tables: the plan as a whole, its sources, and how much context its tokens have."""
    from rich.table import Table

    stats = plan.stats
    whole = Table(
        title=f"{plan.directory.name}: {stats['rows']:,} rows of {stats['row_length']:,} tokens"
    )
    whole.add_column("quantity")
    whole.add_column("value", justify="right")
    for name in (
        "tokens",
        "predicted",
        "fill",
        "pieces",
        "cut_documents",
        "cut_pieces",
        "segments",
    ):
        value = stats[name]
        whole.add_row(
            name.replace("_", " "), f"{value:.4%}" if name == "fill" else f"{value:,}"
        )
    return [whole, _source_table(plan), _context_table(plan)]


def _source_table(plan: PackPlan) -> Table:
    from rich.table import Table

    table = Table(title="sources")
    table.add_column("source")
    for name in (
        "documents",
        "tokens",
        "trained tokens",
        "epochs",
        "share",
        "dropped long",
        "dropped short",
    ):
        table.add_column(name, justify="right")
    for name, each in plan.stats["sources"].items():
        dropped = each["dropped"]
        table.add_row(
            name,
            f"{each['documents']:,}",
            f"{each['tokens']:,}",
            f"{each['trained_tokens']:,}",
            f"{each['epochs']:.3f}",
            f"{each['share']:.2%}",
            f"{dropped['long_documents']:,} ({dropped['long_tokens']:,} tokens)",
            f"{dropped['short_documents']:,}",
        )
    return table


def _context_table(plan: PackPlan) -> Table:
    from rich.table import Table

    table = Table(title="context in use")
    table.add_column("tokens of the same document before", justify="right")
    table.add_column("share of tokens", justify="right")
    for n in [point for point in _POINTS if point < plan.row_length]:
        table.add_row(f"more than {n:,}", f"{_share_beyond(plan, n):.2%}")
    return table


def _share_beyond(plan: PackPlan, n: int) -> float:
    """Interpolated between the points of the stored curve."""
    import numpy as np

    curve = np.array(plan.stats["context"])
    return float(np.interp(n, curve[:, 0], curve[:, 1]))


def draw_plan(plan: PackPlan, path: str | Path) -> None:
    """Plot the share of tokens that have more than n tokens of their document before
    them, over n, as PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points, shares = zip(*plan.stats["context"], strict=True)
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([max(n, 1) for n in points], [100 * share for share in shares])
    axes.set_xscale("log", base=2)
    axes.set_xlim(1, plan.row_length)
    axes.set_ylim(0, 100)
    axes.set_xlabel("n: tokens of the same document before")
    axes.set_ylabel("% of tokens with more than n")
    axes.set_title(
        f"Context in use: {plan.stats['rows']:,} rows of {plan.row_length:,} tokens"
    )
    axes.grid(alpha=0.3)
    figure.savefig(Path(path), format="png", dpi=120)
