"""A configuration written for a Hugging Face model that a person has: the first step."""

from __future__ import annotations

import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alia_ctx.checkpoint.manifest import MANIFEST
from alia_ctx.config.json_schema import SCHEMA_FILE, is_ours, run_schema
from alia_ctx.config.load import load_run
from alia_ctx.config.placeholders import PLACEHOLDER
from alia_ctx.data.tokens import has_vocabulary
from alia_ctx.data.tokens.tokenizer import HubTokenizer, puts_around
from alia_ctx.errors import CheckpointError, ConfigError, Problem
from alia_ctx.files import (
    atomic_file,
    read_object,
    require_replaceable,
    write_json,
)
from alia_ctx.hf.assets import model_name
from alia_ctx.hf.hub import model_directory
from alia_ctx.progress import say
from alia_ctx.workflow.configuration_text import Delimiters, configuration_text
from alia_ctx.workflow.epochs import REPEATS, estimated_tokens
from alia_ctx.workflow.proposing import Proposal, propose

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}
# Control characters, ends of lines, and halves of what is no character (a name that is no
# UTF-8 has such).
_UNWRITTEN = ("Cc", "Cs", "Zl", "Zp")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Begun:
    """What was written: the configuration, what it proposes, what is left open in it; how
    often the stages read the text, in words, where that could be estimated; and what the
    model's directory lacks that an import wants.
    """

    config: Path
    proposal: Proposal
    open_keys: list[str]
    epochs: str | None = None
    lacks: str | None = None


def begin(
    model: Path,
    *,
    context: str | None = None,
    gpus: int | None = None,
    machine: str | None = None,
    text: Sequence[str] = (),
    held_out: Sequence[str] = (),
    output: Path | None = None,
    overwrite: bool = False,
) -> Begun:
    """Write a configuration that extends `model`, a Hugging Face directory or the name of
    one on the hub, and the JSON schema beside it.

    context: as in 163840, 160k or 128K. text, held_out: inputs of the training and the
    held-out text; without any a placeholder stands there. The rest is as in `propose`.
    Nothing is written where anything is wrong: CheckpointError or DataError of the model,
    ConfigError of the rest, and where `output` is there and `overwrite` is not given.
    """
    target = None if context is None else parse_context(context)
    _require_writable(str(model), "the model")
    for option, values in (
        ("--text", text),
        ("--held-out", held_out),
        ("--output", () if output is None else (str(output),)),
    ):
        for value in values:
            _require_writable(value, option)
    directory = model_directory(model, weights=False)
    hub = None if directory == model else str(model)
    directory = Path(os.path.abspath(directory))  # and no `..` in it
    _require_writable(str(directory), "the model")
    _require_model(directory)
    name = re.sub(r"[^a-z0-9._-]+", "-", model_name(directory).split("/")[-1].lower())
    name = name.strip("-._") or "model"
    file = output or Path(f"{name}.yaml")
    require_replaceable(file, "--output", "a configuration", (".yaml", ".yml"), None)
    if file.exists() and not overwrite:
        rule, remedy = "is there already", "choose another --output, or --overwrite"
        raise ConfigError("", [Problem("--output", file, rule, remedy)])
    proposal = propose(directory, name, target, gpus, machine)
    schema = file.with_name(SCHEMA_FILE)
    tokenizer = None
    if has_vocabulary(directory):
        tokenizer = HubTokenizer(directory, proposal.base.model.architecture)
    epochs = _epochs(proposal, text, tokenizer)
    written = configuration_text(
        proposal,
        None if tokenizer is None else _delimiters(directory, tokenizer.auto),
        file=str(file),
        schema=f"./{SCHEMA_FILE}",
        hub=hub,
        text=[_as_file(path) for path in text],
        held_out=[_as_file(path) for path in held_out],
        epochs=epochs,
    )
    open_keys = _open_keys(written, file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as stream:
            stream.write(written.encode())
        if not schema.exists() or is_ours(schema):
            write_json(schema, run_schema())
    except OSError as error:
        rule = f"cannot be written ({error.strerror or error})"
        problem = Problem("--output", file, rule, "choose another place")
        raise ConfigError("", [problem]) from error
    return Begun(file, proposal, open_keys, epochs, _lacking(directory, hub))


def parse_context(text: str) -> int:
    """Tokens in `163840`, `163_840`, `160k`, `128K`, `1M` (1k is 1,024); ConfigError where
    it is none of these.
    """
    match = re.fullmatch(r"(\d[\d_]*)([km]?)", text.strip().lower())
    tokens = int(match[1].replace("_", "")) * _UNITS[match[2]] if match else 0
    if not 2 <= tokens < 1 << 48 or tokens % 2:
        rule = "is no even number of tokens"
        problem = Problem("--context", text, rule, "as in 163840, 160k or 128K")
        raise ConfigError("", [problem])
    return tokens


def _require_model(directory: Path) -> None:
    """CheckpointError where there is no Hugging Face model, before its files are read."""
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory}: there is no such directory; give a Hugging Face directory, or "
            "a name of the hub, ORGANISATION/MODEL"
        )
    if (directory / MANIFEST).is_file():
        raise CheckpointError(
            f"{directory}: is a checkpoint; give the Hugging Face directory of the model, "
            "or export it with `alia-ctx export-hf`"
        )


