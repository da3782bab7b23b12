"""The sections on how it was trained: ledger, loss, speed, balance, faults, data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Literal

import numpy as np

from alia_ctx.report import html
from alia_ctx.report.facts import RunFacts, StageFacts, layout_words
from alia_ctx.report.figures import Line, curves, stacked
from alia_ctx.report.wall_time import PARTS, shares_of_time, wall_seconds

_POINTS = 400  # of a curve; more cannot be told apart


def ledger(facts: RunFacts) -> str:
    """What each stage consumed, and what it came from."""
    rows = [
        [
            stage.name,
            stage.origin or stage.init_from,
            f"{stage.context:,}",
            rope_words(stage),
            f"{stage.learning_rate:g}",
            f"{stage.saved:,} of {stage.updates:,}{stage.ahead}",
            *(_counted(stage, name) for name in ("rows", "tokens", "predicted_tokens")),
            _state(stage),
        ]
        for stage in facts.stages
    ]
    heads = ["stage", "started from", "context", "RoPE", "rate"]
    heads += ["updates", "rows", "tokens", "predicted tokens", "state"]
    table = html.table(
        heads,
        rows,
        caption="Ledger and lineage: the learning rate, and what each stage has trained "
        "on by its newest "
        "checkpoint; tokens without padding. The stage above is what it started from.",
        how=facts.how("train CONFIG --stage NAME"),
        words=(1, 3),
    )
    exports = [html.paragraph(f"Exported: {name}", "small") for name in facts.exports]
    return html.section("ledger", "Ledger and lineage", table, *exports)


def rope_words(stage: StageFacts) -> str:
    fields = {k: v for k, v in stage.rope.items() if v is not None and k != "type"}
    return f"{stage.rope.get('type', '?')}: " + ", ".join(
        f"{name} {value:,g}" if isinstance(value, (int, float)) else f"{name} {value}"
        for name, value in fields.items()
    )


def _counted(stage: StageFacts, name: str) -> str:
    return f"{int(stage.ledger[name]):,}" if stage.ledger else "-"


def _state(stage: StageFacts) -> str:
    if stage.finished:
        return "finished"
    return "under way" if stage.begun else "not begun"


def loss(facts: RunFacts) -> str:
    """Training losses and gradient norms of every stage that has a log."""
    drawn = []
    names = sorted({s for stage in facts.stages for s in _sources(stage)})
    for stage in facts.stages:
        how = facts.how(f"train CONFIG --stage {stage.name}")
        if len(stage.values("loss")) < 2:
            drawn.append(html.missing(f"Training loss of {stage.name}", how))
            continue
        for name, unit in (("loss", "nats a token"), ("gradient_norm", "")):
            word = name.replace("_", " ")
            label = f"{word} ({unit})" if unit else word
            svg = curves(
                f"{stage.name} {name}",
                _with_sources(stage, names)
                if name == "loss"
                else [smoothed(stage, name)],
                x=f"tokens of stage {stage.name}",
                y=label,
                log_y=name == "gradient_norm",
            )
            caption = f"Stage {stage.name}: {word} of each update (faint) and its "
            caption += f"running median{', by source' if name == 'loss' else ''}."
            drawn.append(html.figure(svg, caption, how))
    return html.section("loss", "Training loss", html.figures(*drawn))


def _sources(stage: StageFacts) -> set[str]:
    return {s for line in stage.lines for s in line.get("loss_by_source", {})}


def _with_sources(stage: StageFacts, names: Sequence[str]) -> list[Line]:
    """The loss, and that of each source; a source looks the same in every stage's figure."""
    lines = [smoothed(stage, "loss")]
    sources = _sources(stage)
    if len(sources) > 1:
        lines += [
            replace(
                smoothed(stage, "loss_by_source", name, name=name, faint=False),
                series=number,
            )
            for number, name in enumerate(names, 2)
            if name in sources
        ]
    return lines


