"""Figures as SVG, drawn by matplotlib and coloured by the page's own colours.

matplotlib writes placeholder colours, which become CSS variables: so one drawing serves
light and dark. Sizes are those of a phone's column: text stays readable at 390 pixels.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alia_ctx.report.html import text as escaped

_WIDTH, _HEIGHT = 5.2, 3.3  # inches of 72 points
_LEVEL_LABELS = 7  # beside one another below a figure; more stand upright
# Placeholder -> variable of the page's style.
_INK, _MUTED, _LINE = "#010101", "#020202", "#030303"
_SERIES = [f"#0{n}0{n}0{n}" for n in range(4, 10)]
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _LINE: "--line"} | {
    colour: f"--s{n}" for n, colour in enumerate(_SERIES)
}
_STYLES = ("-", "--", "-.", ":")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "grid.color": _LINE,
    "axes.grid": True,
    # Names of data are no formulas: `$` would begin one.
    "text.parse_math": False,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "savefig.transparent": True,
}


@dataclass(frozen=True)
class Line:
    """A curve: `x`, `y`, and where it has one a half-width of its band, all [N].

    `series` is its colour and style, where those are to be the same in several figures.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    faint: Sequence[float] | None = None
    series: int | None = None


def curves(
    name: str,
    lines: Sequence[Line],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    marks: Sequence[float] = (),
    first: int = 1,
) -> str:
    """Lines over one axis, `marks` as dotted verticals. `first`: the colour of the first
    line (0 is the base's grey). `name` tells its ids from those of other figures.
    """

    def draw(axes: Any) -> None:
        for place, line in enumerate(lines, first):
            number = place if line.series is None else line.series
            colour = _SERIES[number % len(_SERIES)]
            style = _STYLES[number // len(_SERIES) % len(_STYLES)]
            few = len(line.x) < 40
            if line.faint is not None:
                axes.plot(line.x, line.faint, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(
                *(line.x, line.y, style),
                color=colour,
                label=_plain(line.name),
                linewidth=1.6,
                **({"marker": "o", "markersize": 3.2} if few else {}),
            )
            if line.error is not None:
                low = np.asarray(line.y) - np.asarray(line.error)
                high = np.asarray(line.y) + np.asarray(line.error)
                axes.fill_between(line.x, low, high, color=colour, alpha=0.18, lw=0)
        for mark in marks:
            axes.axvline(mark, color=_MUTED, linestyle=":", linewidth=1)
        if log_x:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        else:
            axes.xaxis.set_major_formatter(lambda value, _: _count(value))
            axes.xaxis.get_major_locator().set_params(nbins=5)
        if log_y:
            axes.set_yscale("log")
            # A decade may be all there is: its 2 and 5 say where a curve stands.
            axes.yaxis.get_major_locator().set_params(subs=(1.0, 2.0, 5.0))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.set(xlabel=_plain(x, 44), ylabel=y)
        if len(lines) > 1:  # above: inside it would hide what it names
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)

    return _svg(name, draw)


def stacked(
    name: str, labels: Sequence[str], parts: Mapping[str, Sequence[float]], *, x: str
) -> str:
    """Horizontal bars, one a label, made of the `parts` of it."""

    def draw(axes: Any) -> None:
        left = np.zeros(len(labels))
        for number, (part, values) in enumerate(parts.items(), 1):
            colour = _SERIES[number % len(_SERIES)]
            axes.barh(range(len(labels)), values, left=left, color=colour, label=part)
            left += np.asarray(values)
        axes.set_yticks(range(len(labels)), [_plain(label) for label in labels])
        axes.invert_yaxis()
        axes.set(xlabel=x)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=3)

    return _svg(name, draw, height=1.6 + 0.35 * len(labels))


def time_line(name: str, spans: Sequence[tuple[str, str, float, float]]) -> str:
    """Bars over time, a line a lane: (lane, kind, start, length) in seconds, a colour a
    kind, edges between bars of one kind.
    """
    lanes = list(dict.fromkeys(lane for lane, *_ in spans))
    kinds = list(dict.fromkeys(kind for _, kind, *_ in spans))

    def draw(axes: Any) -> None:
        for number, kind in enumerate(kinds, 1):
            colour = _SERIES[number % len(_SERIES)]
            label = _plain(kind, 32)
            for place, lane in enumerate(lanes):
                bars = [(a, n) for at, of, a, n in spans if (at, of) == (lane, kind)]
                axes.broken_barh(
                    *(bars, (place - 0.4, 0.8)),
                    facecolors=colour,
                    edgecolors=_LINE,
                    linewidth=0.3,
                    label=label,
                )
                label = "_"  # one entry a kind
        axes.set_yticks(range(len(lanes)), [_plain(lane) for lane in lanes])
        axes.invert_yaxis()
        axes.set(xlabel="seconds of an update")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=2)

    return _svg(name, draw, height=1.7 + 0.35 * len(lanes))


def heat_map(
    name: str,
    lengths: Sequence[int],
    depths: Sequence[str],
    share: np.ndarray,
) -> str:
    """Shares of right answers [depths, lengths], 0 to 1, NaN where nothing was asked."""
    from matplotlib import colormaps

    colours = colormaps["RdYlGn"]

    def draw(axes: Any) -> None:
        axes.grid(False)
        for (row, column), value in np.ndenumerate(share):
            if np.isnan(value):
                continue
            red, green, blue, _ = colours(0.08 + 0.84 * float(value))
            axes.add_patch(_square(column, row, (red, green, blue)))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            axes.text(
                *(column + 0.5, row + 0.5, f"{value:.0%}"),
                ha="center",
                va="center",
                color="#ffffff" if dark else "#111111",
                fontsize=9,
            )
        axes.set_xlim(0, len(lengths))
        axes.set_ylim(len(depths), 0)
        axes.set_xticks(
            [n + 0.5 for n in range(len(lengths))], [f"{n:,}" for n in lengths]
        )
        if len(lengths) > _LEVEL_LABELS:
            axes.tick_params(axis="x", labelrotation=90)
        axes.set_yticks([n + 0.5 for n in range(len(depths))], depths)
        axes.set(xlabel="length of the text (tokens)", ylabel="depth of the needle")

    upright = 0.4 if len(lengths) > _LEVEL_LABELS else 0.0
    return _svg(name, draw, height=1.1 + upright + 0.25 * len(depths))


def _square(x: int, y: int, colour: tuple[float, float, float]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.02, y + 0.03), 0.96, 0.94, color=colour, linewidth=0)


def _plain(name: str, longest: int = 24) -> str:
    """A name as a legend shows it: one that begins with `_` would be left out, and a long
    one would leave no room for the drawing.
    """
    name = name.lstrip("_") or "-"
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _count(value: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _svg(name: str, draw: Any, *, height: float = _HEIGHT) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        drawing = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(drawing)
        draw(drawing.add_subplot())
        stream = io.StringIO()
        drawing.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    return _inlined(svg[svg.index("<svg") :], name)


def _inlined(svg: str, name: str) -> str:
    """The drawing with the page's colours, ids of its own, and its size left to the page."""
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    prefix = re.sub(r"\W", "-", name)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', _opening(name), svg, count=1)
    return svg.strip()


def _opening(name: str) -> str:
    label = escaped(name).replace("\\", "")
    return (
        r'<svg viewBox="\1" role="img" '
        f'aria-label="{label}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
