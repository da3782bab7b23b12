"""What a plan holds, and what of it is held-out text, as tables and as a plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from alia_ctx.data.packing.contamination import Contamination
from alia_ctx.data.packing.plan import PackPlan
from alia_ctx.data.packing.repeats import SourceRepeats
from alia_ctx.data.packing.shares import asked_shares
from alia_ctx.data.tokens import TokenStore, document_places

if TYPE_CHECKING:
    from rich.table import Table

_POINTS = (0, 127, 1023, 4095, 8191, 16383, 32767, 65535, 131071)


def plan_table(plan: PackPlan) -> list[Table]:
    """Rich tables: the plan as a whole, its sources, what earlier stages saw of them, and
    how much context its tokens have.
    """
    from rich.table import Table

    stats = plan.stats
    whole = Table(
        title=f"{plan.directory.name}: {stats['rows']:,} rows of "
        f"{'at most ' if plan.of_conversations else ''}{stats['row_length']:,} tokens"
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
    tables = [whole, _source_table(plan), _context_table(plan)]
    if plan.of_conversations:
        tables.insert(1, _conversation_table(plan))
    if plan.identity["seen"]:
        tables.insert(2, _seen_table(plan))
    return tables


def _conversation_table(plan: PackPlan) -> Table:
    from rich.table import Table

    counts = plan.stats["conversations"]
    table = Table(
        title=f"{counts['updates']:,} updates of {plan.identity['update_instances']:,} "
        f"conversations, {counts['epoch']:,} an epoch (its last update: "
        f"{counts['last_update']:,})"
    )
    table.add_column("source")
    for name in ("an epoch", "used", "held out", "above max_instances"):
        table.add_column(name, justify="right")
    for name, source in counts["sources"].items():
        values = [source[key] for key in ("epoch", "used", "held_out", "surplus")]
        table.add_row(name, *(f"{value:,}" for value in values))
    return table


def _source_table(plan: PackPlan) -> Table:
    from rich.table import Table

    asked = asked_shares(plan)
    table = Table(title="sources")
    table.add_column("source")
    for name in (
        "documents",
        "tokens",
        "tokens of the plan",  # those without loss among them
        "epochs",
        *(["asked"] if asked else []),
        "share",
        "dropped long",
        "dropped short",
        "dropped held out",  # or like it
    ):
        table.add_column(name, justify="right")
    for name, source in plan.stats["sources"].items():
        dropped = source["dropped"]
        table.add_row(
            name,
            f"{source['documents']:,}",
            f"{source['tokens']:,}",
            f"{source['trained_tokens']:,}",
            f"{source['epochs']:.3f}",
            *([f"{asked[name]:.2%}"] if asked else []),
            f"{source['share']:.2%}",
            f"{dropped['long_documents']:,} ({dropped['long_tokens']:,} tokens)",
            f"{dropped['short_documents']:,}",
            f"{dropped.get('contaminated_documents', 0):,}",
        )
    return table


def _seen_table(plan: PackPlan) -> Table:
    from rich.table import Table

    stages = ", ".join(stage for stage, *_ in plan.identity["seen"])
    table = Table(title=f"seen before, in {stages}")
    table.add_column("source")
    for name in ("documents", "tokens", "epochs", "documents of this plan among them"):
        table.add_column(name, justify="right")
    for name, source in plan.stats["sources"].items():
        table.add_row(
            name,
            f"{source['seen_documents']:,}",
            f"{source['seen_tokens']:,}",
            f"{source['seen_epochs']:.3f}",
            f"{source['trained_documents_seen_before']:,} of "
            f"{source['trained_documents']:,}",
        )
    return table


def contamination_table(
    contamination: Contamination, stores: Mapping[str, TokenStore]
) -> Table:
    """How many documents of each source are held-out text, and where the first of them
    are.
    """
    from rich.table import Table

    table = Table(
        title=f"in the held-out text ({contamination.held_out.size:,} of its documents)"
    )
    for name in ("source", "the same", "nearly", "first documents"):
        table.add_column(name, justify="left" if name[0] in "sf" else "right")
    for name in contamination.exact:
        first = contamination.documents(name)[:5].tolist()
        places = document_places(stores[name], first)
        table.add_row(
            name,
            f"{contamination.exact[name].size:,}",
            f"{contamination.near[name].size:,}",
            "\n".join(places) or "none",
        )
    return table


def repeats_table(
    repeats: Mapping[str, SourceRepeats], stores: Mapping[str, TokenStore]
) -> Table:
    """How many documents of each source are there more than once, or nearly; and where the
    first copies are.
    """
    from rich.table import Table

    table = Table(title="documents that the sources hold more than once")
    table.add_column("source")
    for name in ("documents", "copies", "compared", "nearly another"):
        table.add_column(name, justify="right")
    table.add_column("first copies")
    for name, found in repeats.items():
        counts = (found.documents, found.copies, found.compared, found.near)
        places = copy_places(name, found.first, stores)
        table.add_row(name, *(f"{n:,}" for n in counts), "\n".join(places) or "none")
    return table


def copy_places(
    source: str,
    copies: Iterable[tuple[int, str, int]],
    stores: Mapping[str, TokenStore],
) -> list[str]:
    """`COPY = ORIGINAL` of each (document of the source, source and number of the earlier
    document).
    """
    return [
        " = ".join(
            document_places(stores[source], [number])
            + document_places(stores[other], [earlier])
        )
        for number, other, earlier in copies
    ]


def _context_table(plan: PackPlan) -> Table:
    from rich.table import Table

    table = Table(title="context in use")
    table.add_column("tokens of the same document before", justify="right")
    table.add_column("share of tokens", justify="right")
    for n in [point for point in _POINTS if point < plan.row_length]:
        table.add_row(f"more than {n:,}", f"{_share_beyond(plan, n):.2%}")
    return table


def _share_beyond(plan: PackPlan, n: int) -> float:
    """Counted: between the points of the stored curve documents of one length have an edge."""
    import numpy as np

    lengths = plan.packed.piece_lengths
    beyond = np.maximum(lengths - 1 - n, 0).sum(dtype=np.int64)
    return float(beyond / lengths.sum(dtype=np.int64))


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
