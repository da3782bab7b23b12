"""One part of a configuration laid over another.

Mappings are joined key by key, everything else is replaced; null takes a stage, a source
or its weight out again, or all weights. Where a setting says which of several kinds a
mapping is of (the type of a RoPE or a schedule, a source of files or a store, updates of
tokens or of conversations), what the kind below had of its own goes with it: nobody has
to know it to replace it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alia_ctx.errors import ConfigError
from alia_ctx.spec.rope import RopeSpec

# Mappings whose keys are names that a user gives: null takes a name out of them again.
_BY_NAME = ("stages", "sources", "weights")
# A key that says what a mapping is of -> those of the other kind, which it replaces.
_REPLACES = {
    "update_instances": ("update_tokens", "tokens"),
    "update_tokens": ("update_instances", "epochs"),
    "store": ("inputs", "chat"),
    "inputs": ("store",),
}
_TAGGED = ("rope", "schedule")


def lay_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, both whole files (or overrides)."""
    merged = merge(below, above)
    stages = below.get("stages")
    for name, stage in stages.items() if isinstance(stages, Mapping) else ():
        for kind in _TAGGED:
            # A stage that leaves the type to stage_defaults is of that one.
            own = _mapping(stage, kind)
            given = _mapping(_mapping(above.get("stages"), name), kind)
            before = _mapping(below.get("stage_defaults"), kind).get("type")
            later = _mapping(above.get("stage_defaults"), kind).get("type", before)
            if not own or "type" in own:
                continue
            surplus = _surplus(kind, before, given.get("type", later)) - given.keys()
            for key in surplus & own.keys():
                _mapping(_mapping(merged["stages"], name), kind).pop(key, None)
    return merged


def merge(
    below: Mapping[str, Any], above: Mapping[str, Any], key: str = ""
) -> dict[str, Any]:
    """`above` laid over `below`, the mapping that stands under `key`."""
    merged = dict(below)
    if key in _TAGGED:
        surplus = _surplus(
            key, merged.get("type"), above.get("type", merged.get("type"))
        )
        merged = {name: v for name, v in merged.items() if name not in surplus}
    if key == "best" and above.get("metric", merged.get("metric")) != merged.get(
        "metric"
    ):
        merged.pop("mode", None)  # of losses the least is best, of scores the most
    for name, others in _REPLACES.items():
        if above.get(name) is not None:
            for other in others:
                merged.pop(other, None)
    for name, value in above.items():
        old = merged.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[name] = merge(old, value, name)
        elif (
            value is None and old is not None and (key in _BY_NAME or name == "weights")
        ):
            del merged[name]
        else:
            merged[name] = value
    return merged


def under_every_stage(defaults: Any, merged: dict[str, Any]) -> dict[str, Any]:
    """`merged` with `stage_defaults` under each of its stages; ConfigError where those are
    no mapping.
    """
    stages = merged.get("stages")
    if not isinstance(defaults, Mapping):
        raise ConfigError(
            f"stage_defaults={defaults}: must be a mapping of what stages share; "
            "give keys of a stage"
        )
    if not defaults or not isinstance(stages, Mapping):
        return merged
    joined = {
        name: merge(defaults, stage) if isinstance(stage, Mapping) else stage
        for name, stage in stages.items()
    }
    return {**merged, "stages": joined}


def _mapping(value: Any, name: str) -> Any:
    """The mapping under a name; an empty one where there is none."""
    inside = value.get(name) if isinstance(value, Mapping) else None
    return inside if isinstance(inside, Mapping) else {}


def _surplus(kind: str, old: object, new: object) -> set[str]:
    """Keys that the type `old` reads and `new` does not; none where `new` is no type."""
    known = _keys(kind, new)
    return _keys(kind, old) - known if known else set()


def _keys(kind: str, name: object) -> set[str]:
    """Keys that a type reads; none for a type that does not exist."""
    if kind == "schedule":
        decays = {"min_learning_rate"} if name in ("cosine", "linear") else set()
        shared = {"type", "warmup"}
        return shared | decays if name in ("constant", "cosine", "linear") else set()
    try:
        return {"type", "theta", *RopeSpec(name, 1.0).used_fields()}  # type: ignore[arg-type]
    except (KeyError, TypeError):
        return set()
