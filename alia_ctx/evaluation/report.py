"""The table, plot and verdicts that say whether the extension worked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from rich.table import Table

from alia_ctx.errors import DataError
from alia_ctx.evaluation.positions import BandLoss, PositionBands
from alia_ctx.evaluation.verdicts.claims import Results, Verdict
from alia_ctx.files import atomic_file

_PLOT_TOKENS = 30  # a curve point of fewer tokens is noise and is not drawn


@dataclass(frozen=True)
class Report:
    """The files written and the verdicts in them."""

    markdown: Path
    json: Path
    plot: Path
    verdicts: tuple[Verdict, ...]


def write_report(
    results: Results,
    out_dir: str | Path,
    verdicts: Sequence[Verdict],
    *,
    title: str = "Loss by position in the document",
    notes: Sequence[str] = (),
    made_from: Mapping[str, Any] | None = None,
) -> Report:
    """Write `report.md`, `report.json` and `loss_by_position.png` in `out_dir`, over earlier ones.

    `results` maps a model's display name to its losses, in the order to show them.
    `verdicts` are what is said of them (`alia_ctx.evaluation.verdicts`). `notes` are lines
    on how it was measured; `made_from` states what each result was made from. DataError
    where the files cannot be written.
    """
    out_dir = Path(out_dir)
    report = Report(
        out_dir / "report.md",
        out_dir / "report.json",
        out_dir / "loss_by_position.png",
        tuple(verdicts),
    )
    data = {
        "title": title,
        "notes": list(notes),
        "made_from": dict(made_from or {}),
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "results": {name: _result_json(bands) for name, bands in results.items()},
    }
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with atomic_file(report.plot) as stream:
            _plot(results, stream, title)
        _write_text(report.json, json.dumps(data, indent=1, allow_nan=False) + "\n")
        _write_text(
            report.markdown,
            _markdown(results, verdicts, title, notes, report.plot.name),
        )
    except OSError as error:
        raise DataError(
            f"cannot write the report in {out_dir}: {error.strerror or error}"
        ) from error
    return report


def loss_table(
    results: Results, title: str = "Loss by position in the document (nats per token)"
) -> Table:
    """A line per model, a column per band; perplexity in brackets."""
    table = Table(title=title)
    table.add_column("model")
    bands = [result.bands() for result in results.values()]
    for band in bands[0] if bands else ():
        table.add_column(_heading(band), justify="right")
    table.add_column("tokens", justify="right")
    for name, row in zip(results, bands, strict=True):
        table.add_row(name, *(_cell(band) for band in row), f"{results[name].tokens:,}")
    return table


def _heading(band: BandLoss) -> str:
    return f"{band.start:,}-{band.stop - 1:,}"


def _cell(band: BandLoss) -> str:
    return (
        f"{band.loss:.4f} ({math.exp(min(band.loss, 700.0)):,.2f})"
        if band.tokens
        else "-"
    )


def _result_json(bands: PositionBands) -> dict[str, Any]:
    positions, losses, tokens = bands.curve()
    summary = [
        {**asdict(band), "loss": band.loss if band.tokens else None}
        for band in bands.bands()
    ]
    curve = {
        "position": positions.tolist(),
        "loss": losses.tolist(),
        "tokens": tokens.tolist(),
    }
    return {"bands": summary, "curve": curve, "sums": bands.to_json()}


def _markdown(
    results: Results,
    verdicts: Sequence[Verdict],
    title: str,
    notes: Sequence[str],
    plot: str,
) -> str:
    first = next(iter(results.values()))
    headings = [
        "model",
        *(_heading(band) for band in first.bands()),
        "documents",
        "tokens",
    ]
    rows = [
        [
            name,
            *(_cell(band) for band in result.bands()),
            f"{result.documents:,}",
            f"{result.tokens:,}",
        ]
        for name, result in results.items()
    ]
    table = [
        _markdown_row(headings),
        _markdown_row(["---"] + ["---:"] * (len(headings) - 1)),
        *map(_markdown_row, rows),
    ]
    lines = [f"# {title}", "", *(f"- {verdict}" for verdict in verdicts), ""]
    lines += [
        "Loss in nats per token (perplexity), by position of the input token in its document.",
        "",
        *table,
        "",
    ]
    lines += [f"![loss against position]({plot})", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines).rstrip() + "\n"


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as stream:
        stream.write(text.encode())


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _plot(results: Results, stream: IO[bytes], title: str) -> None:
    """Loss against position, one line a model, dotted lines at the band edges; without a
    display or global state.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, result in results.items():
        positions, losses, tokens = result.curve()
        drawn = tokens >= _PLOT_TOKENS
        axes.plot(
            positions[drawn] + 1,
            losses[drawn],
            marker="o",
            markersize=2.5,
            linewidth=1.4,
            label=name,
        )
    for edge in next(iter(results.values())).edges[1:-1]:
        axes.axvline(edge, color="grey", linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set(
        title=title,
        xlabel="tokens of the document seen so far",
        ylabel="loss (nats per token)",
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(stream, format="png", dpi=130)
