"""Where the documents of a store came from, in words."""

from __future__ import annotations

from collections.abc import Iterable

from alia_ctx.data.tokens.store import TokenStore


def document_places(store: TokenStore, numbers: Iterable[int]) -> list[str]:
    """A file and the place in it of each document: `FILE:LINE`, `FILE#RECORD` or `FILE` as
    `tokenize` wrote it down, or `FILE document N (its id)`, counted from 1 over what the
    store has of that file; `document N of PREFIX`, from 0, where nobody wrote it down.
    """
    wanted = list(numbers)
    path = store.prefix.with_name(store.prefix.name + ".documents.parquet")
    if not wanted:
        return []
    if not path.is_file():
        return [f"document {number} of {store.prefix}" for number in wanted]
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["id", "file"])
    ids, files = table["id"], table["file"]
    if len(files) != store.n_documents:  # of another store that lay there before
        return [f"document {number} of {store.prefix}" for number in wanted]
    places = []
    for number in wanted:
        file, name = files[number].as_py(), ids[number].as_py()
        if name.startswith(file):
            places.append(name)
            continue
        before = pc.sum(pc.equal(files.slice(0, number), file)).as_py() or 0
        places.append(f"{file} document {before + 1} ({name})")
    return places
