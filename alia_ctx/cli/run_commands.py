"""The command line: wiring only.

Every command reads a configuration first, and checks it as a whole.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from alia_ctx.cli import (
    call_commands,
    chat_commands,
    cluster_commands,
    convert_commands,
    evaluate_commands,
    report_commands,
)
from alia_ctx.cli.arguments import path
from alia_ctx.cli.output import print_table
from alia_ctx.config.held_out import held_out_notes
from alia_ctx.config.load import load_plan, load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import AliaError, ConfigError, Problem
from alia_ctx.progress import is_main

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__,
)

convert_commands.register(app)
evaluate_commands.register(app)
chat_commands.register(app)
call_commands.register(app)
report_commands.register(app)
cluster_commands.register(app)

Config = Annotated[
    Path,
    typer.Argument(help="The run's YAML.", show_default=False, parser=path),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides, as in stages.32k.layout.cp=16.")
]
Stage = Annotated[str, typer.Option(help="Name of the stage.", show_default=False)]
StageNames = Annotated[
    list[str] | None,
    typer.Option("--stage", help="Only what this stage needs; may be repeated."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]

_NO_HELD_OUT = Problem(
    "evaluation.held_out",
    None,
    "there is no held-out text, which `evaluate`, `report` and `run` need",
    "name some; `train` goes without",
)


@app.command()
def check(
    config: Config, overrides: Overrides = None, stage: StageNames = None
) -> None:
    """Check a configuration as a whole; list every violation with its remedy."""
    from alia_ctx import workflow

    names = stage or ()
    run = load_run(config, overrides or (), stages=names, read_text=not names)
    workflow.check_all(run, config, names)
    for name in names or run.stages:
        if unknown := workflow.unknown_tokenizer(run, name):
            typer.echo(f"note: {unknown}")
        planned = run.stage(name)
        if planned.update_instances is not None:
            typer.echo(
                f"{name}: {planned.epochs} epoch{'s' if planned.epochs != 1 else ''} in "
                f"updates of {planned.update_instances} conversations"
            )
            continue
        tokens = planned.rows_per_update * planned.context
        typer.echo(
            f"{name}: {planned.updates:,} updates of {planned.rows_per_update} x "
            f"{planned.context:,} = {tokens:,} tokens, "
            f"{planned.updates * tokens:,} in all"
        )
    if run.root is not None and run.deferred(run.root):
        typer.echo(
            f"note: root {run.root} is not on this machine; files below it were not looked for"
        )
    if run.evaluation.held_out is None:
        typer.echo(f"note: {_NO_HELD_OUT.key}: {_NO_HELD_OUT.rule}")
    elif not run.deferred(run.output) and (few := workflow.few_held_out(run)):
        typer.echo(f"note: {few}")
    if not run.deferred(run.output):
        unseen = [workflow.not_seen(run, name) for name in names or run.stages]
        for note in (*filter(None, unseen), *workflow.constants_notes(run)):
            typer.echo(f"note: {note}")
    if not names:  # which may take a while to read
        _warn_of_short_text(run)
    typer.echo(f"{config}: no problems")


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    stage: StageNames = None,
    gpus: Annotated[
        int | None,
        typer.Option(help="GPUs in place of those of the configuration."),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(help="Machine in place of the cluster's: h100-80, h200, ..."),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Only the layouts, offloading among them.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Build one rank without memory, and count."),
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Simulate an update, and write it here for Perfetto.", parser=path
        ),
    ] = None,
) -> None:
    """Say what each stage needs, item by item, and which layouts of 1, 2, 4, ... GPUs fit,
    before the queue does.
    """
    from alia_ctx import workflow
    from alia_ctx.planner import duration

    run, open_layouts = load_plan(config, overrides or (), stages=stage or ())
    asked = workflow.PlanQuestion(stage or (), gpus, on, open_layouts, search, dry_run)
    if trace is not None:
        timeline = workflow.draw_update(run, asked, trace)
        typer.echo(
            f"{trace}: an update of {duration(timeline.seconds)}, simulated; open it at "
            "https://ui.perfetto.dev"
        )
        return
    for table in workflow.plan_stages(run, asked):
        print_table(table)


@app.command()
def tokenize(
    config: Config,
    overrides: Overrides = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Only this source; may be repeated.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn text into Megatron .bin/.idx token stores."""
    from alia_ctx import workflow

    run = load_run(config, overrides or ())
    workflow.tokenize(run, source or (), overwrite=overwrite)
    _warn_of_short_text(run)


