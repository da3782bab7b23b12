"""The commands of the cluster: launch, status, doctor. Wiring only."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alia_ctx.cli.arguments import finite, path
from alia_ctx.cli.output import print_json, print_table
from alia_ctx.config.load import require_stages
from alia_ctx.progress import loading

if TYPE_CHECKING:
    from alia_ctx.cluster.findings import Finding
    from alia_ctx.workflow.standing import RunStatus, StageStatus

Config = Annotated[
    Path,
    typer.Argument(help="The run's YAML.", show_default=False, parser=path),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides, as in stages.32k.layout.cp=16.")
]
Cluster = Annotated[
    Path | None,
    typer.Option(
        help="A file put over the configuration, as configs/clusters/ has them.",
        parser=path,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(launch)
    app.command()(status)
    app.command()(doctor)


def launch(
    config: Config,
    overrides: Overrides = None,
    stage: Annotated[
        list[str] | None,
        typer.Option("--stage", help="Only this stage; may be repeated."),
    ] = None,
    cluster: Cluster = None,
    submit: Annotated[
        bool,
        typer.Option("--submit", help="Submit the jobs, each after the one before."),
    ] = False,
) -> None:
    """Check a run, write a batch file for each of its stages, and submit them."""
    require_stages(config, overrides or (), stage or ())
    loading("torch")
    from alia_ctx import workflow

    launched = workflow.launch(
        config, overrides or (), stages=stage or (), cluster=cluster, submit=submit
    )
    for note in launched.notes:
        typer.echo(f"note: {note}")
    for job, file in launched.files:
        number = launched.numbers.get(job.name)
        typer.echo(f"{job.name}: {file}" + (f", job {number}" if number else ""))
    if launched.files and not submit:
        file = launched.files[0][1]
        does = "--submit puts them into the queue" if file.suffix == ".sbatch" else ""
        typer.echo(f"note: nothing was submitted; {does or f'start {file}'}")


def status(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run's YAML or its output directory.",
            show_default=False,
            parser=path,
        ),
    ],
    overrides: Overrides = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Where a run stands: queue, updates, tokens, loss, speed, time left, the last checkpoint,
    and the faults that it survived.
    """
    from alia_ctx import workflow

    found = workflow.run_status(run, overrides or (), cluster=cluster)
    if as_json:
        print_json(found.to_json())
        return
    _show(found)


def _show(found: RunStatus) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{found.run} in {found.output}"))
    headings = ("stage", "state", "update", "tokens", "loss", "tokens/s", "left")
    for heading in (*headings, "last line", "last checkpoint"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in found.stages:
        table.add_row(*map(escape, _cells(stage)))
    print_table(table)
    for job in found.jobs:
        typer.echo(f"{job['name']}: job {job['number']} {job['state'].lower()}")
    for stage in found.stages:
        counts = ", ".join(
            f"{n} {kind}{'s' * (n > 1)}" for kind, n in stage.faults.items()
        )
        if counts:
            typer.echo(f"{stage.stage} survived: {counts}")
        for words in stage.words:
            typer.echo(f"  {words}")
        for problem in stage.problems:
            typer.echo(f"note: {problem}")
    for problem in found.problems:
        typer.echo(f"note: {problem}")


def _cells(stage: StageStatus) -> list[str]:
    from alia_ctx.planner import duration

    def time(seconds: float | None) -> str:
        return "-" if seconds is None else duration(seconds) if seconds else "0"

    saved = "-" if stage.saved is None else f"update {stage.saved:,}"
    return [
        stage.stage,
        stage.state,
        f"{stage.update:,} of {'?' if stage.updates is None else f'{stage.updates:,}'}",
        f"{stage.tokens:,}",
        "-" if stage.loss is None else f"{stage.loss:.4f}",
        "-" if stage.tokens_per_second is None else f"{stage.tokens_per_second:,.0f}",
        time(stage.seconds_left),
        "-"
        if stage.last_line_seconds is None
        else f"{time(stage.last_line_seconds)} ago",
        saved,
    ]


def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="The run's YAML, whose needs the machines are held against.",
            show_default=False,
            parser=path,
        ),
    ] = None,
    overrides: Overrides = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
    wait: Annotated[
        float,
        typer.Option(
            help="Seconds to wait for ranks that do not come.",
            min=1.0,
            callback=finite,
        ),
    ] = 120.0,
) -> None:
    """Look at the machines: software, GPUs, links, clocks, disk. Alone, or on all ranks that
    torchrun or srun started. Each line is good, weak or broken; exit status 0 unless one
    is broken.
    """
    from dataclasses import asdict

    from alia_ctx import workflow
    from alia_ctx.config.load import load_plan
    from alia_ctx.progress import is_main

    run, over = None, [cluster] if cluster is not None else []
    if config is not None:
        run, _ = load_plan(config, overrides or (), over=over)
    place = Path(run.output) if run is not None else Path.cwd()

    def tell(finding: Finding) -> None:
        if "RANK" in os.environ:
            who = f"rank {os.environ['RANK']} on {socket.gethostname()}"
            typer.echo(f"{who}: {finding}", err=True)

    findings = workflow.examine(run, place, wait_seconds=wait, tell=tell)
    counts = {
        v: sum(f.verdict == v for f in findings) for v in ("good", "weak", "broken")
    }
    if is_main() and as_json:
        document = {"findings": [asdict(f) for f in findings], **counts}
        print_json(document)
    elif is_main():
        for finding in findings:
            typer.echo(str(finding))
        typer.echo(", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
    if counts["broken"]:
        raise typer.Exit(2)
