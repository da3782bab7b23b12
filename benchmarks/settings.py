"""The setting under which results were measured (card, GPUs, torch, sizes of the task): it
stands in their file, so that no table mixes two and no run goes on with another's.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

Setting = dict[str, Any]
_NAME = "import torch; print(torch.cuda.get_device_name())"


def card() -> str:
    """The name of this process's GPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "a host"


def card_here() -> str:
    """The same, asked in a process of its own: one that only waits for others' measurements
    holds nothing of their GPU.
    """
    if not torch.cuda.is_available():
        return card()
    command = [sys.executable, "-c", _NAME]
    return subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()


def differences(there: Setting, here: Setting) -> str:
    """In words, what a file's setting and this one's do not have in common; empty where
    they are one.
    """
    absent = "not said"
    return ", ".join(
        f"{name} {there.get(name, absent)} there and {here.get(name, absent)} here"
        for name in dict.fromkeys([*here, *there])
        if there.get(name, absent) != here.get(name, absent)
    )


def require_same(file: Path, there: Setting, here: Setting) -> None:
    """ValueError where results under `here` do not belong into a file of `there`."""
    if words := differences(there, here):
        raise ValueError(
            f"{file} has results of another setting ({words}); name another --out"
        )


def by_setting(
    results: Sequence[dict[str, Any]], names: Sequence[str]
) -> list[tuple[Setting, list[dict[str, Any]]]]:
    """Results with the setting that they have in common, `names` of them, in the order of
    the file. One that says nothing of its setting belongs to its neighbours.
    """
    settings = [{n: result[n] for n in names if n in result} for result in results]
    last: Setting = next(filter(None, settings), {})
    groups: list[tuple[Setting, list[dict[str, Any]]]] = []
    for setting, result in zip(settings, results, strict=True):
        last = setting or last
        for known, own in groups:
            if known == last:
                own.append(result)
                break
        else:
            groups.append((last, [result]))
    return groups
