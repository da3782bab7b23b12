"""The command line: wiring only.

Every command reads a configuration first, and checks it as a whole.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
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
    start_commands,
    watch_commands,
)
from alia_ctx.cli.arguments import path
from alia_ctx.cli.checked import NO_HELD_OUT, check_notes, stage_in_short
from alia_ctx.cli.failing import Command, refusal, say_stopped
from alia_ctx.cli.output import print_json, print_table
from alia_ctx.config.evaluation import SCORES
from alia_ctx.config.held_out import held_out_notes
from alia_ctx.config.load import given_of, load_plan, load_run, require_stages
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import AliaError, ConfigError
from alia_ctx.progress import is_main, loading

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__,
)

start_commands.register(app)
convert_commands.register(app)
evaluate_commands.register(app)
chat_commands.register(app)
call_commands.register(app)
report_commands.register(app)
watch_commands.register(app)
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
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, and nothing else.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


@app.command()
def check(
    config: Config,
    overrides: Overrides = None,
    stage: StageNames = None,
    as_json: AsJson = False,
) -> None:
    """Check a configuration as a whole; list every violation with its remedy."""
    names = stage or ()
    require_stages(config, overrides or (), names)
    run = load_run(config, overrides or (), stages=names, read_text=not names)
    from alia_ctx import workflow

    workflow.check_all(run, config, names)
    budgets = {name: stage_in_short(run, name) for name in names or run.stages}
    notes = list(check_notes(run, names))
    if as_json:
        print_json(
            {"config": str(config), "ok": True, "stages": budgets, "notes": notes}
        )
        return
    for name, of in budgets.items():
        if of["update_instances"] is not None:
            plural = "s" if of["epochs"] != 1 else ""
            size = f"{of['update_instances']} conversations"
            typer.echo(f"{name}: {of['epochs']} epoch{plural} in updates of {size}")
        else:
            typer.echo(
                f"{name}: {of['updates']:,} updates of {of['rows']} x {of['context']:,} = "
                f"{of['update_tokens']:,} tokens, {of['tokens']:,} in all"
            )
        typer.echo(f"{name}: RoPE {of['rope']['words']}")
    for note in notes:
        typer.echo(f"note: {note}")
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
        typer.Option(
            help="Machine in place of the file's cluster: h100-80, h200, ...; overrides of "
            "cluster hold."
        ),
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
    as_json: AsJson = False,
) -> None:
    """Say what each stage needs, item by item, and which layouts of 1, 2, 4, ... GPUs fit,
    before the queue does.
    """
    from alia_ctx import workflow
    from alia_ctx.planner import duration

    own = overrides or ()
    run, open_layouts = load_plan(config, own, stages=stage or (), machine=on)
    given = given_of(config, own, machine=on)
    asked = workflow.PlanQuestion(
        stage or (), gpus, open_layouts, search, dry_run, given
    )
    timeline = None if trace is None else workflow.draw_update(run, asked, trace)
    more = timeline is None or search or dry_run  # a trace by itself is all of it
    if as_json:
        document = workflow.plan_document(run, asked) if more else {}
        if timeline is not None:
            document |= {"trace": str(trace), "update_seconds": timeline.seconds}
        print_json(document)
        return
    for table in workflow.plan_stages(run, asked) if more else ():
        print_table(table)
    if timeline is not None:
        typer.echo(
            f"{trace}: an update of {duration(timeline.seconds)}, simulated; open it at "
            "https://ui.perfetto.dev"
        )


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
    as_json: AsJson = False,
) -> None:
    """Plan the rows of a stage."""
    require_stages(config, overrides or (), [stage])
    loading("torch")
    from alia_ctx import workflow
    from alia_ctx.data.packing import draw_plan

    run = load_run(config, overrides or (), stages=[stage])
    made = workflow.pack(run, stage, overwrite=overwrite)
    seen = workflow.inspect_data(run, stage, made) if inspect else None
    if as_json:
        document = {"directory": str(made.directory), "fingerprint": made.fingerprint}
        # The curve of context is for who looks closer.
        shown = [key for key in made.stats if inspect or key != "context"]
        print_json(
            {
                **document,
                **({} if seen is None else seen.document()),
                **{key: made.stats[key] for key in shown},
            }
        )
        return
    typer.echo(f"{made.directory}: {len(made):,} rows, fingerprint {made.fingerprint}")
    if seen is not None:
        for table in seen.tables():
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
    from alia_ctx.train.stopping import parse_duration

    limit = parse_duration(exit_before) if exit_before else None
    require_stages(config, overrides or (), [stage])
    loading("torch")
    from alia_ctx import workflow

    run = workflow.load_on_all_ranks(config, overrides or (), [stage])
    path = workflow.train(run, stage, exit_before=limit)
    if is_main():
        best = workflow.best_checkpoint(run, stage)
        if best is not None:
            typer.echo(f"best checkpoint: {best}")
        elif run.evaluation.best is not None:
            metric = run.evaluation.best.metric
            above = " above 0" if metric in SCORES else ""
            found = f"no evaluation of stage {stage} gave a {metric}{above}"
            typer.echo(f"best checkpoint: none is named, as {found}")
        typer.echo(str(path))


@app.command()
def run(config: Config, overrides: Overrides = None) -> None:
    """Every step on this machine: tokenize, pack, train each stage, evaluate, report."""
    from alia_ctx import workflow

    loaded = load_run(config, overrides or (), read_text=True)
    if loaded.evaluation.held_out is None:
        raise ConfigError("", [NO_HELD_OUT])
    written = workflow.run_all(config, overrides or (), loaded)
    typer.echo(written.markdown.read_text(encoding="utf-8"))
    page = workflow.write_page([config], overrides or ())
    typer.echo(f"report: {written.markdown}\nplot:   {written.plot}\npage:   {page}")


for _registered in app.registered_commands:
    _registered.cls = Command


def _warn_of_short_text(run: RunConfig) -> None:
    from alia_ctx import workflow

    for note in [*held_out_notes(run), *workflow.delimiter_notes(run)]:
        typer.echo(f"note: {note}")


_FIRST_SPEAKS_SECONDS = 2.0


def _end(error: Exception, message: str, status: int) -> NoReturn:
    from alia_ctx.train.stopping import record_status

    number = os.environ.get("RANK")
    record_status(status)
    if number not in (None, "0") and getattr(error, "on_all_ranks", False):
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        time.sleep(_FIRST_SPEAKS_SECONDS)  # a launcher ends the others after the first
        sys.exit(status)
    rank = "" if number is None else f"rank {number}: "
    text = f"{type(error).__name__}: {message}"
    print(f"{rank}{text}", file=sys.stderr, flush=True)
    _tell_launcher(text)
    sys.exit(status)


def _tell_launcher(text: str) -> None:
    """Give torchrun the message for its own summary, in the form of the file that it names
    to its ranks (torch/distributed/elastic/multiprocessing/errors/__init__.py,
    ProcessFailure); without it the summary says that there is no traceback.
    """
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with suppress(OSError):
            stamp = {"message": text, "timestamp": int(time.time())}
            Path(file).write_text(json.dumps(stamp), encoding="utf-8")


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
        message = refusal(error)
        if message is None:
            raise
        _end(error, message, 2)
    except KeyboardInterrupt:
        say_stopped()  # as the program is loaded
        sys.exit(130)


if __name__ == "__main__":
    main()
