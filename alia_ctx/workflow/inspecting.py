"""What the sources of a stage hold: how long the documents are, in which languages, and
which of them are there twice or are held-out text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from alia_ctx.config.run import RunConfig
from alia_ctx.data.packing import (
    Contamination,
    PackPlan,
    SourceRepeats,
    contamination_table,
    copy_places,
    plan_table,
    repeats_table,
)
from alia_ctx.data.tokens import TokenStore, document_places
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import DataError
from alia_ctx.optional_packages import guard, reason
from alia_ctx.progress import say
from alia_ctx.workflow.plans import contamination, repeats
from alia_ctx.workflow.stores import open_stores

QUANTILES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)
_SAMPLE = 200  # documents of a source whose language is told
_HEAD = 512  # tokens of each that are read for it
_NAMED = 8  # languages of a source


@dataclass(frozen=True)
class Inspection:
    """Of the sources of a stage and its plan. `languages`: shares of the documents of a
    sample by ISO 639-1 code and source, or why they are not told.
    """

    plan: PackPlan
    stores: Mapping[str, TokenStore]
    repeats: Mapping[str, SourceRepeats]
    overlap: Contamination | None
    languages: dict[str, dict[str, float]] | str

    @cached_property
    def lengths(self) -> dict[str, dict[str, Any]]:
        """By source: tokens of documents at `QUANTILES`, and the histogram [[from, below,
        documents, tokens]] by powers of two.
        """
        return {name: _lengths(store.lengths) for name, store in self.stores.items()}

    def document(self) -> dict[str, Any]:
        """In JSON's types."""
        document: dict[str, Any] = {
            "lengths": self.lengths,
            "languages": self.languages
            if isinstance(self.languages, dict)
            else {"not_told": self.languages},
            "repeats": {
                name: {**vars(of), "first": copy_places(name, of.first, self.stores)}
                for name, of in self.repeats.items()
            },
        }
        if self.overlap is not None:
            document["held_out"] = {
                name: {
                    "same": same.size,
                    "nearly": self.overlap.near[name].size,
                    "first": document_places(
                        self.stores[name], self.overlap.documents(name)[:5].tolist()
                    ),
                }
                for name, same in self.overlap.exact.items()
            }
        return document

    def tables(self) -> list[Any]:
        """Rich tables, and lines of what is not told."""
        tables: list[Any] = [
            *plan_table(self.plan),
            _length_table(self.lengths),
            _histogram_table(self.lengths),
        ]
        if isinstance(self.languages, str):
            tables.append(Text(self.languages))
        else:
            tables.append(_language_table(self.languages))
        tables.append(repeats_table(self.repeats, self.stores))
        if self.overlap is None:
            tables.append(
                Text("no tokenised held-out text to compare the sources with")
            )
        else:
            tables.append(contamination_table(self.overlap, self.stores))
        return tables


def inspect_data(run: RunConfig, name: str, plan: PackPlan) -> Inspection:
    """Look at all that a stage draws from. Reads all tokens."""
    stores = dict(open_stores(run, name))
    return Inspection(
        plan, stores, repeats(run, name), contamination(run, name), _told(run, stores)
    )


def _lengths(lengths: np.ndarray) -> dict[str, Any]:
    tokens = lengths.astype(np.int64)
    some = tokens if tokens.size else np.zeros(1, np.int64)
    powers = np.frexp(np.maximum(tokens, 1))[1] - 1  # 2^p <= n < 2^(p + 1)
    return {
        "documents": tokens.size,
        "tokens": int(tokens.sum()),
        "quantiles": {
            f"{q:g}": int(n)
            for q, n in zip(
                QUANTILES,
                np.quantile(some, QUANTILES, method="nearest").tolist(),
                strict=True,
            )
        },
        "histogram": [
            [
                2**power if power else 0,
                2 ** (power + 1),
                int((powers == power).sum()),
                int(tokens[powers == power].sum()),
            ]
            for power in np.unique(powers).tolist()
        ],
    }


def _length_table(sources: Mapping[str, dict[str, Any]]) -> Table:
    table = Table(title="tokens of a document")
    table.add_column("source")
    named = {0.0: "shortest", 0.5: "median", 1.0: "longest"}
    for heading in ("documents", *(named.get(q, f"{q:.0%}") for q in QUANTILES)):
        table.add_column(heading, justify="right")
    for name, of in sources.items():
        figures = (of["documents"], *of["quantiles"].values())
        table.add_row(name, *(f"{n:,}" for n in figures))
    return table


def _histogram_table(sources: Mapping[str, dict[str, Any]]) -> Table:
    """Share of the tokens, which is what training sees; the documents beside it."""
    table = Table(title="documents (share of the tokens) by their tokens")
    table.add_column("tokens", justify="right")
    bins: dict[int, dict[str, str]] = {}
    for name, of in sources.items():
        table.add_column(name, justify="right")
        for low, _, documents, tokens in of["histogram"]:
            share = tokens / max(1, of["tokens"])
            bins.setdefault(low, {})[name] = f"{documents:,} ({share:.1%})"
    for low in sorted(bins):
        high = max(2, 2 * low) - 1
        table.add_row(
            f"{low:,} to {high:,}", *(bins[low].get(name, "-") for name in sources)
        )
    return table


def _told(
    run: RunConfig, stores: Mapping[str, TokenStore]
) -> dict[str, dict[str, float]] | str:
    if find_spec("py3langid") is None:
        return (
            "languages are not told: py3langid is not installed; "
            "`pip install 'alia-ctx[languages]'` brings it with its model, offline"
        )
    try:
        tokenizer = HubTokenizer(run.tokenizer, run.model.architecture).auto
    except DataError as error:
        return f"languages are not told: {error}"
    guard()
    try:
        import py3langid  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        return f"languages are not told: py3langid does not import ({reason(error)})"

    languages = {}
    for name, store in stores.items():
        say(f"telling languages of {name}")
        numbers = np.flatnonzero(store.lengths)
        numbers = numbers[:: max(1, -(-numbers.size // _SAMPLE))]
        counts = Counter[str]()
        for number in numbers.tolist():
            ids = store.document(number)[:_HEAD].tolist()
            text = tokenizer.decode(ids, skip_special_tokens=True)
            counts[py3langid.classify(text)[0] if text.strip() else "none"] += 1
        languages[name] = {
            language: count / counts.total() for language, count in counts.most_common()
        }
    return languages


def _language_table(sources: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(title=f"languages, of up to {_SAMPLE} documents a source (py3langid)")
    table.add_column("source")
    table.add_column("share of the documents")
    for name, languages in sources.items():
        told = [f"{code} {share:.0%}" for code, share in languages.items()]
        more = [f"{len(told) - _NAMED} more"] if len(told) > _NAMED else []
        table.add_row(name, ", ".join([*told[:_NAMED], *more]) or "none")
    return table
