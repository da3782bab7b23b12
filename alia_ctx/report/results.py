"""The sections on what was measured: positions, blocks, passkeys, retrieval, LongPPL."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from alia_ctx.evaluation.positions import PositionBands
from alia_ctx.evaluation.retrieval.scores import DEPTHS, RetrievalScores
from alia_ctx.evaluation.standard_errors import known_error, with_error
from alia_ctx.evaluation.verdicts import own_bands
from alia_ctx.report import html
from alia_ctx.report.facts import COMMANDS, Result, RunFacts
from alia_ctx.report.figures import Line, curves, heat_map

_LEAST_TOKENS = 30  # a point of a curve with fewer is noise


def positions(facts: RunFacts) -> str:
    """Loss by position before and after each stage, the base first."""
    how = facts.how(COMMANDS["positions"])
    results = facts.of("positions")
    if not results:
        none = html.missing("Loss by position", how)
        return html.section("positions", "Loss by position", none)
    edges = results[0].bands.edges
    same = [result for result in results if result.bands.edges == edges]
    headings = ["model", "shown at a time", *(_band(a, b) for a, b in pairwise(edges))]
    rows = [
        [r.model, f"{r.context:,}", *(_mean(r.bands, a, b) for a, b in pairwise(edges))]
        for r in same
    ]
    table = html.table(
        headings,
        rows,
        caption="Mean loss in nats a token on held-out documents, by the position of "
        "the token in its document, ± standard error over documents.",
        how=how,
    )
    own = own_bands(facts.lines, facts.chain)
    lines = [curve(model, bands) for model, bands in own.items()]
    drawn = html.figure(
        curves(
            "loss by position",
            lines,
            x="tokens of the document seen so far",
            y="loss (nats a token)",
            log_x=True,
            marks=edges[1:-1],
            first=0,
        ),
        "Loss against position, each model at its own context, in blocks of it where "
        "the text is longer. Dotted: the contexts of the stages. "
        f"Points of fewer than {_LEAST_TOKENS} tokens are left out.",
        how,
    )
    lacking = [m for m in facts.models if m not in {r.model for r in results}]
    parts = [html.missing(f"Loss by position of {model}", how) for model in lacking]
    return html.section("positions", "Loss by position", *parts, drawn, table)


def _band(start: int, stop: int) -> str:
    return f"{start:,}–{stop - 1:,}"


def _mean(bands: PositionBands, start: int, stop: int) -> str:
    """The mean of a band and its standard error, documents being the samples."""
    band = bands.band(start, stop)
    return (
        with_error(f"{band.loss:.4f}", band.standard_error, "±") if band.tokens else "-"
    )


def curve(model: str, bands: PositionBands) -> Line:
    places, losses, tokens = bands.curve()
    kept = tokens >= _LEAST_TOKENS
    return Line(model, (places[kept] + 1).tolist(), losses[kept].tolist())


def far_context(facts: RunFacts) -> str:
    """The same text in blocks of the base context, and LongPPL."""
    how = facts.how(COMMANDS["blocks"])
    parts = []
    blocks = facts.of("blocks")
    if blocks:
        rows = [
            [
                result.model,
                f"{_shown(result):,}",
                f"{result.content['block']:,}",
                _band(band["first"], band["last"]),
                band["documents"],
                # There the block is all that is before: nothing was measured.
                "0 (one block)"
                if band["last"] <= result.content["block"]
                else _gain(band["gain"], band["standard_error"]),
                _ratio(band["gain"], band["standard_error"]),
            ]
            for result in blocks
            for band in result.content["bands"]
            if band["first"] < _shown(result)
        ]
        heads = ["model", "shown", "block", "positions", "documents", "gain"]
        heads.append("standard errors")
        caption = (
            "What far context brings: loss of the same tokens shown in blocks of the "
            "base context, minus their loss with all of the document before them, in "
            "nats a token, the mean over documents ± its standard error; at positions "
            "within what the model was shown."
        )
        parts.append(html.table(heads, rows, caption=caption, how=how))
    else:
        parts.append(html.missing("What far context brings (blocks)", how))
    how = facts.how(COMMANDS["longppl"])
    long_ppl = facts.of("longppl")
    if long_ppl:
        rows = [
            [
                r.model,
                html.number(r.content["long_ppl"]),
                html.number(r.content["ppl"]),
                f"{r.content['key_tokens']:,} of {r.content['tokens']:,}",
                f"{r.content['long_context']:,} / {r.content['short_context']:,}",
                r.content["contrast_model"],
            ]
            for r in long_ppl
        ]
        heads = ["model", "LongPPL", "PPL", "key tokens", "long / short", "contrast"]
        caption = (
            "LongPPL (arXiv 2410.23771): perplexity of the tokens whose loss falls with "
            "the long context; the contrast model chooses them."
        )
        parts.append(html.table(heads, rows, caption=caption, how=how, words=(5,)))
    else:
        parts.append(html.missing("LongPPL", how))
    return html.section("far", "What far context brings", *parts)


def _shown(result: Result) -> int:
    return int(result.content.get("shown", result.context))


def _gain(gain: float | None, error: float | None) -> str:
    if gain is None:
        return "-"
    return with_error(f"{gain:+.4f}", error, "±")


def _ratio(gain: float | None, error: float | None) -> str:
    known = known_error(error)
    return "-" if gain is None or known is None else f"{gain / known:+.1f}"


def passkeys(facts: RunFacts) -> str:
    """A heat map a model, and a table over all depths."""
    how = facts.how(COMMANDS["passkey"])
    merged = by_model(facts.of("passkey"))
    if not merged:
        return html.section("passkey", "Passkeys", html.missing("Passkeys", how))
    maps, rows = [], []
    columns = sorted({n for parts in merged.values() for n in lengths(parts)})
    for model, parts in merged.items():
        own = lengths(parts)
        scores = [[_share(parts, n, depth) for n in own] for depth in range(DEPTHS)]
        share = np.array(scores, dtype=float)
        asked = ~np.isnan(share).all(axis=1)
        labels = [f"{100 * d // DEPTHS}%" for d in range(DEPTHS) if asked[d]]
        if labels:
            maps.append(
                html.figure(
                    heat_map(f"passkey of {model}", own, labels, share[asked]),
                    f"{model}: share of passkeys answered whole, by the length of the "
                    "text and the depth of the needle in it (0% is the beginning).",
                    how,
                )
            )
        rows.append([model, *(counted(parts, n) for n in columns)])
    table = html.table(
        ["model", *(f"{n:,}" for n in columns)],
        rows,
        caption="Passkeys answered whole, over all depths, by length of the text in "
        "tokens: right of asked, with Wilson's 95% interval.",
        how=how,
    )
    return html.section("passkey", "Passkeys", table, html.figures(*maps))


def by_model(results: list[Result]) -> dict[str, list[Result]]:
    merged: dict[str, list[Result]] = {}
    for result in results:
        merged.setdefault(result.model, []).append(result)
    return merged


def lengths(parts: list[Result]) -> list[int]:
    return sorted({n for part in parts for n in part.scores.lengths})


def _share(parts: list[Result], length: int, depth: int) -> float:
    return _joined(parts).score(length=length, depth=depth).share


def _joined(parts: list[Result]) -> RetrievalScores:
    """The scores of several contexts: the control of each is the same samples."""
    scores = RetrievalScores()
    for part in parts:
        scores.join(part.scores)
    return scores


def counted(parts: list[Result], length: int, task: str | None = None) -> str:
    score = _joined(parts).score(task=task, length=length)
    if not score.samples:
        return "-"
    low, high = score.interval
    return f"{score.right} of {score.samples} ({low:.0%}–{high:.0%})"


def retrieval(facts: RunFacts) -> str:
    """RULER's tasks, a column for each model and length, the native one as the control."""
    how = facts.how(COMMANDS["retrieval"])
    merged = by_model(facts.of("retrieval"))
    if not merged:
        return html.section(
            "ruler", "RULER's tasks", html.missing("RULER's tasks", how)
        )
    columns = [(model, n) for model, parts in merged.items() for n in lengths(parts)]
    native = {
        (model, int(part.content["native_context"]))
        for model, parts in merged.items()
        for part in parts
        if part.content.get("native_context")
    }
    tasks = sorted(
        {t for parts in merged.values() for part in parts for t in part.scores.tasks}
    )
    rows = [
        [task, *(counted(merged[model], n, task) for model, n in columns)]
        for task in tasks
    ]
    heads = [
        f"{model}, {n:,}{' (native)' if (model, n) in native else ''}"
        for model, n in columns
    ]
    table = html.table(
        ["task", *heads],
        rows,
        caption="Samples answered whole of those asked, with Wilson's 95% interval, by "
        "model and length in tokens, in the forms of RULER (arXiv 2404.06654). The "
        "native length is the control: what fails there is not a matter of length.",
        how=how,
    )
    return html.section("ruler", "RULER's tasks", table)


def leak(facts: RunFacts) -> str:
    """Whether a change in one document moved anything in another."""
    how = facts.how(COMMANDS["leak"])
    probes = facts.of("leak")
    if not probes:
        return html.section("leak", "Leak probe", html.missing("Leak probe", how))
    rows = [
        [
            r.model,
            f"{r.context:,}",
            ", ".join(f"{k} {v}" for k, v in r.content["layout"].items()),
            f"{r.content['moved']:,} of {r.content['positions']:,}",
            f"{r.content['largest_difference']:g}",
        ]
        for r in probes
    ]
    table = html.table(
        [
            "model",
            "context",
            "layout",
            "positions that moved",
            "largest difference (nats)",
        ],
        rows,
        caption="One token of one document changed: positions of other documents whose "
        "loss moved. It must be none.",
        how=how,
    )
    return html.section("leak", "Leak probe", table)
