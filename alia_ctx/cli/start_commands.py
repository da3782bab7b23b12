"""The commands before there is a run: init, schema. Wiring only."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from alia_ctx.cli.arguments import path
from alia_ctx.progress import say


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(init)
    app.command()(schema)


def init(
    hf_dir: Annotated[
        Path,
        typer.Argument(
            help="Hugging Face directory, or ORGANISATION/MODEL on the hub.",
            show_default=False,
            parser=path,
        ),
    ],
    context: Annotated[
        str | None,
        typer.Option(
            help="Tokens that it shall read, as in 160k (default: 8 times its own)."
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            help="GPUs to plan for; 0 is the processor (default: those of this machine)."
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(help="Machine of the GPUs: h100-80, h200, marenostrum5, ..."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="Training text: a file, directory or glob; may be repeated."),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(help="Held-out text likewise, which is never trained on."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="YAML to write (default: NAME.yaml here).", parser=path),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there.")
    ] = False,
) -> None:
    """Write a configuration that extends a model of yours: stages, RoPE, layout, each with
    its reason. Text that is not named is left to fill in.
    """
    say(f"reading {hf_dir}")
    from alia_ctx.hf.rope_config import dynamic_note
    from alia_ctx.workflow.beginning import begin
    from alia_ctx.workflow.configuration_text import room_note

    begun = begin(
        hf_dir,
        context=context,
        gpus=gpus,
        machine=on,
        text=text or (),
        held_out=held_out or (),
        output=output,
        overwrite=overwrite,
    )
    proposal, model = begun.proposal, begun.proposal.base.model
    where = (
        f"{proposal.gpus} x {proposal.machine}" if proposal.gpus else proposal.machine
    )
    typer.echo(
        f"{begun.config}: {model.parameters():,} parameters, "
        f"{proposal.base.context:,} tokens of context, for {where}"
    )
    for stage in proposal.stages:
        rope, choice = stage.stage.rope, stage.choice
        factor = f" x{rope.factor:g}" if rope.factor else ""
        layout = "layout auto" if choice.usable else "note"
        layout += f": {choice.reason}" if choice.reason else ""
        typer.echo(
            f"{stage.name}: {stage.stage.context:,} tokens, RoPE {rope.type}{factor}, "
            f"{stage.stage.updates:,} updates of {stage.stage.update_tokens:,} tokens, "
            f"{layout}"
        )
        if note := dynamic_note(rope, stage.stage.context):
            typer.echo(f"note: {stage.name}: {note}")
    if room := room_note(proposal.run.engine):
        typer.echo(f"note: {room}")
    if proposal.reads.other is not None:
        typer.echo(
            f"note: config.json does not say whether the base reads "
            f"{proposal.reads.tokens:,} or {proposal.reads.other:,} tokens; "
            f"{begun.config} has the factor of either"
        )
    if begun.lacks is not None:
        typer.echo(f"note: {begun.lacks}")
    if begun.epochs is not None:
        typer.echo(f"note: {begun.epochs}")
    for key in begun.open_keys:
        typer.echo(f"to fill in: {key}")
    edit = f"edit {begun.config}, then " if begun.open_keys else ""
    typer.echo(f"next: {edit}`alia-ctx check {shlex.quote(str(begun.config))}`")


def schema(
    partial: Annotated[
        bool,
        typer.Option(
            "--partial", help="Of files that others include: nothing is required."
        ),
    ] = False,
) -> None:
    """Print the JSON schema of a configuration, for editors and other tools."""
    from alia_ctx.config.json_schema import run_schema

    typer.echo(json.dumps(run_schema(partial=partial), indent=1, allow_nan=False))
