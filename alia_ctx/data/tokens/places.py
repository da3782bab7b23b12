"""Where the documents of a store came from, in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from alia_ctx.data.tokens.store import TokenStore
from alia_ctx.data.tokens.store_files import DOCUMENTS, has_documents, store_path


def document_table(store: TokenStore) -> Any | None:
    """`id` and `file` of each document (a pyarrow Table, a row a document), as `tokenize`
    wrote them; None where nobody did, or they are of another store.
    """
    if not has_documents(store.prefix):
        return None
    import pyarrow.parquet as pq

    table = pq.read_table(store_path(store.prefix, DOCUMENTS))
    # Those of another store may be left there.
    return table if table.num_rows == store.n_documents else None


def document_places(store: TokenStore, numbers: Iterable[int]) -> list[str]:
    """A file and the place in it of each document: `FILE:LINE`, `FILE#RECORD` or `FILE` as
    `tokenize` wrote it down, or `FILE document N (its id)`, counted from 1 over what the
    store has of that file; `document N of PREFIX`, from 0, where nobody wrote it down.
    """
    wanted = list(numbers)
    if not wanted:
        return []
    table = document_table(store)
    if table is None:
        return [f"document {number} of {store.prefix}" for number in wanted]
    import pyarrow.compute as pc

    ids, files = table["id"], table["file"]
    places = []
    for number in wanted:
        file, name = files[number].as_py(), ids[number].as_py()
        if name.startswith(file):
            places.append(name)
            continue
        before = pc.sum(pc.equal(files.slice(0, number), file)).as_py() or 0
        places.append(f"{file} document {before + 1} ({name})")
    return places
