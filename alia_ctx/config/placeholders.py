"""`???` in place of a value: what a configuration leaves to be filled in, as OmegaConf
writes it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alia_ctx.config.descriptions import as_yaml, setting_at, type_words
from alia_ctx.config.texts import is_text
from alia_ctx.errors import Problem, Problems

PLACEHOLDER = "???"


def without_placeholders(raw: Any, key: str = "") -> tuple[Any, list[str]]:
    """(`raw` with lists that lack their placeholders, the keys at which some stand). Those
    that are no entry of a list stay where they are.
    """
    if raw == PLACEHOLDER:
        return raw, [key]
    kept: Any = raw
    keys: list[str] = []
    if isinstance(raw, Mapping):
        kept = {}
        for name, value in raw.items():
            kept[name], below = without_placeholders(
                value, f"{key}.{name}" if key else str(name)
            )
            keys += below
    elif isinstance(raw, list):
        kept = []
        for value in raw:
            inside, below = without_placeholders(value, key)
            keys += below
            if value != PLACEHOLDER:
                kept.append(inside)
    return kept, keys


def without_open(raw: Any, place: tuple[str, ...] = ()) -> Any:
    """`raw` without the settings that are left open, as if they were not given: what only
    plans has their defaults. Text stays where it has to be given, as it is not read.
    """
    if isinstance(raw, list):
        return [without_open(value, (*place, "*")) for value in raw]
    if not isinstance(raw, Mapping):
        return raw
    return {
        name: without_open(value, (*place, str(name)))
        for name, value in raw.items()
        if value != PLACEHOLDER or is_text((*place, str(name)), required=True)
    }


def with_placeholders(keys: Sequence[str], problems: Sequence[Problem]) -> Problems:
    """A problem for each placeholder, and the others but for those that it is the cause of."""
    made = Problems()
    for key in dict.fromkeys(keys):
        setting = setting_at(key)
        remedy = "put its value there"
        if setting is not None:
            remedy = (
                f"put there {type_words(setting.hint)}: {setting.text}; for example "
                f"{as_yaml(setting.example)}"
            )
        made.add(key, PLACEHOLDER, "is a placeholder", remedy)
    made += [problem for problem in problems if problem.key not in keys]
    return made
