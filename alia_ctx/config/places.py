"""Where a run reads and writes, and which of these places must not meet."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import alia_ctx
from alia_ctx.checkpoint.directory import list_checkpoints
from alia_ctx.checkpoint.manifest import MANIFEST, read_manifest
from alia_ctx.config.draft import Draft
from alia_ctx.config.run import HELD_OUT, RANDOM
from alia_ctx.data.documents import SourceSpec, find_inputs
from alia_ctx.errors import CheckpointError, DataError, Problems

# Settings that are paths; `*` is any name or place in a list.
_PATHS = [
    tuple(key.split("."))
    for key in (
        "root",
        "output",
        "tokenizer",
        "hf_base",
        "data.sources.*.inputs.*",
        "data.sources.*.store",
        "data.sources.*.chat.template",
        "evaluation.held_out.inputs.*",
        "evaluation.held_out.store",
        "evaluation.held_out.chat.template",
        "stages.*.init_from",
    )
]
_VARIABLE = re.compile(r"\$[A-Za-z_{]")
_RUN_SIGNS = ("stages/*/checkpoints", "stages/*/metrics.jsonl", "plans/*/plan.json")
_MODEL_SIGNS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*")


def expand_home(value: Any, place: tuple[str, ...] = ()) -> Any:
    """A configuration with `~` and `~user` of every path written out."""
    if isinstance(value, Mapping):
        return {k: expand_home(v, (*place, str(k))) for k, v in value.items()}
    if isinstance(value, list):
        return [expand_home(entry, (*place, "*")) for entry in value]
    is_path = isinstance(value, str) and _is_path(place)
    return os.path.expanduser(value) if is_path else value


def _is_path(place: tuple[str, ...]) -> bool:
    return any(
        len(place) == len(path)
        and all(b in ("*", a) for a, b in zip(place, path, strict=True))
        for path in _PATHS
    )


def place_problems(draft: Draft) -> Problems:
    """Homes that do not exist, an output in a wrong place, held-out text that is trained on."""
    problems = Problems()
    for key, path in _paths(draft):
        problems.need(
            not path.startswith("~"),
            key,
            path,
            "there is no such home directory",
            f"write the path out, or ./{path} for a file of that name",
        )
        problems.need(
            _VARIABLE.search(path) is None
            or (key != "output" and os.path.lexists(path)),
            key,
            path,
            "holds a variable, which no shell expands here",
            "write ${oc.env:NAME} for a variable of the environment, or the path itself",
        )
    if draft.output is not None and not draft.deferred(draft.output):
        _output(draft, Path(draft.output), problems)
    _held_out_is_apart(draft, problems)
    return problems


def _paths(draft: Draft) -> Iterator[tuple[str, str]]:
    for key in ("root", "output", "tokenizer", "hf_base"):
        if getattr(draft, key) is not None:
            yield key, getattr(draft, key)
    for key, _, source in draft.sources():
        for path in [*source.inputs, *([source.store] if source.store else [])]:
            yield key, path
    for name, stage in draft.asked().items():
        yield f"stages.{name}.init_from", stage.init_from


def _output(draft: Draft, output: Path, problems: Problems) -> None:
    """The output is a directory of this run alone, and nobody reads it as something else."""
    remedy = "give a directory of its own"
    real = output.resolve()
    for what, taken in {
        "the root of the file system": Path("/"),
        "a home directory": Path.home().resolve(),
    }.items():
        if real == taken:
            problems.add("output", str(output), f"is {what}", remedy)
            return
    for folder in (real, *real.parents):
        if folder.exists() and not folder.is_dir():
            problems.add("output", str(output), f"{folder} is a file", remedy)
            return
        artefact = _artefact(folder, is_output=folder == real)
        if artefact:
            where = "is" if folder == real else "is inside"
            problems.add("output", str(output), f"{where} {artefact}: {folder}", remedy)
            return
    package = Path(alia_ctx.__file__).resolve().parent
    if real.is_relative_to(package):
        rule = f"is inside the program: {package}"
        problems.add("output", str(output), rule, remedy)
    for key, _, source in draft.sources():
        for pattern in source.inputs:
            tree = _tree(pattern)
            if tree is not None and real.is_relative_to(tree.resolve()):
                rule = f"is inside {tree}, all of which {key} reads as text"
                problems.add("output", str(output), rule, remedy)
    for what, place in _read_as_a_whole(draft):
        if real.is_relative_to(Path(place).resolve()):
            problems.add("output", str(output), f"is inside {place}, {what}", remedy)
    name = _name_of_run(real)
    if name is not None and draft.name is not None and name != draft.name:
        rule = f"holds the run {name}, and this one is called {draft.name}"
        problems.add("output", str(output), rule, f"{remedy}, or set name={name}")


def _read_as_a_whole(draft: Draft) -> Iterator[tuple[str, str]]:
    """Directories of others, which a run reads, and what each of them is."""
    if draft.tokenizer is not None:
        yield "the directory of the tokenizer", draft.tokenizer
    if draft.hf_base is not None:
        yield "the Hugging Face directory of the base", draft.hf_base
    names = (*(draft.stage_names or ()), RANDOM)
    for name, stage in draft.stages.items():
        if stage.init_from not in names:
            yield f"which stages.{name}.init_from starts from", stage.init_from


def _artefact(folder: Path, *, is_output: bool) -> str | None:
    if (folder / MANIFEST).is_file() and (folder / "state").is_dir():
        return "a checkpoint"
    if (folder / "config.json").is_file() and any(
        next(folder.glob(sign), None) for sign in _MODEL_SIGNS
    ):
        return "a Hugging Face model"
    if not is_output and any(next(folder.glob(sign), None) for sign in _RUN_SIGNS):
        return "the output of another run"
    return None


def _tree(pattern: str) -> Path | None:
    """The directory that an input reads with all that lies below it, if it is one."""
    if Path(pattern).is_dir():
        return Path(pattern)
    if "**" not in pattern:
        return None
    parts = Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:fixed])


def _name_of_run(output: Path) -> str | None:
    """The name in the checkpoints below an output, if there are any that say it."""
    for stage in sorted(output.glob("stages/*/checkpoints")):
        try:
            names = [
                read_manifest(p).config.get("name")
                for p in list_checkpoints(stage)[-1:]
            ]
        except (CheckpointError, OSError):
            continue  # a damaged checkpoint is no matter of the output's place
        for name in names:
            if isinstance(name, str):
                return name
    return None


def _held_out_is_apart(draft: Draft, problems: Problems) -> None:
    """No file or store is trained on and held out, under whatever names."""
    spec = draft.evaluation.held_out
    if spec is None or draft.data is None:
        return
    held_out = _files(draft, HELD_OUT, spec)
    for name, source in draft.data.sources.items():
        trained = _files(draft, name, source)
        shared = [held_out[identity] for identity in held_out if identity in trained]
        shared += [
            path
            for path in _unread(draft, spec)
            if any(_nested(path, other) for other in _unread(draft, source))
        ]
        files = list(dict.fromkeys(shared))
        if files:
            problems.add(
                "evaluation.held_out",
                files[0]
                if len(files) == 1
                else f"{files[0]} and {len(files) - 1} more",
                f"is text of data.sources.{name} too, which is trained on",
                "hold out other documents; on its own text a model is always right",
            )


def _files(draft: Draft, name: str, source: SourceSpec) -> dict[object, str]:
    """Files of a source and of its store, by what they are: real path and inode.

    The store is where `tokenize` puts it, there or not: a source may be read under its
    own name and, as a store, under another.
    """
    if source.store:
        paths = [source.store + suffix for suffix in (".bin", ".idx")]
    else:
        paths = [p for p in source.inputs if not draft.deferred(p)]
        try:
            paths = list(find_inputs(paths).files)
        except DataError:
            paths = []  # said elsewhere
        if draft.output is not None:
            prefix = str(draft.store(name))
            paths += [prefix + suffix for suffix in (".bin", ".idx")]
    files: dict[object, str] = {}
    for path in paths:
        files[os.path.realpath(path)] = path
        try:
            status = os.stat(path)
            files[status.st_dev, status.st_ino] = path
        except OSError:
            continue
    return files


def _unread(draft: Draft, source: SourceSpec) -> list[str]:
    """Inputs below a root that is not mounted, whose files are not known."""
    return [path for path in source.inputs if draft.deferred(path)]


def _nested(one: str, other: str) -> bool:
    a, b = Path(one).absolute(), Path(other).absolute()
    return a.is_relative_to(b) or b.is_relative_to(a)
