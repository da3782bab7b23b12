"""YAML files that include each other, and `key=value` overrides -> a checked `RunConfig`.

A configuration is put together in this order, later over earlier:

1. the files under `include:`, one after another, each with what it includes itself;
2. the file;
3. the overrides.

Then `stage_defaults:` is put under every stage, and `${...}` is resolved. Mappings are
joined key by key, everything else is replaced. The only module that imports omegaconf.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alia_ctx.config.as_written import as_written
from alia_ctx.config.base import (
    FROM_CHECKPOINT,
    missing_base,
    with_facts_of_checkpoint,
)
from alia_ctx.config.draft import Draft
from alia_ctx.config.given import Given
from alia_ctx.config.held_out import held_out_problems
from alia_ctx.config.layouts import unstated, with_layouts, without_auto
from alia_ctx.config.merging import lay_over, under_every_stage
from alia_ctx.config.named_machine import on_machine, replaced_by
from alia_ctx.config.placeholders import (
    with_placeholders,
    without_open,
    without_placeholders,
)
from alia_ctx.config.places import expand_home
from alia_ctx.config.rules import run_problems
from alia_ctx.config.run import RunConfig, unknown_stage
from alia_ctx.config.schema import build_parts
from alia_ctx.errors import ConfigError, Problems

_UNREADABLE = (OmegaConfBaseException, yaml.YAMLError, ValueError)
_BEGIN = "`alia-ctx init HF_DIR` writes one"


def load_run(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    stages: Collection[str] = (),
    read_text: bool = False,
    over: Sequence[Path] = (),
) -> RunConfig:
    """Read `path`, apply dotted `key=value` overrides, and check everything.

    Args:
        stages: Check what these stages need (default: all of the run). Another stage's
            layout or base is then no obstacle, nor is text that is tokenised already.
        read_text: Look into the held-out text whether it is long enough, which may
            take a while; `check` and `run` do.
        over: Files that are put over `path`, before the overrides.

    Raises ConfigError listing *all* violations: unknown keys, wrong types, and what the
    values break, as far as they could be typed.
    """
    run, _ = _load(path, overrides, stages, read_text=read_text, over=over)
    return run


def require_stages(
    path: str | Path, overrides: Sequence[str], stages: Collection[str]
) -> None:
    """ConfigError where `path` has no stages of these names, before anything else is read
    or imported. What cannot be told yet (a file that cannot be read, or has no stages) is
    told by `load_run`.
    """
    known = None
    with suppress(ConfigError):
        known = _keys(read_config(path, overrides), "stages")
    if known is None:
        return
    unknown = [name for name in stages if name not in known]
    if unknown:
        problems = [unknown_stage("--stage", name, known) for name in unknown]
        error = ConfigError("", problems)
        error.on_all_ranks = True  # each of them has the same words
        raise error


def load_plan(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    stages: Collection[str] = (),
    over: Sequence[Path] = (),
    machine: str | None = None,
) -> tuple[RunConfig, set[str]]:
    """A run as far as a plan of `stages` (default: all) needs it, and the stages that
    leave their layout open.

    No text, tokenizer, origin or place is looked for, and no layout is refused: the
    plan says what is wrong with it. The cluster of `machine`, a name, is taken in place
    of the file's, below the overrides. Otherwise as `load_run`.
    """
    return _load(path, overrides, stages, planning=True, over=over, machine=machine)


def given_of(
    path: str | Path, overrides: Sequence[str], *, machine: str | None = None
) -> Given:
    """What the command line gives beside the file; as for `load_plan`, which has accepted it."""
    document = _read_file(Path(path), ())
    given = _read_overrides(overrides, document)
    replaced = "" if machine is None else replaced_by(document, machine, given)
    stages = _merged(path, document, given, machine).get("stages")
    items = stages.items() if isinstance(stages, Mapping) else ()
    recomputing = (
        name
        for name, stage in items
        if isinstance(stage, Mapping) and stage.get("recompute") is not None
    )
    return Given(given, frozenset(recomputing), replaced)


def _load(
    path: str | Path,
    overrides: Sequence[str],
    stages: Collection[str],
    *,
    read_text: bool = False,
    planning: bool = False,
    over: Sequence[Path] = (),
    machine: str | None = None,
) -> tuple[RunConfig, set[str]]:
    read = read_config(path, overrides, over=over, machine=machine)
    raw, open_keys = without_placeholders(read)
    if planning:
        raw = without_open(raw)
    problems = Problems()
    open_layouts = unstated(raw)
    raw, automatic = without_auto(raw, problems)
    draft = _draft(raw, build_parts(RunConfig, raw, Problems()))
    model = with_facts_of_checkpoint(raw.get("model"), draft)
    if missing := missing_base(model, draft):
        remedy = "give the model's sizes, or check where the checkpoint is"
        problems.add("model", FROM_CHECKPOINT, missing, remedy)
        model = None
    found = Problems()
    parts = build_parts(RunConfig, {**raw, **_given(model=model)}, found)
    # What is missing is said above, and would be said again as a wrong type.
    problems += [p for p in found if not (missing and p.key == "model")]
    draft = replace(_draft(raw, parts), only=tuple(stages), planning=planning)
    problems += run_problems(draft)
    if planning:  # of what is left open, that without which there is no plan
        missing_keys = {problem.key for problem in problems} | {"hf_base"}
        open_keys = [k for k in open_keys if problems and k in missing_keys]
    if open_keys:
        problems = with_placeholders(open_keys, problems)
    if read_text and not problems:
        problems += held_out_problems(draft)
    if problems:
        raise ConfigError(f"{path} has {problems.counted()}", problems)
    run = RunConfig(**parts)
    if automatic and not planning:
        run = with_layouts(run, automatic, draft)
    return run, open_layouts


def _given(**parts: Any) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if part is not None}


def _draft(raw: Mapping[str, Any], parts: Mapping[str, Any]) -> Draft:
    known = {name: part for name, part in parts.items() if part is not None}
    return Draft(_keys(raw, "stages"), _keys(raw, "data", "sources") or (), **known)


def _keys(raw: object, *place: str) -> tuple[str, ...] | None:
    """The keys of the mapping at a place; None where there is no mapping."""
    for name in place:
        raw = raw.get(name) if isinstance(raw, Mapping) else None
    return tuple(map(str, raw)) if isinstance(raw, Mapping) else None


def read_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    over: Sequence[Path] = (),
    machine: str | None = None,
) -> dict[str, Any]:
    """What `path` says with its includes, the files `over` it, a named machine in place of
    its cluster, overrides and stage defaults, as plain containers; nothing is checked but
    that it can be read.

    ConfigError names the file that cannot be.
    """
    document = _read_file(Path(path), ())
    for file in over:
        document = lay_over(document, _read_file(Path(file), ()))
    given = _read_overrides(overrides, document)
    return _merged(path, document, given, machine)


def _merged(
    path: str | Path,
    document: Mapping[str, Any],
    given: Mapping[str, Any],
    machine: str | None,
) -> dict[str, Any]:
    """`document`, what `path` says, as `read_config` has it with the overrides `given`."""
    if machine is not None:
        document = on_machine(document, machine)
    merged = lay_over(document, given)
    merged = under_every_stage(merged.pop("stage_defaults", {}), merged)
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(merged), resolve=True)
    except _UNREADABLE as error:
        raise ConfigError(
            f"{path}: cannot be read as configuration: {error}"
        ) from error
    return expand_home(resolved)  # type: ignore[no-any-return]


def _read_file(path: Path, including: tuple[Path, ...]) -> dict[str, Any]:
    """A file with everything that it includes; `including` are the files on the way to it."""
    path = _find(path, including)
    if path.resolve() in [before.resolve() for before in including]:
        way = " -> ".join(map(str, [*including, path]))
        raise ConfigError(
            f"{path} includes itself: {way}; take one of these `include:` out"
        )
    document = _parse(path)
    includes = document.pop("include", [])
    includes = [includes] if isinstance(includes, str) else includes
    if not isinstance(includes, list) or not all(isinstance(i, str) for i in includes):
        raise ConfigError(
            f"{path}: include={includes}: must be a file name or a list of them; "
            "write `include: [models/tiny, clusters/laptop]`"
        )
    merged: dict[str, Any] = {}
    for name in includes:
        part = _read_file(path.parent / os.path.expanduser(name), (*including, path))
        merged = lay_over(merged, part)
    return lay_over(merged, document)


def _find(path: Path, including: tuple[Path, ...]) -> Path:
    """The file called `path`, with or without `.yaml`."""
    named = path.with_name(f"{path.name}.yaml")
    for candidate in (path, named):
        if candidate.is_file():
            return candidate
    if not including:
        raise ConfigError(f"{path}: no such file; {_BEGIN}")
    raise ConfigError(
        f"{including[-1]}: include: there is neither {path} nor {named.name}; "
        "paths are relative to the file that includes"
    )


def _parse(path: Path) -> dict[str, Any]:
    try:
        document = copy.deepcopy(_containers(path.read_text(encoding="utf-8")))
    except _UNREADABLE as error:
        raise ConfigError(
            f"{path}: cannot be read as configuration: {error}"
        ) from error
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path}: holds a list, and a configuration is keys with values; {_BEGIN}"
        )
    return document  # type: ignore[return-value]


@functools.lru_cache(maxsize=64)  # a file is included by many, and read by many steps
def _containers(text: str) -> Any:
    """The YAML in `text` as plain containers, which are not the caller's to change."""
    return OmegaConf.to_container(OmegaConf.create(as_written(text) or "{}"))


