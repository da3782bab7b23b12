"""What a command line gives of a configuration, which its options may not drop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alia_ctx.errors import ConfigError, Problems

# Name -> (option of `evaluate`, the setting that it stands for).
EVALUATION = {
    "documents": ("--documents", "evaluation.documents"),
    "precision": ("--precision", "engine.precision"),
    "tasks": ("--task", "evaluation.retrieval.tasks"),
    "languages": ("--language", "evaluation.retrieval.languages"),
    "samples": ("--samples", "evaluation.retrieval.samples"),
    "haystack": ("--haystack", "evaluation.retrieval.haystack"),
}


@dataclass(frozen=True)
class Given:
    """What the command line gives beside the file.

    Args:
        overrides: its overrides, as a configuration.
        recomputing: stages that say how they recompute, in the file or by an override.
        replaced: what a machine that is called by name replaces, as a line; or nothing.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    recomputing: frozenset[str] = frozenset()
    replaced: str = ""

    def value(self, *place: str) -> Any:
        """What the overrides give at a place; None where they do not."""
        found: Any = self.overrides
        for name in place:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    def of_stage(self, name: str, key: str) -> Any:
        """What they give of a stage, by its name or for all."""
        own = self.value("stages", name, key)
        return self.value("stage_defaults", key) if own is None else own

    def with_options(self, values: Mapping[str, Any]) -> list[str]:
        """What options of `evaluate` say, by the names in `EVALUATION`, as overrides; None is
        an option that is not there. ConfigError where an override says otherwise.
        """
        problems, overrides = Problems(), []
        for name, value in values.items():
            option, key = EVALUATION[name]
            if value is None:
                continue
            over = self.value(*key.split("."))
            rule = f"and {key}={over} stand on one command line"
            same = over is None or over == value
            problems.need(same, option, value, rule, "give one of them")
            overrides.append(f"{key}={json.dumps(value)}")
        if problems:
            raise ConfigError("", problems)
        return overrides