def smoothed(
    stage: StageFacts,
    *key: str,
    name: str = "all",
    faint: bool = True,
    over: Literal["tokens", "update"] = "tokens",
) -> Line:
    """Values over tokens or updates, thinned, with their running median."""
    pairs = [
        (line.get(over, 0), value)
        for line in stage.lines
        if (value := _finite(line, *key)) is not None
    ]
    every = max(1, math.ceil(len(pairs) / _POINTS))
    window = max(1, len(pairs) // 40)
    values = [value for _, value in pairs]
    smooth = [median(values[max(0, i - window) : i + 1]) for i in range(len(values))]
    return Line(
        name,
        [place for place, _ in pairs][::every],
        smooth[::every],
        faint=values[::every] if faint else None,
    )


def _finite(line: object, *key: str) -> float | None:
    for name in key:
        line = line.get(name) if isinstance(line, dict) else None
    ok = isinstance(line, (int, float)) and math.isfinite(line)
    return float(line) if ok else None  # type: ignore[arg-type]


def speed(facts: RunFacts) -> str:
    """Throughput, MFU, and where the time went."""
    logged = [stage for stage in facts.stages if len(stage.values("seconds")) > 1]
    how = facts.how("train CONFIG --stage NAME")
    if not logged:
        return html.section("speed", "Throughput", html.missing("Throughput", how))
    rows = [
        [
            stage.name,
            part.updates,
            layout_words(part.layout),
            part.kernel,
            part.layers,
            html.number(median(part.values("seconds")), 3),
            html.number(median(part.values("tokens_per_second")), 0),
            html.number(median(part.values("tokens_per_second_per_rank")), 0),
            f"{median(part.values('mfu')):.1%}",
            f"{median(part.values('mfu_6n')):.1%}",
            f"{median(part.values('imbalance')):.3f}",
            f"{max(part.values('memory_gib')):.2f}",
            duration(wall_seconds(part.lines)),
        ]
        for stage in logged
        for part in stage.parts
    ]
    heads = ["stage", "updates", "layout", "attention", "layers", "s an update"]
    heads += ["tokens/s", "tokens/s a rank", "MFU", "MFU (6N)", "imbalance"]
    heads += ["memory (GiB)", "in all"]
    table = html.table(
        heads,
        rows,
        caption="Medians over updates that ran alike: a line for each layout, kernel "
        "and kind of layers that a stage ran on. Memory is the peak of a rank. "
        "MFU is useful FLOPs, without fill, over the peak that the configuration names; "
        "imbalance is the work of the fullest data-parallel rank over the mean. In all: "
        "saves and evaluations too."
        + "".join(
            f" {why}"
            for stage in logged
            for why in (*stage.slower_kernels, *stage.layers_not_taken)
        ),
        how=how,
    )
    names = [stage.name for stage in logged]
    spent = [shares_of_time(stage.lines) for stage in logged]
    shares = {
        part: [100 * of.get(part, 0.0) for of in spent] for part in (*PARTS, "other")
    }
    split = html.figure(
        stacked("time split", names, shares, x="share of the time (%)"),
        "Where the time of the first rank went, from one update to the next. "
        "Communication is what no computation hid; saving is what training waited for.",
        how,
    )
    over_time = [
        html.figure(
            curves(
                f"{key} by update",
                [_by_update(stage, key) for stage in logged],
                x="update of the stage",
                y=label,
            ),
            caption,
            how,
        )
        for key, label, caption in (
            (
                "tokens_per_second",
                "tokens a second",
                "Throughput of all ranks together, running median.",
            ),
            (
                "imbalance",
                "work of the fullest rank / mean",
                "Imbalance of data-parallel ranks, running median; 1 is even.",
            ),
        )
    ]
    parts = (table, html.figures(split, *over_time))
    return html.section("speed", "Throughput, time and balance", *parts)


def _by_update(stage: StageFacts, key: str) -> Line:
    return smoothed(stage, key, name=stage.name, faint=False, over="update")


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def faults(facts: RunFacts) -> str:
    """What went wrong and was survived, as far as the files tell."""
    rows, notes = [], []
    for stage in facts.stages:
        skipped = [line["update"] for line in stage.lines if not line.get("applied", 1)]
        spikes = [line["update"] for line in stage.lines if line.get("spike")]
        rows.append(
            [
                stage.name,
                _listed(skipped),
                _listed(spikes),
                stage.again,
                stage.broken,
                len(stage.damaged),
                len(stage.unfinished),
            ]
        )
        notes += [f"{stage.name}: changed while training: {c}" for c in stage.changes]
        notes += [f"{stage.name}: set aside: {name}" for name in stage.damaged]
    heads = ["stage", "skipped updates", "spikes", "updates computed again"]
    heads += ["broken log lines", "damaged checkpoints", "unfinished saves"]
    table = html.table(
        heads,
        rows,
        caption="Faults survived. A skipped update had no finite loss or gradient, or "
        "predicted nothing, and changed nothing. Updates are computed again where a "
        "stage went on from a checkpoint older than its log; a resume that lost no "
        "update leaves no trace. An unfinished save was begun and not committed.",
        how=facts.how("train CONFIG --stage NAME"),
        words=(1, 2),
    )
    listed = [html.paragraph(note, "small") for note in notes]
    return html.section("faults", "Faults survived", table, *listed)


def _listed(updates: Sequence[int]) -> str:
    if not updates:
        return "none"
    more = f" and {len(updates) - 5} more" if len(updates) > 5 else ""
    return f"{len(updates)}: " + ", ".join(map(str, updates[:5])) + more


def data(facts: RunFacts) -> str:
    """Documents by source and by the context that they give, with their plans."""
    parts, lines = [], []
    for stage in facts.stages:
        how = facts.how(f"pack CONFIG --stage {stage.name} --inspect")
        if stage.plan is None:
            parts.append(html.missing(f"Plan of {stage.name}", how))
            continue
        rows = [
            [
                name,
                f"{source['documents']:,}",
                f"{source['tokens']:,}",
                f"{source['trained_tokens']:,}",
                f"{source['share']:.2%}",
                f"{source['epochs']:.3f}",
                f"{source.get('seen_epochs', 0.0):.3f}",
            ]
            for name, source in stage.plan["sources"].items()
        ]
        heads = ["source", "documents", "tokens", "tokens of the plan", "share"]
        heads += ["epochs", "epochs before"]
        caption = (
            f"Stage {stage.name}: {stage.plan['rows']:,} rows of "
            f"{stage.plan['row_length']:,} tokens, {stage.plan['fill']:.2%} full, "
            f"{stage.plan['cut_documents']:,} documents cut, "
            f"{_policy(stage)}. Before: in the stages whose data it continues."
        )
        parts.append(html.table(heads, rows, caption=caption, how=how))
        points = np.array(stage.plan["context"], dtype=float)
        shares = (100 * points[:, 1]).tolist()
        lines.append(Line(stage.name, np.maximum(points[:, 0], 1).tolist(), shares))
    if lines:
        svg = curves(
            "context in use",
            lines,
            x="n: tokens of the same document before",
            y="tokens with more than n (%)",
            log_x=True,
        )
        caption = "How much context the plans' tokens have: share of tokens with more "
        caption += "than n tokens of their own document before them, by stage."
        how = facts.how("pack CONFIG --stage NAME --inspect")
        parts.append(html.figure(svg, caption, how))
    return html.section("data", "Data by source and length", *parts)


def _policy(stage: StageFacts) -> str:
    spec = (stage.plan_identity or {}).get("spec") or {}
    return (
        f"policy {spec.get('policy', '?')}, long documents {spec.get('long_docs', '?')}"
    )
