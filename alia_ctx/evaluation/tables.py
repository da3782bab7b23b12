"""What was measured, as rich tables: a line a model and context, the base first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from alia_ctx.evaluation.positions import BandLoss, PositionBands
from alia_ctx.evaluation.retrieval import RetrievalScores
from alia_ctx.evaluation.retrieval.scores import DEPTHS
from alia_ctx.evaluation.standard_errors import with_error
from alia_ctx.evaluation.verdicts import Measured


def tables(lines: Sequence[Measured]) -> list[Table]:
    """A table for each evaluator that measured anything."""
    made = [_positions(lines), *_sources(lines), _blocks(lines), _long_ppl(lines)]
    made += [*_retrieval(lines), *_passkeys(lines), _leaks(lines)]
    return [table for table in made if table is not None and table.row_count]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("model", overflow="fold")
    table.add_column("context", justify="right")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _bands(lines: Sequence[Measured]) -> list[tuple[Measured, PositionBands]]:
    pairs = [(line, line.positions) for line in lines]
    return [(line, bands) for line, bands in pairs if bands is not None]


def _positions(lines: Sequence[Measured]) -> Table | None:
    found = _bands(lines)
    if not found:
        return None
    headings = [_range(b.start, b.stop) for b in found[0][1].bands()]
    title = "Loss by position in the document (nats a token, +- standard error)"
    table = _table(title, *headings, "documents", "tokens")
    for line, bands in found:
        cells = [_loss(band) for band in bands.bands()]
        counts = [f"{bands.documents:,}", f"{bands.tokens:,}"]
        table.add_row(line.model, f"{line.context:,}", *cells, *counts)
    return table


def _sources(lines: Sequence[Measured]) -> list[Table]:
    """The same by source, where the text has several."""
    found = _bands(lines)
    made = []
    for source in dict.fromkeys(
        name for _, bands in found for name in bands.by_source()
    ):
        headings = [_range(b.start, b.stop) for b in found[0][1].bands()]
        table = _table(f"Loss by position, source {source}", *headings, "documents")
        for line, bands in found:
            own = bands.by_source().get(source, ())
            documents = max((band.documents for band in own), default=0)
            cells = [_loss(band) for band in own]
            table.add_row(line.model, f"{line.context:,}", *cells, f"{documents:,}")
        made.append(table)
    return made


def _range(start: int, stop: int) -> str:
    return f"{start:,}-{stop - 1:,}"


def _loss(band: BandLoss) -> str:
    if not band.tokens:
        return "-"
    return with_error(f"{band.loss:.4f}", band.standard_error)


def _blocks(lines: Sequence[Measured]) -> Table | None:
    found = [
        (line, line.contents["blocks"]) for line in lines if "blocks" in line.contents
    ]
    if not found:
        return None
    block = found[0][1]["block"]
    ranges = sorted(
        {(b["first"], b["last"]) for _, content in found for b in content["bands"]}
    )
    title = (
        f"What far context brings: loss in blocks of {block:,} minus loss with all before "
        "(nats a token; in brackets past the context: with what the context holds)"
    )
    table = _table(title, *(_range(*place) for place in ranges))
    for line, content in found:
        bands = {(b["first"], b["last"]): b for b in content["bands"]}
        shown = content.get("shown", line.context)
        cells = [_gain(bands.get(place), block, shown) for place in ranges]
        table.add_row(line.model, f"{line.context:,}", *cells)
    return table


def _gain(band: Mapping[str, Any] | None, block: int, shown: int) -> str:
    if band is None or band["gain"] is None:
        return "-"
    text = f"{band['gain']:+.4f}"
    if band["last"] > block:  # within the first block both sides are one
        text = with_error(text, band["standard_error"])
    return text if band["first"] < shown else f"({text})"


def _long_ppl(lines: Sequence[Measured]) -> Table | None:
    found = [
        (line, line.contents["longppl"]) for line in lines if "longppl" in line.contents
    ]
    if not found:
        return None
    first = found[0][1]
    threshold = first["threshold"]
    title = (
        f"LongPPL: key tokens by {first['contrast_model']}, short context "
        f"{first['short_context']:,}, difference > {threshold['difference']:g}, "
        f"log-likelihood > {threshold['log_likelihood']:g}"
    )
    table = _table(title, "LongPPL", "perplexity", "key tokens", "tokens")
    for line, content in found:
        values = [content["long_ppl"], content["ppl"]]
        cells = ["-" if value is None else f"{value:,.3f}" for value in values]
        counts = [f"{content['key_tokens']:,}", f"{content['tokens']:,}"]
        table.add_row(line.model, f"{line.context:,}", *cells, *counts)
    return table


Scored = tuple[Measured, RetrievalScores, int, str]


def _scored(lines: Sequence[Measured]) -> list[Scored]:
    """Each model, length and language that retrieval was measured at."""
    return [
        (line, scores, length, language)
        for line in lines
        if "retrieval" in line.contents
        for scores in [RetrievalScores.from_json(line.contents["retrieval"])]
        for length in scores.lengths
        for language in scores.languages
        if scores.score(length=length, language=language).samples
    ]


def _length(line: Measured, length: int) -> str:
    is_control = length == line.contents["retrieval"]["native_context"]
    return f"{length:,}" + (" (control)" if is_control else "")


def _retrieval(lines: Sequence[Measured]) -> list[Table]:
    """All tasks together, a line a model, length and language; then task by task."""
    found = _scored(lines)
    if not found:
        return []
    title = "Retrieval in RULER's task forms: samples answered whole"
    overall = _table(title, "length", "language", "right", "95%", "samples", "tasks")
    for line, scores, length, language in found:
        score = scores.score(length=length, language=language)
        low, high = score.interval
        tasks = [
            task
            for task in scores.tasks
            if scores.score(task, length, language).samples
        ]
        overall.add_row(
            line.model,
            f"{line.context:,}",
            _length(line, length),
            language,
            f"{score.share:.1%}",
            f"{low:.0%}-{high:.0%}",
            f"{score.samples:,}",
            f"{len(tasks)}",
        )
    places = dict.fromkeys((length, language) for *_, length, language in found)
    return [overall, *(_by_task(found, *place) for place in sorted(places))]


def _by_task(found: Sequence[Scored], length: int, language: str) -> Table:
    """Every task at one length, a column a model."""
    title = f"Retrieval at {length:,} tokens, {language}: % answered whole (of parts)"
    table = Table(title=title, title_justify="left")
    table.add_column("task", no_wrap=True)
    scores: dict[str, RetrievalScores] = {}
    for line, measured, *place in found:
        if place == [length, language]:
            scores.setdefault(line.model, measured)
    for model in scores:
        table.add_column(model, justify="right", overflow="fold")
    for task in dict.fromkeys(task for made in scores.values() for task in made.tasks):
        which = {"task": task, "length": length, "language": language}
        table.add_row(task, *(_share(made, **which) for made in scores.values()))
    return table


def _share(scores: RetrievalScores, **which: Any) -> str:
    score = scores.score(**which)
    if not score.samples:
        return "-"
    parts = f" ({score.part_share:.0%})" if score.parts > score.samples else ""
    return f"{score.share:.0%}{parts}"


def _passkeys(lines: Sequence[Measured]) -> list[Table]:
    """A grid for each model and context: lengths by depth."""
    made = []
    for line in lines:
        if "passkey" not in line.contents:
            continue
        scores = RetrievalScores.from_json(line.contents["passkey"])
        title = f"Passkey: {line.model} at {line.context:,} tokens (% found, by depth)"
        table = Table(title=title, title_justify="left")
        table.add_column("length", justify="right")
        for depth in range(DEPTHS):
            table.add_column(f"{(depth + 0.5) / DEPTHS:.0%}", justify="right")
        for length in scores.lengths:
            cells = [_share(scores, length=length, depth=d) for d in range(DEPTHS)]
            table.add_row(f"{length:,}", *cells)
        made.append(table)
    return made


def _leaks(lines: Sequence[Measured]) -> Table | None:
    found = [(line, line.contents["leak"]) for line in lines if "leak" in line.contents]
    if not found:
        return None
    title = (
        "Leak probe: positions of other documents that moved when a token was changed"
    )
    table = _table(title, "layout", "positions", "moved", "largest difference")
    for line, content in found:
        layout = " ".join(f"{name}{size}" for name, size in content["layout"].items())
        table.add_row(
            line.model,
            f"{line.context:,}",
            layout,
            f"{content['positions']:,}",
            f"{content['moved']:,}",
            f"{content['largest_difference']:.1e}",
        )
    return table
