"""Parameters of invented functions: what each means, and its schema without descriptions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from alia_ctx.data.chat.making.catalogue import Noun, Verb


@dataclass(frozen=True)
class Part:
    """A parameter, a property of one, or the items of one. `concept` is None where its
    name is no word; `schema` has neither descriptions nor `children`.
    """

    name: str
    concept: str | None
    schema: dict[str, Any]
    required: bool = True
    children: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Talk:
    """How a function can be spoken of: what it does with what (None of functions that are
    no words), and its parameters by name.
    """

    verb: Verb | None
    noun: Noun | None
    parts: dict[str, Part] = field(default_factory=dict)
