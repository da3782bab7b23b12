"""The commands about conversations: convert-chat, make-tool-data. Wiring only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from alia_ctx.cli.arguments import path
from alia_ctx.data.documents.chat_spec import ChatForm, ChatSpec, MaxLength, TrainOn
from alia_ctx.data.tokens.special_tokens import SpecialTokens
from alia_ctx.errors import ConfigError, Problem
from alia_ctx.files import require_replaceable

Output = Annotated[
    Path | None,
    typer.Option(help="Write JSON lines of OpenAI messages here.", parser=path),
]
# As those that read it again know such a file.
_LINES = (".jsonl", ".ndjson", ".json")
_MODEL_NAME = "default"
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("convert-chat")(convert_chat)
    app.command("make-tool-data")(make_tool_data)


def convert_chat(
    inputs: Annotated[
        list[str],
        typer.Argument(help="Files, directories, globs.", show_default=False),
    ],
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Render and tokenise with this directory's.", parser=path),
    ] = None,
    template: Annotated[
        str, typer.Option(help="chatml-tools, tokenizer, or a Jinja file.")
    ] = "chatml-tools",
    form: Annotated[
        ChatForm, typer.Option("--format", help="Form of the records.")
    ] = "auto",
    train_on: Annotated[TrainOn, typer.Option(help="What is trained.")] = "assistant",
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of a conversation.", min=1)
    ] = None,
    max_length: Annotated[
        MaxLength, typer.Option(help="What becomes of longer ones.")
    ] = "drop",
    special_tokens: Annotated[
        SpecialTokens, typer.Option(help="What special tokens in contents become.")
    ] = "split",
    show: Annotated[int, typer.Option("-n", help="Conversations to show.", min=0)] = 3,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first row of no use.")
    ] = False,
    output: Output = None,
    overwrite: Overwrite = False,
) -> None:
    """Read conversations of any form; show the first ones as messages, as rendered text
    and as tokens (trained ones coloured, and in brackets), and count them all.
    """
    from rich.console import Console

    from alia_ctx.data.chat import ChatConversion, EncoderSettings

    _require_free(output, overwrite, inputs)
    spec = ChatSpec(
        format=form,
        template=str(path(template)),
        train_on=train_on,
        max_length=max_length,
        max_tokens=max_tokens,
        strict=strict,
    )
    if problems := spec.problems("--"):
        raise ConfigError("", [_as_option(problem) for problem in problems])
    encoder = None
    if tokenizer is not None:
        settings = EncoderSettings(str(tokenizer), spec, special_tokens=special_tokens)
        encoder = settings.encoder()
    conversion = ChatConversion(inputs, form=form, encoder=encoder, strict=strict)
    _require_free(output, overwrite, conversion.inputs.files)
    conversion.run(output, show, Console(soft_wrap=True, highlight=False).print)
    counts = conversion.counts
    told = f"{counts.conversations:,} conversations"
    if encoder is not None:
        told += f", {counts.tokens:,} tokens, {counts.trained_tokens:,} of them trained"
    typer.echo(told)
    for line in counts.lines(conversion.left_out.rows):
        typer.echo(line)
    for name, reason in conversion.inputs.ignored.items():
        typer.echo(f"not read: {name} ({reason})")
    if output is not None:
        typer.echo(f"written: {output}")


def make_tool_data(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Python packages, .py files or folders, OpenAPI files, JSON of tools, "
            "invented:N.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="JSON lines to write.", parser=path, show_default=False)
    ],
    count: Annotated[int, typer.Option(min=1, help="Conversations.")] = 1000,
    seed: Annotated[int, typer.Option(help="Another seed, other conversations.")] = 0,
    kinds: Annotated[
        str, typer.Option(help="Which, with commas between them.")
    ] = "single,multiple,parallel,missing,irrelevant,multi_turn",
    languages: Annotated[
        str, typer.Option(help="Which, with commas between them.")
    ] = "en,es,ca,eu,gl",
    part: Annotated[
        Literal["all", "train", "held_out"], typer.Option(help="Of the functions.")
    ] = "all",
    held_out_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of functions held out.")
    ] = 0.2,
    most_tools: Annotated[int, typer.Option(min=1, help="Offered at once.")] = 5,
    most_arguments: Annotated[int, typer.Option(min=1, help="Of a call.")] = 6,
    quoted: Annotated[
        bool,
        typer.Option("--quoted", help="All texts of requests in quotation marks."),
    ] = False,
    simple: Annotated[
        bool,
        typer.Option(
            "--simple",
            help="Invented functions of bare types; requests list their arguments.",
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="URL of an OpenAI-compatible endpoint that words requests."),
    ] = None,
    model_name: Annotated[
        str, typer.Option(help="What the endpoint calls its model.")
    ] = _MODEL_NAME,
    overwrite: Overwrite = False,
) -> None:
    """Make conversations that call functions, from their signatures alone."""
    from alia_ctx.data.chat import making
    from alia_ctx.progress import meter

    if problems := _endpoint_problems(model, model_name):
        raise ConfigError("", problems)
    _require_free(output, overwrite, sources)
    about = output.with_name(f"{output.name}.json")
    _require_free(about, overwrite, sources)
    spec = making.MakeSpec(
        count=count,
        seed=seed,
        kinds=_chosen("--kinds", kinds, making.KINDS),
        languages=_chosen("--languages", languages, tuple(making.LANGUAGES)),
        part=part,
        held_out_share=held_out_share,
        limits=making.Limits(most_tools, most_arguments, quoted, simple),
    )
    found = making.find_functions(sources, simple=simple)
    origins = [function.origin for function in found.functions.values()]
    for file in (output, about):
        _require_free(file, overwrite, origins)
    with meter("make-tool-data", count, "conversation") as bar:
        counts = making.make_tool_data(
            found,
            spec,
            output,
            endpoint=None if model is None else making.Endpoint(model, model_name),
            progress=bar.update,
        )
    typer.echo(
        f"{output}: {_counted(counts.written, 'conversation')} from "
        f"{_counted(counts.functions, 'function')}; "
        f"{len(counts.left_out):,} left out, "
        f"{_counted(counts.refused.total(), 'conversation')} refused"
    )
    for line in making.counted(counts.left_out):
        typer.echo(f"  {line}")
    if counts.left_out:
        typer.echo(f"  all that is left out: {about}")
    if names := counts.never_called:
        typer.echo(
            f"  {len(names):,} of {_counted(len(counts.offered), 'function')} that are "
            f"offered are never called, as {names[0]}: all in {about} (never_called)"
        )
    for line in counts.lacking(spec):
        typer.echo(f"  {line}")
    for reason, number in counts.refused.most_common(5):
        typer.echo(f"  {number:,} refused, {reason}")


def _endpoint_problems(model: str | None, name: str) -> list[Problem]:
    if model is not None and not model.strip():
        remedy = "give it as http://HOST:PORT/v1, or leave the option out"
        return [Problem("--model", "''", "is no address", remedy)]
    if model is None and name != _MODEL_NAME:
        remedy = "give its endpoint with --model, or leave the option out"
        return [Problem("--model-name", name, "is of no endpoint", remedy)]
    return []


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _chosen[T: str](key: str, text: str, known: tuple[T, ...]) -> tuple[T, ...]:
    names = {name: name for name in known}
    chosen = [part.strip() for part in text.split(",")]
    for part in chosen:
        if part not in names:
            remedy = f"choose among {', '.join(known)}"
            rule = "is not known" if part else "names none where one is needed"
            raise ConfigError("", [Problem(key, part or repr(text), rule, remedy)])
    return tuple(names[part] for part in dict.fromkeys(chosen))  # type: ignore[index]


def _as_option(problem: Problem) -> Problem:
    key = problem.key.rpartition(".")[2].replace("_", "-")
    return Problem(f"--{key}", problem.value, problem.rule, problem.remedy)


def _require_free(output: Path | None, overwrite: bool, inputs: Sequence[str]) -> None:
    """Before any work: the output is no directory, its folder is there, it is free, and
    none of what is read.
    """
    if output is None:
        return
    rule, remedy = None, "name a file in a directory that exists"
    if output.is_dir():
        rule = "is a directory"
    elif not output.parent.is_dir():
        rule = "its folder does not exist"
    elif output.exists() and not overwrite:
        rule, remedy = "exists already", "choose another name, or pass --overwrite"
    elif output.exists() and any(
        os.path.exists(name) and output.samefile(name) for name in inputs
    ):
        rule, remedy = "is read here, and would be lost", "choose another name"
    if rule is not None:
        raise ConfigError("", [Problem("--output", str(output), rule, remedy)])
    require_replaceable(output, "--output", "a file of JSON lines", _LINES, None)
