"""A stage measured while it trains: numbers for its log, and for the best checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from alia_ctx.config.evaluation import METRICS
from alia_ctx.config.run import HELD_OUT, RunConfig, position_edges
from alia_ctx.errors import DataError
from alia_ctx.evaluation.held_out import held_out_rows, long_documents
from alia_ctx.evaluation.positions import PositionBands
from alia_ctx.evaluation.retrieval import RetrievalScores
from alia_ctx.identity import statement_checksum
from alia_ctx.train.best import MEASURED_ON
from alia_ctx.train.engine import Engine
from alia_ctx.workflow.chain import contexts_up_to
from alia_ctx.workflow.evaluation_tasks import native_context, run_measurement
from alia_ctx.workflow.measuring import Measurement, measure


def held_out_evaluation(
    run: RunConfig,
    name: str,
    engine: Engine,
    beat: Callable[[], None] = lambda: None,
) -> Callable[[], dict[str, Any]]:
    """A function that measures the model in training by `evaluation.during` and gives what
    goes into the line of the log. Collective.

    `held_out`: {context: {band: loss}} at the stage's length, at those of the stages
    before it and at the base's; `retrieval`, `passkey`: {length: {task: share}};
    `blocks`, `longppl`, `leak`: their contents; `metrics`: the numbers that a best
    checkpoint may be named by; `measured_on`: for each, a checksum of the text or the
    samples, as numbers are comparable only where these are the same.
    `beat` is called after every row. DataError, before anything is trained, where there
    is no text for what is asked, or no retrieval task fits into the context.
    """
    during = _During(run, name, engine, lambda done, total: beat())
    return during.measure


class _During:
    def __init__(
        self,
        run: RunConfig,
        name: str,
        engine: Engine,
        progress: Callable[[int, int], None],
    ) -> None:
        self.context = run.stage(name).context
        # A stage may be shorter than those before it, and is measured at its own at most.
        native = native_context(run, name)
        known = {native, *contexts_up_to(run, name)}
        self.contexts = sorted(n for n in known if n <= self.context)
        self.engine, self.progress = engine, progress
        self.names = tuple(run.evaluation.during)
        self.precision = run.engine.precision
        measurement = run_measurement(run, native, self.contexts)
        edges = tuple(sorted({*position_edges(run), *self.contexts}))
        self.on: Measurement = replace(measurement, edges=edges)
        self.name = name
        on_text = [n for n in self.names if n in ("positions", "blocks", "longppl")]
        if on_text:
            self._check_text()
        self.on.check_samples(self.names, self.context)

    def _check_text(self) -> None:
        """DataError where no document has any of the contexts."""
        if self.on.text is None:
            raise DataError(
                f"there is no store of {HELD_OUT} text, which evaluation.during needs; "
                "run `alia-ctx tokenize` first"
            )
        if not self.on.length:
            long_documents(self.on.text, self.contexts[0], 1)

    def measure(self) -> dict[str, Any]:
        """What goes into the line of the log."""
        line: dict[str, Any] = {}
        metrics: dict[str, float] = {}
        if "positions" in self.names:
            bands = {c: self._bands(c) for c in self.contexts if c <= self.on.length}
            line["held_out"] = {str(c): _losses(b) for c, b in bands.items()}
            metrics |= _loss_metrics(bands[max(bands)], self.contexts)
        keys = None
        names = [
            n
            for n in self.names
            if n in ("blocks", "longppl") and self.on.problem(n, self.context) is None
        ]
        if "longppl" in names:  # by itself: there is no other model here
            keys = self.on.key_tokens(
                self.engine, self.name, self.context, self.progress
            )
        if names:
            line |= self.on.on_text(
                self.engine, self.context, names, keys, progress=self.progress
            )
        if "longppl" in line and line["longppl"]["long_ppl"] is not None:
            metrics["long_ppl"] = line["longppl"]["long_ppl"]
        find: Callable[..., dict[str, Any]]
        for kind, find in (
            ("retrieval", self.on.retrieved),
            ("passkey", self.on.passkeys),
        ):
            if kind in self.names:
                content = find(self.engine, self.context, progress=self.progress)
                line[kind] = _shares(content)
                metrics[kind] = (
                    RetrievalScores.from_json(content).score(length=self.context).share
                )
        if "leak" in self.names and self.on.problem("leak", self.context) is None:
            layout = {"dp": self.engine.data_parallel_size}
            line["leak"] = self.on.leaks(self.engine, self.context, layout)
        return {
            **line,
            "metrics": {k: v for k, v in metrics.items() if math.isfinite(v)},
            MEASURED_ON: self._measured_on,
        }

    @cached_property
    def _measured_on(self) -> dict[str, str]:
        """A checksum for each metric of what decides it beside the model."""
        marks = {}
        for metric, evaluator in METRICS.items():
            if evaluator in self.names:
                settings = self.on.settings(evaluator) | {
                    "contexts": self.contexts,
                    "precision": self.precision,
                }
                settings.pop("position_edges", None)  # limits of what is shown
                marks[metric] = statement_checksum(settings)[:12]
        return marks

    def _bands(self, context: int) -> PositionBands:
        assert self.on.text is not None
        rows = held_out_rows(
            self.on.text,
            context=context,
            length=self.on.length,
            documents=self.on.documents,
            row_length=self.context,
            bos=self.on.block_start,
        )
        empty = partial(PositionBands, self.on.edges)
        return measure(self.engine, rows, empty, self.progress)


def _losses(bands: PositionBands) -> dict[str, float]:
    return {f"{b.start}-{b.stop - 1}": b.loss for b in bands.bands() if b.tokens}


def _loss_metrics(bands: PositionBands, contexts: list[int]) -> dict[str, float]:
    """`loss` over all positions, `short_loss` within the context of the chain's base,
    `far_loss` past the context before the stage's.
    """
    edges = bands.edges
    far = contexts[-2] if len(contexts) > 1 else 0
    return {
        "loss": bands.band(0, edges[-1]).loss,
        "short_loss": bands.band(0, contexts[0]).loss,
        "far_loss": bands.band(far, edges[-1]).loss,
    }


def _shares(content: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    scores = RetrievalScores.from_json(content)
    return {
        str(length): {
            task: scores.score(task, length).share
            for task in scores.tasks
            if scores.score(task, length).samples
        }
        for length in scores.lengths
    }
