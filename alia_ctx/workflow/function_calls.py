"""The conversations that a stage holds out, measured while it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from alia_ctx.config.run import RunConfig
from alia_ctx.data.packing import PackedRow, shortest_row
from alia_ctx.data.packing.policies import best_fit
from alia_ctx.data.tokens import TokenStore
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.evaluation.function_calls import ConversationScores, calls_of
from alia_ctx.evaluation.held_out import HeldOutRow
from alia_ctx.train.engine import Engine
from alia_ctx.workflow.conversations import held_out_conversations, sources_of_held_out
from alia_ctx.workflow.measuring import measure
from alia_ctx.workflow.stores import open_stores


def conversation_evaluation(
    run: RunConfig,
    name: str,
    engine: Engine,
    beat: Callable[[], None] = lambda: None,
) -> Callable[[], dict[str, Any]]:
    """A function that measures the model in training on the stage's held-out
    conversations: loss by source, and calls that are right word for word. Collective.

    `beat` is called after every row.
    """
    store = held_out_conversations(run, name)
    names, sources = sources_of_held_out(run, name, open_stores(run, name))
    rows = conversation_rows(store, run.stage(name).context)
    shown = [number for row in rows for number in row.row.doc_ids.tolist()]
    decode = HubTokenizer(run.tokenizer, run.model.architecture).auto.decode
    spans = dict(zip(shown, calls_of(store, shown, decode), strict=True))
    empty = partial(ConversationScores, names, sources, spans)

    def scores() -> dict[str, Any]:
        found = measure(engine, rows, empty, lambda done, total: beat()).summary()
        too_long = store.n_documents - len(shown)
        return {"conversations": len(shown), "too_long": too_long, **found}

    return scores


def conversation_rows(store: TokenStore, context: int) -> list[HeldOutRow]:
    """Whole conversations of `store` packed in rows of at most `context` tokens, with their
    numbers; longer ones are left out.
    """
    numbers = np.flatnonzero(store.lengths <= context)
    packed = best_fit(numbers, store.lengths[numbers], context)
    begins, weights = store.starts(np.arange(store.n_documents)), store.weights
    rows = []
    for index in range(packed.bins):
        documents = packed.document[packed.bin == index]
        tokens = [store.document(number) for number in documents.tolist()]
        trained = [
            np.ones(part.size, np.uint8)
            if weights is None
            else weights[begins[number] : begins[number] + part.size]
            for number, part in zip(documents.tolist(), tokens, strict=True)
        ]
        size, multiple = sum(part.size for part in tokens), shortest_row(context)
        row = PackedRow.from_documents(
            tokens, -(-size // multiple) * multiple, index=index, weights=trained
        )
        numbered = dataclasses.replace(row, doc_ids=documents)
        rows.append(HeldOutRow(numbered, (0,) * documents.size))
    return rows
