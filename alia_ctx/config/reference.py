"""The tables of settings in docs/configuration.md, made of the dataclasses:

    python -m alia_ctx.config.reference docs/configuration.md

writes each anew between `<!-- settings: KEY -->` and `<!-- end of settings -->`.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from alia_ctx.config.descriptions import (
    Setting,
    as_yaml,
    fields_of,
    parts,
    type_words,
)
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import ConfigError

HEAD = (
    "| key | type | default | unit | meaning | example |\n| --- " + "| --- " * 5 + "|"
)
_MARKED = re.compile(
    r"(<!-- settings: (\S*) -->\n).*?(<!-- end of settings -->)", re.DOTALL
)


def with_tables(page: str) -> str:
    """`page` with each marked table made anew; ConfigError for a key that is no mapping."""
    return _MARKED.sub(lambda m: f"{m[1]}{table(m[2].strip('.'))}\n{m[3]}", page)


def table(key: str) -> str:
    """The settings right below `key` (nothing: those of the run), a row each."""
    owner: Any = RunConfig
    place = ""
    for name in filter(None, re.split(r"\.", key.replace("[]", ".[]"))):
        if name in ("NAME", "[]"):
            place += "[]" if name == "[]" else ".NAME"
            continue
        setting = {s.name: s for s in fields_of(owner)}.get(name)
        inside = None if setting is None else next(parts(setting.hint), None)
        if inside is None:
            raise ConfigError(
                f"{key}: there are no settings below it; correct the page"
            )
        owner, place = inside[0], f"{place}.{name}" if place else name
    return "\n".join([HEAD, *map(_row, fields_of(owner, place))])


def _row(setting: Setting) -> str:
    cells = [
        f"`{setting.key}`",
        type_words(setting.hint),
        "required" if setting.required else default_words(setting.default),
        setting.unit,
        setting.text,
        f"`{as_yaml(setting.example)}`",
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def default_words(value: Any) -> str:
    """A default as a table has it."""
    if value is None:
        return "none"
    if dataclasses.is_dataclass(value):
        return "those below"
    return f"`{as_yaml(value)}`"


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(with_tables(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