def _lacking(directory: Path, hub: str | None) -> str | None:
    """A sentence on a model without weights: sizes and text are enough to plan with, as on a
    laptop; None where they are there.
    """
    if hub is not None or any(any(directory.glob(sign)) for sign in _WEIGHTS):
        return None
    return (
        f"{directory} holds no weights ({' or '.join(_WEIGHTS)}), which `alia-ctx import-hf` "
        "needs; copy the model whole to where it is trained"
    )


def _require_writable(path: str, what: str) -> None:
    """ConfigError, in one line, for a path that no line of a file can hold."""
    for character in path:
        if unicodedata.category(character) in _UNWRITTEN:
            rule = f"holds {character!r}, which no line of a configuration can hold"
            remedy = "rename it, or give a link to it without"
            raise ConfigError("", [Problem(what, repr(path), rule, remedy)])


def _epochs(
    proposal: Proposal, text: Sequence[str], tokenizer: HubTokenizer | None
) -> str | None:
    """How often the proposed stages read the text that is named; None where that cannot be
    said.
    """
    if not text or tokenizer is None:
        return None
    say("estimating the tokens of the text")
    there = estimated_tokens(text, tokenizer)
    if there is None:
        return None
    wanted = sum(stage.stage.tokens or 0 for stage in proposal.stages)
    times = wanted / there
    words = (
        f"the text has about {there:,} tokens, which the {wanted:,} tokens of "
        f"{'all stages' if len(proposal.stages) > 1 else 'the stage'} read about "
        f"{times:.2g} times"
    )
    if times <= REPEATS:
        return f"{words}."
    return (
        f"{words}: beyond {REPEATS} times text brings less and less (arXiv 2305.16264); "
        "lower `tokens`, or name more text."
    )


def _delimiters(directory: Path, tokenizer: Any) -> Delimiters:
    """What the tokenizer in the directory puts around a text, as transformers says it."""
    return Delimiters(
        bos=puts_around(tokenizer)[0],
        eos=tokenizer.eos_token_id is not None,
        stated=_stated_ends(directory, tokenizer),
    )


def _stated_ends(directory: Path, tokenizer: Any) -> str | None:
    """The tokens by which the model's config and generation config end a text; None
    where the tokenizer's is one of them, or has none of them.
    """
    ends: list[int] = []
    for name in ("config.json", "generation_config.json"):
        value = None
        with suppress(OSError, ValueError):  # the second need not be there
            value = read_object(directory / name).get("eos_token_id")
        several = value if isinstance(value, list) else [value]
        ends += [end for end in several if type(end) is int and end >= 0]
    if tokenizer.eos_token_id in ends:
        return None
    words = {number: word for word, number in tokenizer.get_vocab().items()}
    known = [end for end in dict.fromkeys(ends) if end in words]
    named = [f"{json.dumps(words[end], ensure_ascii=False)} ({end})" for end in known]
    return " or ".join(named) or None


def _as_file(path: str) -> str:
    """An input that is spelled like a placeholder and is none."""
    return f"./{path}" if path == PLACEHOLDER else path


def _open_keys(text: str, file: Path) -> list[str]:
    """The keys of the placeholders, which are all that `check` shall find; ConfigError
    with whatever else it would, as where the place of the output is taken.
    """
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, "draft.yaml")
        draft.write_text(text, encoding="utf-8")
        try:
            load_run(draft)
        except ConfigError as error:
            others = [p for p in error.problems if p.value != PLACEHOLDER]
            if others:
                raise ConfigError(f"{file} would have", others) from error
            if not error.problems:
                raise ConfigError(f"{file} could not be read: {error}") from error
            return [problem.key for problem in error.problems]
    return []
