"""What evaluators find of a model that is loaded, each as the content of its result."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from alia_ctx.data.packing import PackedRow
from alia_ctx.errors import DataError
from alia_ctx.evaluation.blocks import WithoutBlockEnds, far_context_gain
from alia_ctx.evaluation.evaluator import Evaluator
from alia_ctx.evaluation.held_out import (
    Documents,
    HeldOutRow,
    begins_with,
    copies_left_out,
    held_out_rows,
    long_documents,
)
from alia_ctx.evaluation.leak import LEAST_ROW, LeakCounts, merged_replicas, probes
from alia_ctx.evaluation.long_ppl import KeyTokens, TokenLosses, Windows
from alia_ctx.evaluation.positions import PositionBands
from alia_ctx.evaluation.retrieval import (
    AnswerHits,
    RetrievalSettings,
    SampleRows,
    SampleSpec,
    passkey_specs,
    ruler_specs,
)
from alia_ctx.train.engine import Scorer

Progress = Callable[[int, int], None]  # rows done, of how many
ON_TEXT = ("positions", "blocks", "longppl")
# Why there is none.
NO_TEXT = "there is no held-out text"
NOT_TOKENISED = "the held-out text is not tokenised yet"


class NotFiniteError(DataError):
    """A model computes losses that are no numbers: there is nothing to say of it."""


def _silent(done: int, total: int) -> None:
    """Where nobody asks how far it is."""


def measure[E: Evaluator](
    engine: Scorer,
    rows: Sequence[HeldOutRow],
    make: Callable[[], E],
    progress: Progress = _silent,
) -> E:
    """What `make()`, an empty evaluator, makes of `rows`; collective, the same on every rank."""
    made: E = measure_together(engine, rows, [make], progress)[0]
    return made


def measure_together(
    engine: Scorer,
    rows: Sequence[HeldOutRow],
    makes: Sequence[Callable[[], Any]],
    progress: Progress = _silent,
) -> list[Any]:
    """`measure` by several evaluators from one pass over the rows.

    NotFiniteError, on every rank, where a predicted token has a loss that is no finite
    number: evaluators take what is nan for what is not predicted.
    """
    local = [make() for make in makes]
    broken = 0
    for done, own in _own_rows(engine, rows):
        # A rank without a row takes part all the same: gathering the weights may be
        # collective.
        for losses in engine.row_losses([held_out.row for held_out in own]):
            if own:
                broken += int((losses.predicted & ~np.isfinite(losses.values)).sum())
                found = (losses.as_row(), losses.hits_as_row())
                offsets = own[0].position_offsets
                for evaluator in local:
                    evaluator.add(own[0].pieces, *found, position_offset=offsets)
        progress(done, len(rows))
    everywhere = sum(engine.gather_objects(broken))
    if everywhere:
        raise NotFiniteError(f"the loss of {everywhere:,} tokens is no finite number")
    gathered = engine.gather_objects([evaluator.to_json() for evaluator in local])
    totals = [make() for make in makes]
    for rank in gathered:
        for total, part in zip(totals, rank, strict=True):
            total.merge(type(total).from_json(part))
    return totals


def _own_rows(
    engine: Scorer, rows: Sequence[HeldOutRow]
) -> Iterator[tuple[int, list[HeldOutRow]]]:
    """This rank's row of each round over the ranks, none where it has none, and how many
    rows all ranks have then. The next one is made while the caller works on this one: a
    sample of 163,840 tokens takes up to half a second of a host.
    """
    ranks, rank = engine.data_parallel_size, engine.data_parallel_rank

    def make(first: int) -> list[HeldOutRow]:
        return [rows[first + rank]] if first + rank < len(rows) else []

    with ThreadPoolExecutor(1, "held-out rows") as ahead:
        coming = ahead.submit(make, 0)
        for first in range(0, len(rows), ranks):
            own, following = coming.result(), first + ranks
            if following < len(rows):
                coming = ahead.submit(make, following)
            yield min(following, len(rows)), own


@dataclass(frozen=True)
class Measurement:
    """What models are measured on, in tokens of one tokenizer.

    Args:
        text, no_text: held-out documents; None where there are none, and why.
        length: tokens that are shown of each, in blocks of a model's context.
        documents: how many.
        edges: limits of the position bands.
        native: the base's own context: length of the control samples, of the blocks,
            and of LongPPL's short context.
        retrieval: which samples.
        encode, prefix: text -> ids; ids before each sample.
        haystack: documents as texts, for needles of samples of so many tokens.
        tokenizer: states the tokenizer that `encode` is of; None where there is none.
    """

    text: Documents | None
    length: int
    documents: int
    edges: tuple[int, ...]
    native: int
    vocab_size: int
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    encode: Callable[[str], Sequence[int]] = field(default=lambda text: [], repr=False)
    prefix: tuple[int, ...] = ()
    haystack: Callable[[int], Sequence[str]] = field(default=lambda n: [], repr=False)
    tokenizer: Callable[[], Any] = field(default=lambda: None, repr=False)
    no_text: str = NO_TEXT

    def problem(self, evaluator: str, context: int) -> str | None:
        """Why an evaluator has nothing to measure at a context; None where it has."""
        if evaluator in ON_TEXT and self.text is None:
            return self.no_text
        if evaluator in ON_TEXT and not self.length:
            assert self.text is not None
            longest = int(self.text.lengths.max(initial=0))
            return f"the longest document of {self.text.where} has {longest:,} tokens"
        if evaluator in ("positions", "blocks", "longppl") and context > self.length:
            where = self.text.where if self.text is not None else "the text"
            return f"no document of {where} has {context:,} tokens"
        if evaluator in ("blocks", "longppl") and context <= self.native:
            return f"the context is not above the base's {self.native:,} tokens"
        if evaluator == "leak" and context < LEAST_ROW:
            return f"a probe needs rows of {LEAST_ROW} tokens or more"
        return None

    def settings(self, evaluator: str, keys: Mapping[str, Any] | None = None) -> Any:
        """What decides a result beside model and context, for its statement."""
        if evaluator in ON_TEXT:
            assert self.text is not None
            settings: dict[str, Any] = {
                "held_out": self.text.fingerprint,
                "length": self.length,
                "documents": self.documents,
            }
            if self.copies:
                settings["copies_left_out"] = self.copies
            if evaluator != "longppl" and self.block_start is not None:
                settings["blocks_begin_with"] = self.block_start
            if evaluator != "longppl":
                settings["position_edges"] = self.edges
            if evaluator != "positions":
                settings["native_context"] = self.native
            if evaluator == "blocks":
                # The number goes up where equal settings make other numbers than before.
                settings["form"] = 2
            return settings | (dict(keys) if keys and evaluator == "longppl" else {})
        if evaluator in ("retrieval", "passkey"):
            settings = self.retrieval.statement()
            if evaluator == "passkey":
                del settings["tasks"], settings["haystack"]
            elif self.retrieval.haystack == "text" and self.text is not None:
                # 3: the haystack is by the sample's length alone.
                settings |= {"form": 3, "held_out": self.text.fingerprint}
            return settings | {
                "native_context": self.native,
                "prefix": self.prefix,
                "tokenizer": self.tokenizer(),
            }
        return {}

    @cached_property
    def copies(self) -> int:
        """Documents that are left out, as they are equal to one that is measured."""
        if self.text is None or not self.length:
            return 0
        return copies_left_out(self.text, self.length, self.documents)

    @cached_property
    def block_start(self) -> int | None:
        """The token that blocks of documents begin with, as each is a document of its own
        to the model; None where documents have none before their text.
        """
        if not self.prefix or self.text is None or not self.length:
            return None
        bos, size = self.prefix[0], {"length": self.length, "documents": self.documents}
        return bos if begins_with(self.text, bos, **size) else None

    # -- on text -----------------------------------------------------------------------

    def on_text(
        self,
        engine: Scorer,
        context: int,
        names: Collection[str],
        keys: KeyTokens | None = None,
        row_length: int | None = None,
        progress: Progress = _silent,
    ) -> dict[str, Any]:
        """Contents of `positions`, `blocks` and `longppl`, those of `names`, from one pass
        over the documents and, for blocks, one over their blocks. Collective.
        """
        assert self.text is not None
        bands = partial(PositionBands, self.edges, sources=self.text.sources)
        makes: dict[str, Callable[[], Any]] = {}
        if "positions" in names:
            makes["positions"] = bands
        if "blocks" in names:
            overlap = 0 if self.block_start is None else 1
            # Past what the model is shown it has not all before: a band of its own.
            edges = sorted({*self.edges, *([context] if context < self.length else [])})
            makes["blocks"] = partial(
                WithoutBlockEnds, edges, blocks=(self.native, context), overlap=overlap
            )
        if keys is not None and "longppl" in names:
            makes["longppl"] = partial(TokenLosses, self.length)
        rows = self._rows(context, row_length or context)
        made = measure_together(engine, rows, list(makes.values()), progress)
        found = dict(zip(makes, made, strict=True))
        contents: dict[str, Any] = {}
        if "positions" in found:
            contents["positions"] = found["positions"].to_json()
        if "blocks" in found:
            rows = self._rows(self.native, row_length or context)
            blocks = measure(engine, rows, makes["blocks"], progress)
            gain = far_context_gain(found["blocks"], blocks, self.native, context)
            contents["blocks"] = gain
        if keys is not None and "longppl" in found:
            contents["longppl"] = keys.long_ppl(found["longppl"])
        return contents

    def _rows(self, context: int, row_length: int) -> Sequence[HeldOutRow]:
        assert self.text is not None
        return held_out_rows(
            self.text,
            context=context,
            length=self.length,
            documents=self.documents,
            row_length=row_length,
            bos=self.block_start,
        )

    def key_tokens(
        self, engine: Scorer, name: str, context: int, progress: Progress = _silent
    ) -> KeyTokens:
        """LongPPL's key tokens, found by the model `name` in `engine`, whose rows have
        `context` tokens. Collective.
        """
        assert self.text is not None
        rows = self._rows(context, context)
        whole = measure(engine, rows, partial(TokenLosses, self.length), progress)
        windows = Windows.of(self.native, context)
        chosen = long_documents(self.text, self.length, self.documents)
        short_rows = windows.rows(self.text, chosen, self.length, context)
        make = partial(TokenLosses, self.length, windows.short)
        short = measure(engine, short_rows, make, progress)
        return KeyTokens.find(whole, short, name, context, windows.short)

    def check_samples(self, evaluators: Collection[str], context: int) -> None:
        """NoSampleError where `retrieval` or `passkey`, of `evaluators`, has no sample that
        fits into the context, or none with this tokenizer.
        """
        rows = self._samples((), context)
        if "retrieval" in evaluators:
            ruler_specs(self.retrieval, rows, [context])
        if "passkey" in evaluators:
            passkey_specs(self.retrieval, rows, context, self.native)

    # -- without text of the user's ------------------------------------------------------

    def retrieved(
        self,
        engine: Scorer,
        context: int,
        row_length: int | None = None,
        control: bool = True,
        progress: Progress = _silent,
    ) -> dict[str, Any]:
        """Content of `retrieval`: all tasks at the context, and as a control at the base's
        native length where that is shorter. Collective.
        """
        shorter = {self.native} if control and self.native < context else set()
        lengths = sorted({context, *shorter})
        rows = self._samples((), row_length or context)
        specs, left_out = ruler_specs(self.retrieval, rows, lengths)
        content = self._answers(engine, specs, row_length or context, progress)
        return content | {"left_out": left_out}

    def passkeys(
        self,
        engine: Scorer,
        context: int,
        row_length: int | None = None,
        progress: Progress = _silent,
    ) -> dict[str, Any]:
        """Content of `passkey`: a grid of depths and lengths up to the context. Collective."""
        rows = self._samples((), row_length or context)
        specs = passkey_specs(self.retrieval, rows, context, self.native)
        return self._answers(engine, specs, row_length or context, progress)

    def _samples(self, specs: Sequence[SampleSpec], row_length: int) -> SampleRows:
        return SampleRows(
            self.retrieval,
            specs,
            self.encode,
            row_length,
            prefix=self.prefix,
            texts=self.haystack,
        )

    def _answers(
        self,
        engine: Scorer,
        specs: Sequence[SampleSpec],
        row_length: int,
        progress: Progress,
    ) -> dict[str, Any]:
        rows = self._samples(specs, row_length)
        hits = measure(engine, rows, AnswerHits, progress)
        return hits.scores(len(specs)).to_json() | {"native_context": self.native}

    def leaks(self, engine: Scorer, context: int, layout: Any) -> dict[str, Any]:
        """Content of `leak`: how many positions of other documents moved when one token of
        one document was changed. Collective.
        """
        local = LeakCounts()
        for probe in probes(self.vocab_size, context):
            found = [_row_losses(engine, r) for r in (probe.row, probe.changed_row)]
            if found[0] is not None and found[1] is not None:
                local.add(probe, found[0], found[1])
        own = (engine.data_parallel_rank, local.to_json())
        total = merged_replicas(engine.gather_objects(own))
        if not total.own_moved:
            raise DataError(
                "the leak probe changed tokens and no loss of their own documents moved; "
                "this model does not read its input"
            )
        content = total.to_json()
        del content["own_moved"]
        return {"layout": layout, **content}


def _row_losses(engine: Scorer, row: PackedRow) -> np.ndarray | None:
    """Losses [T] of a row as this rank has them; None on ranks that report none."""
    losses = engine.row_losses([row])
    return losses[0].as_row() if losses else None