def _read_overrides(
    items: Sequence[str], document: Mapping[str, Any]
) -> dict[str, Any]:
    """The overrides as a configuration; names of `document` may have dots in them."""
    problems = Problems()
    for item in items:
        problems.need(
            "=" in item and not item.startswith("="),
            item,
            None,
            "is not of the form key=value",
            "write for example stages.32k.layout.cp=8",
        )
    if problems:
        raise ConfigError(f"{problems.counted()} in the overrides", problems)
    try:
        overrides: Any = OmegaConf.create({})
        for item in items:
            key, _, value = item.partition("=")
            names = _names_with_dots(key, document)
            # Under names of its own, as OmegaConf cuts keys at every dot.
            places = [f"name{number}" for number in range(len(names))]
            plain = ".".join(
                place if "." in name else name
                for place, name in zip(places, names, strict=True)
            )
            written = OmegaConf.from_dotlist([f"{plain}={as_written(value, names)}"])
            given = OmegaConf.to_container(written)
            dotted = {p: n for p, n in zip(places, names, strict=True) if "." in n}
            overrides = OmegaConf.merge(overrides, _renamed(given, dotted))
        return OmegaConf.to_container(overrides)  # type: ignore[return-value]
    except _UNREADABLE as error:
        raise ConfigError(f"the overrides cannot be read: {error}") from error


def _names_with_dots(key: str, document: Any) -> list[str]:
    """`stages.v1.5.tokens` -> stages, v1.5, tokens, where `document` has a stage `v1.5`:
    of several names that fit, the longest.
    """
    sources = document.get("data")
    sources = sources.get("sources") if isinstance(sources, Mapping) else None
    parts, names = key.split("."), [""]
    while parts:
        if names[-1] == "weights":
            document = sources
        known = document if isinstance(document, Mapping) else {}
        take = next(
            (n for n in range(len(parts), 1, -1) if ".".join(parts[:n]) in known), 1
        )
        name, parts = ".".join(parts[:take]), parts[take:]
        names.append(name)
        document = known.get(name)
    return names[1:]


def _renamed(given: Any, names: Mapping[str, str]) -> Any:
    """`given` with the keys on the way to the value called as `names` says."""
    if not names or not isinstance(given, Mapping):
        return given
    return {
        names.get(key, key): _renamed(
            value, {k: v for k, v in names.items() if k != key}
        )
        for key, value in given.items()
    }
