"""How a store is made anew, in the words of errors."""

from __future__ import annotations

import shlex

from alia_ctx.data.documents import SourceSpec


def making_anew(spec: SourceSpec, name: str) -> str:
    """How the store of the source `name` is made anew, as the end of a sentence: one that
    is given as a store is never written here.
    """
    if spec.store is None:
        command = f"alia-ctx tokenize CONFIG --source {shlex.quote(name)} --overwrite"
        return f"make the store anew with `{command}`"
    return (
        f"make the store anew where it was made, as source {name} has it by `store` and "
        "uses it as it is: `alia-ctx tokenize --overwrite` with the configuration that "
        "names its inputs"
    )
