"""What an artefact says of itself: what it was made from, and the settings that decide its
content.

Nothing is believed because of its name. Whoever makes an artefact writes a statement
with it; whoever opens it forms the statement that it ought to have, and compares. A
statement is a mapping of JSON's types: nested names to numbers, texts, lists. What only
decides how the work was done (a layout, a number of workers) has no place in it.

Pure functions: nothing here reads or writes a file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alia_ctx.errors import AliaError
from alia_ctx.files import checksum

_ABSENT = object()
_LIMIT = 200  # characters that are shown of a value


class IdentityError(AliaError):
    """An artefact is not the one that it is taken for, or says nothing of itself.

    Args:
        artefact: what it is and where, as the message begins.
        differences: what differs, a line each.
        remedy: what to do about it; names the command that makes it anew.
    """

    def __init__(self, artefact: str, differences: Sequence[str], remedy: str) -> None:
        self.differences = tuple(differences)
        lines = [f"{artefact}:", *(f"  {line}" for line in differences), remedy]
        super().__init__("\n".join(lines))


def statement(value: Any) -> Any:
    """`value` in JSON's types, as it would come back from a file: dataclasses become
    mappings, tuples lists, paths texts.
    """
    return json.loads(json.dumps(value, default=_plain, allow_nan=False))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no place in a statement")


def statement_checksum(value: Any) -> str:
    """xxh3_128, in hex, of a statement; the order of names does not matter."""
    return checksum(json.dumps(statement(value), sort_keys=True).encode())


def differences(then: Any, now: Any, prefix: str = "") -> list[str]:
    """What is not the same, a line for each leaf: `name: THEN there, NOW now`.

    A name that one side lacks is "nothing" there. Numbers are compared as numbers: 8 is
    8.0.
    """
    return [
        f"{name}: {was} there, {found} now"
        for name, was, found in changed(then, now, prefix)
    ]


def changed(then: Any, now: Any, prefix: str = "") -> list[tuple[str, str, str]]:
    """`differences` as (name, THEN, NOW)."""
    return _changed(statement(then), statement(now), prefix)


def _changed(then: Any, now: Any, prefix: str) -> list[tuple[str, str, str]]:
    if isinstance(then, dict) and isinstance(now, dict):
        return [
            line
            for name in dict.fromkeys([*then, *now])
            for line in _changed(
                then.get(name, _ABSENT),
                now.get(name, _ABSENT),
                f"{prefix}.{name}" if prefix else name,
            )
        ]
    if then == now and isinstance(then, bool) == isinstance(now, bool):
        return []
    was, found = _text(then), _text(now)
    pairs = enumerate(zip(was, found, strict=False))
    alike = next((i for i, (a, b) in pairs if a != b), min(len(was), len(found)))
    return [(prefix or "it", _short(was, alike), _short(found, alike))]


def _text(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(text: str, alike: int) -> str:
    """At most `_LIMIT` characters, those around the first that differs among them: the
    first `alike` are those of what it is compared with.
    """
    if len(text) <= _LIMIT:
        return text
    start = 0 if alike < _LIMIT // 2 else alike - _LIMIT // 4
    part = text[start : start + _LIMIT - 2]
    more = "…" if start + len(part) < len(text) else ""
    return f"{'…' if start else ''}{part}{more}"


def sealed(made_from: Any, content: Any) -> dict[str, Any]:
    """A document of `content` that says what it was made from, with a checksum over both."""
    document = {"made_from": statement(made_from), "content": statement(content)}
    return {**document, "checksum": statement_checksum(document)}


def unsealed(document: Any, artefact: str, remedy: str) -> tuple[Any, Any]:
    """(what it was made from, content) of a `sealed` document.

    IdentityError where it says nothing of itself, as those of version 0.1, or was
    changed since it was written.
    """
    if not isinstance(document, Mapping) or not {"made_from", "content"} <= set(
        document
    ):
        problem = "it does not say what it was made from"
    elif document.get("checksum") != statement_checksum(
        {name: document[name] for name in ("made_from", "content")}
    ):
        problem = "it was changed after it was written: its checksum differs"
    else:
        return document["made_from"], document["content"]
    raise IdentityError(artefact, [problem], remedy)


def require_same(then: Any, now: Any, artefact: str, remedy: str) -> None:
    """IdentityError naming what differs, unless the two statements are one."""
    lines = differences(then, now)
    if lines:
        raise IdentityError(f"{artefact} was made from something else", lines, remedy)
