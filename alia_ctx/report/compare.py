"""The page of two runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise, zip_longest
from statistics import median
from typing import Any

from alia_ctx.evaluation.positions import paired_difference
from alia_ctx.evaluation.standard_errors import with_error
from alia_ctx.evaluation.verdicts import own_bands
from alia_ctx.identity import changed, differences
from alia_ctx.report import html
from alia_ctx.report.facts import COMMANDS, RunFacts, StageFacts, layout_words
from alia_ctx.report.figures import Line, curves
from alia_ctx.report.page import made_when, verdict
from alia_ctx.report.results import by_model, counted, curve, lengths
from alia_ctx.report.training import smoothed


def comparison_page(a: RunFacts, b: RunFacts, *, refresh: int | None = None) -> str:
    """Two runs as HTML: what differs between their settings, and in what came out."""
    first, second = _names(a, b)
    body = [
        f"<h1>{html.text(first)} and {html.text(second)}</h1>",
        made_when(a, refresh),
        made_when(b),
        _verdicts(a, first) + _verdicts(b, second),
        _settings(a, b, first, second),
        _stages(a, b, first, second),
        _losses(a, b, first, second),
        _positions(a, b, first, second),
        _passkeys(a, b, first, second),
    ]
    return html.document(f"{first} and {second}", body, refresh=refresh)


def _names(a: RunFacts, b: RunFacts) -> tuple[str, str]:
    if a.name != b.name:
        return a.name, b.name
    return f"A ({a.output})", f"B ({b.output})"


def _verdicts(facts: RunFacts, name: str) -> str:
    inner = verdict(facts).replace(
        '<section id="verdict"><h2>Verdict</h2>', "<section>"
    )
    return f"<h2>{html.text(name)}</h2>" + inner


def _settings(a: RunFacts, b: RunFacts, first: str, second: str) -> str:
    rows = [list(leaf) for leaf in changed(a.config, b.config)]
    table = (
        html.table(
            ["setting", first, second],
            rows,
            caption="Settings that are not the same; `nothing` where one has none.",
            words=(1, 2),
        )
        if rows
        else html.paragraph("Both have the same settings, or none that are known.")
    )
    return html.section("settings", "Settings", table)


def _stages(a: RunFacts, b: RunFacts, first: str, second: str) -> str:
    rows = []
    for left, right in zip_longest(a.stages, b.stages):
        for facts, stage in ((first, left), (second, right)):
            if stage is not None:
                rows.append([f"{stage.name} of {facts}", *_numbers(stage)])
    table = html.table(
        ["stage", "context", "updates", "last loss", "tokens/s", "MFU", "skipped"],
        rows,
        caption="Stages of both. Last loss: the median of the last tenth of the "
        "updates, nats a token; speed and MFU are medians of the layout in brackets.",
        how=a.how("report CONFIG OTHER"),
    )
    return html.section("stages", "Stages", table)


def _numbers(stage: StageFacts) -> list[str]:
    losses = stage.values("loss")
    last = losses[-max(1, len(losses) // 10) :]
    return [
        f"{stage.context:,}",
        f"{stage.saved:,} of {stage.updates:,}{stage.ahead}",
        html.number(median(last)) if last else "-",
        *(_by_layout(stage, *of) for of in (("tokens_per_second", 0), ("mfu", None))),
        str(sum(not line.get("applied", True) for line in stage.lines)),
    ]


def _by_layout(stage: StageFacts, key: str, digits: int | None) -> str:
    """The median of a figure on each layout that the stage ran on."""
    cells = []
    for part in stage.parts:
        if found := part.values(key):
            middle = median(found)
            shown = f"{middle:.1%}" if digits is None else html.number(middle, digits)
            cells.append(f"{shown} ({layout_words(part.layout)})")
    return ", ".join(dict.fromkeys(cells)) or "-"


def _losses(a: RunFacts, b: RunFacts, first: str, second: str) -> str:
    drawn = []
    for left, right in zip_longest(a.stages, b.stages):
        lines = [
            smoothed(stage, "loss", name=f"{stage.name} of {name}")
            for stage, name in ((left, first), (right, second))
            if stage is not None and len(stage.values("loss")) > 1
        ]
        if not lines:
            continue
        title = " and ".join(dict.fromkeys(s.name for s in (left, right) if s))
        svg = curves(f"loss of {title}", lines, x="tokens", y="loss (nats a token)")
        caption = f"Training loss of {title}: each update (faint) and running median."
        drawn.append(html.figure(svg, caption, a.how("report CONFIG OTHER")))
    if not drawn:
        return html.section(
            "loss", "Training loss", html.missing("Training loss", a.how("run CONFIG"))
        )
    return html.section("loss", "Training loss", html.figures(*drawn))


def _positions(a: RunFacts, b: RunFacts, first: str, second: str) -> str:
    how = a.how(COMMANDS["positions"])
    left, right = own_bands(a.lines, a.chain), own_bands(b.lines, b.chain)
    if not left or not right:
        lacking = html.missing("Loss by position of both", how)
        return html.section("positions", "Loss by position", lacking)
    lines: list[Line] = []
    for name, bands in ((first, left), (second, right)):
        lines += [curve(f"{model} of {name}", found) for model, found in bands.items()]
    svg = curves(
        "loss by position of both",
        lines,
        x="tokens of the document seen so far",
        y="loss (nats a token)",
        log_x=True,
    )
    drawn = html.figure(svg, "Loss against position on held-out documents.", how)
    note = html.paragraph(_why_not_paired(a, b))
    if _same_text(a, b):
        rows = []
        for model in (name for name in left if name in right):
            one, two = left[model], right[model]
            if one.edges != two.edges:
                continue
            for start, stop in pairwise(one.edges):
                pair = paired_difference(one, two, start, stop)
                if not pair.documents:
                    continue
                error = pair.standard_error
                change = with_error(f"{pair.difference:+.4f}", error, "±")
                place = f"{start:,}–{stop - 1:,}"
                rows.append([model, place, html.number(pair.first), change])
        heads = ["model", "positions", first, f"{second} minus {first}"]
        caption = (
            "Nats a token, paired by document, ± standard error of the difference."
        )
        note = html.table(heads, rows, caption=caption, how=how)
    return html.section("positions", "Loss by position", drawn, note)


def _held_out(facts: RunFacts) -> set[str]:
    texts = set()
    for result in facts.of("positions"):
        settings = result.made_from.get("settings") or result.made_from
        texts.add(str(settings.get("held_out")))
    return texts


def _same_text(a: RunFacts, b: RunFacts) -> bool:
    return len(_held_out(a) | _held_out(b)) == 1


def _why_not_paired(a: RunFacts, b: RunFacts) -> str:
    return (
        "The two were measured on different held-out text, so their losses are not "
        "paired, and a difference between them may be one between the texts."
    )


def _passkeys(a: RunFacts, b: RunFacts, first: str, second: str) -> str:
    rows, columns = [], set[int]()
    for facts in (a, b):
        columns |= set(lengths(facts.of("passkey")))
    for name, facts in ((first, a), (second, b)):
        for model, parts in by_model(facts.of("passkey")).items():
            cells = [counted(parts, n) for n in sorted(columns)]
            rows.append([f"{model} of {name}", *cells])
    if not rows:
        lacking = html.missing("Passkeys", a.how(COMMANDS["passkey"]))
        return html.section("passkey", "Passkeys", lacking)
    heads = ["model", *(f"{n:,}" for n in sorted(columns))]
    caption = "Passkeys answered whole, right of asked, by length in tokens."
    table = html.table(heads, rows, caption=caption, how=a.how(COMMANDS["passkey"]))
    both = _asked(a), _asked(b)
    apart = differences(*both) if all(both) else []
    note = [html.paragraph(f"{_NOT_ASKED_THE_SAME}: {'; '.join(apart)}.")]
    return html.section("passkey", "Passkeys", table, *(note if apart else []))


_NOT_ASKED_THE_SAME = (
    "The two were not asked for the same passkeys, so that a difference may be one of the "
    "questions"
)


def _asked(facts: RunFacts) -> Mapping[str, Any]:
    """By what settings the passkeys of a run were made, which all of one run share;
    nothing where it has none, or does not say.
    """
    found = (result.made_from.get("settings") for result in facts.of("passkey"))
    settings: Mapping[str, Any] = next(filter(None, found), {})
    return {name: value for name, value in settings.items() if name != "through"}
