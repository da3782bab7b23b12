"""A machine that is called by name, in the place of a configuration's own cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from alia_ctx.config.placeholders import PLACEHOLDER
from alia_ctx.config.schema import build
from alia_ctx.errors import ConfigError, Problem, Problems
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.machines import MACHINES

_KEPT = "nodes"  # how many there are is a matter of the run, not of the machine


def require_known(name: str, *otherwise: str) -> None:
    """ConfigError where no machine is called so; `otherwise`, what else may be done."""
    if name not in MACHINES:
        rule = "there is no such machine"
        remedy = ", ".join([f"use one of {', '.join(MACHINES)}", *otherwise])
        raise ConfigError("", [Problem("--on", name, rule, remedy)])


def _require_sound(document: Mapping[str, Any]) -> None:
    """ConfigError where the cluster of a file is none, though another takes its place: it
    would be refused without that. What is left open, or refers to other values, is not read.
    """
    problems, own = Problems(), document.get("cluster", {})
    known: Any = own
    if isinstance(own, Mapping):
        known = {k: v for k, v in own.items() if not _is_open(v)}
    cluster = build(ClusterSpec, known, "cluster", problems)
    problems += [] if cluster is None else cluster.problems()
    if problems:
        raise ConfigError(f"the file's cluster has {problems.counted()}", problems)


def _is_open(value: Any) -> bool:
    return isinstance(value, str) and (value == PLACEHOLDER or "${" in value)


def on_machine(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`document`, a whole configuration before its overrides, with the cluster of a named
    machine in place of its own, but for the number of nodes. ConfigError for an unknown
    name, and for a cluster of the file that is none.
    """
    require_known(name, "or include a file of your own")
    _require_sound(document)
    own = _cluster(document)
    cluster = {k: v for k, v in asdict(MACHINES[name]).items() if k != _KEPT}
    return {**document, "cluster": cluster | {k: own[k] for k in (_KEPT,) if k in own}}


def replaced_by(
    document: Mapping[str, Any], name: str, overrides: Mapping[str, Any]
) -> str:
    """A line that says what `document` has of its cluster and the named machine has otherwise,
    and which overrides hold all the same; nothing where both say the same.
    """
    known, own, over = asdict(MACHINES[name]), _cluster(document), _cluster(overrides)
    replaced = {k: v for k, v in own.items() if k != _KEPT and v != known.get(k)}
    if not replaced:
        return ""
    there = ", ".join(f"{key}={value}" for key, value in replaced.items())
    line = f"--on {name} is taken in place of the file's cluster, which has {there}"
    if over:
        given = ", ".join(f"{key}={value}" for key, value in over.items())
        line += f"; of the command line {given} holds"
    return line


def _cluster(document: Mapping[str, Any]) -> Mapping[str, Any]:
    cluster = document.get("cluster")
    return cluster if isinstance(cluster, Mapping) else {}
