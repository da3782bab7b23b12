"""YAML, and `key=value` overrides -> a checked `RunConfig`.

The only module that imports omegaconf.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from alia_ctx.config.rules import _layout_problems, _stage_value_problems, run_problems
from alia_ctx.config.run import ClusterConfig, RunConfig, StageConfig
from alia_ctx.config.schema import build
from alia_ctx.errors import ConfigError, Problem
from alia_ctx.spec.model import ModelSpec


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `path`, apply dotted `key=value` overrides, and check everything.

    Raises ConfigError listing *all* violations: unknown keys and wrong types first, and
    once these are none, everything that the values break.
    """
    raw = _read(Path(path), overrides)
    problems: list[Problem] = []
    run = build(RunConfig, raw, "", problems)
    if problems or run is None:
        problems += _partial_problems(raw, problems)
        raise ConfigError(f"{path} has {_count(problems)}", problems)
    problems = list(run_problems(run))
    if problems:
        raise ConfigError(f"{path} has {_count(problems)}", problems)
    return run


def _read(path: Path, overrides: Sequence[str]) -> Any:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; configs/ holds examples")
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), _overrides(overrides))
        return OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read as configuration: {error}"
        ) from error


def _overrides(items: Sequence[str]) -> Any:
    problems = [
        Problem(
            item,
            None,
            "is not of the form key=value",
            "write for example stages.32k.layout.cp=8",
        )
        for item in items
        if "=" not in item or item.startswith("=")
    ]
    if problems:
        raise ConfigError(f"{_count(problems)} in the overrides", problems)
    return OmegaConf.from_dotlist(list(items))


def _partial_problems(raw: Any, known: list[Problem]) -> list[Problem]:
    """Rules broken by those stages and parts that could be typed, so that one run of
    `check` shows everything.
    """
    if not isinstance(raw, Mapping):
        return []
    found: list[Problem] = []
    model = build(ModelSpec, raw.get("model"), "model", [])
    if model is not None:
        found += model.problems("model")
    cluster = (
        build(ClusterConfig, raw.get("cluster", {}), "cluster", []) or ClusterConfig()
    )
    stages = raw.get("stages")
    for name, entry in stages.items() if isinstance(stages, Mapping) else ():
        stage = build(StageConfig, entry, f"stages.{name}", [])
        if stage is not None:
            found += _stage_value_problems(f"stages.{name}", stage)
            if model is not None and not model.problems("model"):
                world = (stage.nodes or cluster.nodes) * cluster.ranks_per_node
                found += _layout_problems(f"stages.{name}", stage, model, world)
    return [problem for problem in found if problem not in known]


def _count(problems: Sequence[Problem]) -> str:
    return f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
