"""Names by which models are told apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, count


def names_apart(
    names: Sequence[str], folder: Callable[[str], object] = lambda name: name
) -> list[str]:
    """Names whose `folder` differs: the first of a name keeps it, others take `NAME (2)`
    and so on, past what any other is called.
    """
    own, used = {folder(name) for name in names}, set[object]()
    apart = []
    for name in names:
        numbers = (f"{name} ({number})" for number in count(2))
        free = (n for n in chain([name], numbers) if folder(n) not in used)
        # A number may have been given to another as its name.
        chosen = next(n for n in free if n == name or folder(n) not in own)
        used.add(folder(chosen))
        apart.append(chosen)
    return apart
