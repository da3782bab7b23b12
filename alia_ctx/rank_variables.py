"""The variables by which a launcher tells each process which of the ranks it is."""

from __future__ import annotations

import os
from collections.abc import Collection

NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
# What torch's `env://` asks for (torch/distributed/rendezvous.py).
OF_A_MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_AMONG = {"RANK": "WORLD_SIZE", "LOCAL_RANK": "LOCAL_WORLD_SIZE"}


def rank_problem(names: Collection[str] = NUMBERS, *, needed: str = "") -> str | None:
    """What is wrong with these variables, for a sentence; None where nothing is. An empty
    one is taken for unset.

    Torch names one that is missing in a traceback, and waits for ranks that never come
    where one is too large.

    Args:
        needed: the variable that is set and for which all of `names` have to be.
    """
    given = {name: value for name in names if (value := os.environ.get(name))}
    wrong = [
        f"{name}={value!r} is no number"
        for name, value in given.items()
        if name != "MASTER_ADDR" and not (value.isascii() and value.isdigit())
    ]
    missing = [name for name in names if name not in given] if needed else []
    if missing:
        value = os.environ[needed]
        wrong.append(f"{needed}={value} is set, but not {', '.join(missing)}")
    if not wrong:
        wrong = [
            f"{one} is {given[one]} of {all_}={given[all_]} ranks"
            for one, all_ in _AMONG.items()
            if one in given and all_ in given and int(given[one]) >= int(given[all_])
        ]
    return "; ".join(wrong) or None