@app.command()
def pack(
    config: Config,
    stage: Stage,
    overrides: Overrides = None,
    inspect: Annotated[
        bool,
        typer.Option(
            "--inspect", help="Show what the plan holds, as tables and a plot."
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Plan the rows of a stage."""
    from alia_ctx import workflow
    from alia_ctx.data.packing import contamination_table, draw_plan, plan_table

    run = load_run(config, overrides or (), stages=[stage])
    made = workflow.pack(run, stage, overwrite=overwrite)
    typer.echo(f"{made.directory}: {len(made):,} rows, fingerprint {made.fingerprint}")
    if inspect:
        tables = plan_table(made)
        overlap = workflow.contamination(run, stage)
        if overlap is None:
            typer.echo("no tokenised held-out text to compare the sources with")
        else:
            tables.append(contamination_table(overlap))
        for table in tables:
            print_table(table)
        plot = made.directory.with_name(f"{stage}.png")
        draw_plan(made, plot)
        typer.echo(f"plot: {plot}")


@app.command()
def train(
    config: Config,
    stage: Stage,
    overrides: Overrides = None,
    exit_before: Annotated[
        str | None,
        typer.Option(
            help="Save and exit with status 75 before this much time has passed, as in 23:50:00."
        ),
    ] = None,
) -> None:
    """Train a stage, from where it stands, on the ranks that torchrun or srun started
    (or on this process alone).
    """
    from alia_ctx import workflow
    from alia_ctx.train.stopping import parse_duration

    limit = parse_duration(exit_before) if exit_before else None
    run = workflow.load_on_all_ranks(config, overrides or (), [stage])
    path = workflow.train(run, stage, exit_before=limit)
    if is_main():
        best = workflow.best_checkpoint(run, stage)
        if best is not None:
            typer.echo(f"best checkpoint: {best}")
        typer.echo(str(path))


@app.command()
def run(config: Config, overrides: Overrides = None) -> None:
    """Every step on this machine: tokenize, pack, train each stage, evaluate, report."""
    from alia_ctx import workflow

    loaded = load_run(config, overrides or (), read_text=True)
    if loaded.evaluation.held_out is None:
        raise ConfigError("", [_NO_HELD_OUT])
    written = workflow.run_all(config, overrides or (), loaded)
    typer.echo(written.markdown.read_text(encoding="utf-8"))
    page = workflow.write_page([config], overrides or ())
    typer.echo(f"report: {written.markdown}\nplot:   {written.plot}\npage:   {page}")


def _warn_of_short_text(run: RunConfig) -> None:
    for problem in held_out_notes(run):
        typer.echo(f"note: {problem}")


# What a file system answers: a fault of the place, none of the program.
_REFUSALS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EEXIST),
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY, errno.ENXIO),
    *(errno.ENOENT, errno.ENOTEMPTY, errno.EXDEV, errno.EMLINK, errno.ETXTBSY),
    *(errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOLCK, errno.ENODEV),
    *(errno.EREMOTEIO, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN),
}


def _end(error: Exception, message: str, status: int) -> NoReturn:
    from alia_ctx.train.stopping import record_status

    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    print(f"{rank}{type(error).__name__}: {message}", file=sys.stderr)
    record_status(status)
    sys.exit(status)


def main() -> None:
    """Entry point: a user's mistake, or a disk's refusal, becomes one message on
    standard error and exit status 2.
    """
    try:
        _run()
    except Exception:
        from alia_ctx.train.stopping import record_status

        # A fault of the program would be met again: the queue shall not try.
        record_status(1)
        raise


def _run() -> None:
    try:
        app()
    except AliaError as error:
        _end(error, str(error), error.exit_code)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _end(
            error,
            f"{where}{error.strerror}; make room, mend the permissions or bring back "
            "what is missing, then run it again",
            2,
        )
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
