"""The commands that show: report, rope, ablate. Wiring only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from alia_ctx.cli.arguments import path
from alia_ctx.cli.output import print_json, print_table
from alia_ctx.config.load import load_plan, load_run, require_stages
from alia_ctx.errors import AliaError, ConfigError, Problem
from alia_ctx.progress import loading

Config = Annotated[
    Path,
    typer.Argument(help="The run's YAML.", show_default=False, parser=path),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides, as in stages.32k.layout.cp=16.")
]
Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN [OTHER] [KEY=VALUE]...",
        help="A run's YAML or its output directory, or two of them; then overrides.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(report)
    app.command()(rope)
    app.command()(ablate)


def report(
    runs: Runs,
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Write it again while a run goes on, until its end."
        ),
    ] = False,
    every: Annotated[
        int, typer.Option(help="Seconds between two writings of --live.", min=1)
    ] = 10,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The HTML file (default: OUTPUT/report/index.html).", parser=path
        ),
    ] = None,
) -> None:
    """One self-contained HTML page of a run, or of two compared; and where its standard
    evaluations are there, their tables and verdicts as text. The exit status is 2 where a
    result is of something else than what is there now: it is named, and not shown.
    """
    from alia_ctx import workflow

    targets, overrides = _targets(runs)
    if live:
        written = workflow.keep_page(
            targets,
            overrides,
            output=output,
            seconds=every,
            written=lambda place: typer.echo(f"page:   {place}"),
        )
    else:
        written = workflow.write_page(targets, overrides, output=output)
    stale = workflow.stale_results(targets, overrides)
    for line in stale:
        typer.echo(line)
    try:
        if len(targets) == 1 and not targets[0].is_dir():
            typer.echo(workflow.text_report(load_run(targets[0], overrides)))
    finally:  # it is there, whatever cannot be said as text
        typer.echo(f"page:   {written}")
    if stale:
        raise typer.Exit(AliaError.exit_code)


def _targets(items: list[str]) -> tuple[list[Path], list[str]]:
    """(runs, overrides); ConfigError where the runs are not one or two, or not there."""
    targets = [path(item) for item in items if "=" not in item or Path(item).exists()]
    overrides = [item for item in items if "=" in item and not Path(item).exists()]
    if not 1 <= len(targets) <= 2:
        rule = f"{len(targets)} runs were named"
        remedy = "name one run's YAML or output directory, or two to compare"
        raise ConfigError("", [Problem("RUN", " ".join(items), rule, remedy)])
    if len(targets) == 2 and overrides:
        rule = "an override would be of both runs"
        remedy = "name the output directories, or put it into a YAML"
        raise ConfigError("", [Problem("KEY=VALUE", overrides[0], rule, remedy)])
    return targets, overrides


def rope(
    config: Config,
    overrides: Overrides = None,
    stage: Annotated[
        list[str] | None,
        typer.Option("--stage", help="Only this stage; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw it as .png or .svg.", parser=path)
    ] = None,
) -> None:
    """Compare the RoPE of each stage with other choices, as numbers, before a GPU is used."""
    from alia_ctx import workflow
    from alia_ctx.planner import choice_table, draw_choices, require_drawable

    if plot is not None:
        require_drawable(plot)
    run, _ = load_plan(config, overrides or (), stages=stage or ())
    compared = workflow.compare_rope(run, stage or ())
    if as_json:
        found = {name: [c.to_json() for c in cs] for name, cs in compared.items()}
        print_json(found)
    else:
        for name, choices in compared.items():
            base, trained = workflow.base_rope(run, name)
            title = f"RoPE of {name}, {choices[0].context:,} tokens; the base: "
            title += f"{base.type}, theta {base.theta:,g}, {trained:,} tokens"
            print_table(choice_table(title, choices))
        typer.echo(
            "reach: first distance where sum cos(m theta) < 0, a heuristic (arXiv "
            "2405.14591)\nnever turn: rotated pairs that complete no turn within the "
            "context\nuntrained: pairs turned further than the base ever saw\nslowest: "
            "longest wavelength, in tokens\n`alia-ctx ablate` trains the choices and "
            "compares them"
        )
    for name in compared:
        for choice, reason in workflow.left_out_ropes(run, name).items():
            typer.echo(f"{name}: no {choice}: {reason}", err=as_json)
    if plot is not None:
        draw_choices(compared, run.model.head_dim, plot)
        typer.echo(f"plot: {plot}", err=as_json)


def ablate(
    config: Config,
    stage: Annotated[str, typer.Option(help="Name of the stage.", show_default=False)],
    overrides: Overrides = None,
    choices: Annotated[
        str,
        typer.Option(
            help="`builtin`, or a YAML file of NAME: {type: ..., theta: ...}.",
        ),
    ] = "builtin",
    seeds: Annotated[int, typer.Option(help="How many seeds.", min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Train the same stage under several choices of RoPE, and rank them by the loss on
    held-out text. Finished cells are kept; started again it goes on.
    """
    require_stages(config, overrides or (), [stage])
    loading("torch")
    from alia_ctx import workflow

    run = load_run(config, overrides or ())
    ranking = workflow.ablate(config, overrides or (), run, stage, choices, seeds)
    if "RANK" in os.environ:  # the process that started the ranks shows it
        return
    if as_json:
        print_json(ranking.to_json())
        return
    for table in ranking.tables():
        print_table(table)
    for remark in ranking.remarks:
        typer.echo(remark)
    typer.echo(f"{ranking.verdict}\nresults: {ranking.path}")
