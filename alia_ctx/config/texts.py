"""Text in a configuration: which settings are text, so that what stands there is read as it
is written; and how any text is written, so that it is read as it was.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from alia_ctx.config.run import RunConfig, StageConfig

# Beside the settings of a run, what a file of one may have.
_OF_FILES = {"stage_defaults": StageConfig, "include": list[str] | str}
_INTERPOLATION = re.compile(r"(\\*)\$\{")
_PLAIN = re.compile(r"[A-Za-z/.][\w./+-]*")
_READ_OTHERWISE = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", "."}
_UNIONS = (Union, types.UnionType)
_UNENDING = 1 << 30  # a line of YAML is folded at no column


def is_text(
    place: Sequence[str], *, null: bool = False, required: bool = False
) -> bool:
    """Whether the setting at `place` is text, whatever YAML takes its value for: `yes` is
    the name of a stage where one is asked for, and `1e3` and `1_000` are; `off` is a word
    where one of several is chosen.

    place: names from the top; an entry of a list is called `*`. null: whether `null` is
    text there too, and does not mean that nothing is given. required: whether it cannot
    be null.
    """
    hint = _hint_at(tuple(place))
    if null:  # no stage starts from nothing, and one may be called null
        return hint is str and place[-1:] == ("init_from",)
    if required:
        return hint is str
    return any(option is str or _is_words(option) for option in _options(hint))


def _is_words(hint: Any) -> bool:
    """Whether it is a choice of words, one of which may be `off`, as of `engine.fp8`."""
    words = get_args(hint) if get_origin(hint) is Literal else ()
    return bool(words) and all(isinstance(word, str) for word in words)


@lru_cache(maxsize=4096)
def _hint_at(place: tuple[str, ...]) -> Any:
    """The type that a place is declared with; None where there is no such place."""
    hint: Any = RunConfig
    for number, name in enumerate(place):
        if number == 0 and name in _OF_FILES:
            hint = _OF_FILES[name]
            continue
        hint = next(filter(None, (_inside(o, name) for o in _options(hint))), None)
    return hint


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in _UNIONS else (hint,)


def _inside(hint: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return get_type_hints(hint).get(name)
    if get_origin(hint) in (dict, Mapping):
        return get_args(hint)[1]
    if get_origin(hint) in (list, tuple):
        return get_args(hint)[0] if name == "*" else None
    return None


def escaped(value: str) -> str:
    """A text in which nothing is an interpolation.

    OmegaConf (`GrammarVisitor._unescape`) halves the backslashes before `${`; an odd
    number of them escapes it.
    """
    return _INTERPOLATION.sub(lambda found: found[1] * 2 + "\\${", value)


def written(value: str) -> str:
    """A text as a configuration has it: read back, it is the same. In quotes where YAML
    would take it for something else, and with what looks like an interpolation escaped.
    """
    text = escaped(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _READ_OTHERWISE:
        return text
    line: str = yaml.safe_dump(
        text, default_style='"', allow_unicode=True, width=_UNENDING
    )
    return line.rstrip("\n")


def value_written(value: Any) -> str:
    """A number, a flag or a text as it stands in YAML, numbers in full."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        short = f"{value:.12g}"
        return short if float(short) == value else repr(value)
    return str(value) if isinstance(value, int) else written(str(value))
