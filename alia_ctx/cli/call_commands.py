"""The command that scores function calls: evaluate-calls. Wiring only."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from alia_ctx.cli.arguments import finite, path
from alia_ctx.cli.output import print_json, print_whole, terminal_width
from alia_ctx.errors import ConfigError, Problem

if TYPE_CHECKING:
    from alia_ctx.evaluation.function_calling import Score
    from alia_ctx.workflow.calls import AnsweringModel, ScoredModel

ASKING = "How it is asked"
_EITHER = "leave one of them out"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("evaluate-calls")(evaluate_calls)


def evaluate_calls(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Hugging Face directories; with --endpoint, names of served models.",
            show_default=False,
        ),
    ] = None,
    suite: Annotated[Literal["bfcl"], typer.Option(help="What is asked.")] = "bfcl",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of BFCL's files (default: of the bfcl-eval of --bfcl-env, or of "
            "the installed one).",
            parser=path,
        ),
    ] = None,
    categories: Annotated[
        list[str] | None,
        typer.Option(help="Only these, as in simple_java,multi_turn_base."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="The first N cases of each category.", min=1)
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Ask an OpenAI-compatible server, as http://localhost:8000/v1; to "
            "transformers serve MODEL is the path of the directory it was started with.",
            rich_help_panel=ASKING,
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="chatml-tools, tokenizer, or a Jinja file (default: the tokenizer's; "
            "chatml-tools where it has none).",
            rich_help_panel=ASKING,
        ),
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(
            help="0 is greedy.", min=0, callback=finite, rich_help_panel=ASKING
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampling.", rich_help_panel=ASKING)] = 0,
    max_new_tokens: Annotated[
        int,
        typer.Option(help="Most tokens of an answer.", min=1, rich_help_panel=ASKING),
    ] = 1000,
    function_names: Annotated[
        Literal["underscore", "as_is"],
        typer.Option(help="How dots in names are shown.", rich_help_panel=ASKING),
    ] = "underscore",
    batch_size: Annotated[
        int,
        typer.Option(
            help="Questions at a time, by transformers or to a server.",
            min=1,
            rich_help_panel=ASKING,
        ),
    ] = 8,
    bfcl_env: Annotated[
        Path | None,
        typer.Option(
            help="Environment with bfcl-eval (`make venv-bfcl`), whose own program asks "
            "the multi-turn categories.",
            parser=path,
        ),
    ] = None,
    multi_turn: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL=]DIR",
            help="Scores that `bfcl evaluate` wrote elsewhere for these categories.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where answers are kept, a folder a model (default: "
            "./evaluation/calls).",
            parser=path,
        ),
    ] = None,
    markdown: Annotated[
        bool,
        typer.Option(
            help="Print Markdown, as into files and pipes, on a terminal too."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the scores as JSON, no table.")
    ] = False,
) -> None:
    """Ask models for function calls, and print ALIA-40b-fc's table with its card's figures
    beside theirs. Answers are kept; started again it goes on.
    """
    from alia_ctx.evaluation.function_calling import (
        MULTI_TURN,
        are_the_benchmarks,
        read_cases,
    )
    from alia_ctx.progress import meter
    from alia_ctx.workflow.call_conversations import BenchmarkProgram
    from alia_ctx.workflow.call_writer import CallSettings
    from alia_ctx.workflow.calls import answers_folder
    from alia_ctx.workflow.calls import evaluate_calls as evaluate

    if not models and endpoint is None:
        raise _error("MODEL", None, "is needed", "name a Hugging Face directory")
    if endpoint is not None and template is not None:
        raise _error("--template", template, "is the server's", "leave it out")
    if markdown and as_json:
        raise _error("--markdown", True, "has no place beside --json", _EITHER)
    names = _categories(categories or ())
    turns_asked = [n for n in MULTI_TURN if not names or n in names]
    single = [name for name in names if name not in MULTI_TURN]
    if bfcl_env is not None and multi_turn and turns_asked:
        raise _error("--multi-turn", multi_turn[0], "is asked by --bfcl-env", _EITHER)
    if names and turns_asked and not multi_turn and bfcl_env is None:
        remedy = "name an environment that has it, --bfcl-env (`make venv-bfcl`)"
        raise _error(
            "--categories", turns_asked[0], "needs bfcl-eval's program", remedy
        )
    settings = CallSettings(max_new_tokens, temperature, seed, function_names)
    asked = _models(models or [], endpoint, settings, template, batch_size)
    program = None
    if bfcl_env is not None and (turns_asked or data is None):
        program = BenchmarkProgram.find(bfcl_env, turns_asked, limit)
        data = data or program.data
    program = program if turns_asked else None
    cases = read_cases(data, single, limit)
    if names and not single:
        cases = replace(cases, cases=(), sizes={})
    turns = _multi_turn_scores(multi_turn or (), asked)
    scored = []
    total = len(cases.cases) + (program.conversations if program else 0)
    for name, model in asked.items():
        with meter(name, total, "answers") as progress:
            scored.append(
                evaluate(
                    model,
                    cases,
                    settings,
                    answers_folder(output or Path("evaluation/calls"), name),
                    name=name,
                    multi_turn=turns.get(name),
                    program=program,
                    threads=batch_size,
                    progress=progress.update,
                )
            )
    content = {
        "suite": suite,
        "data": cases.version,
        "own": not are_the_benchmarks(cases.statement),
        "cases": total,
        "limit": limit,
        "sizes": {**cases.sizes, **(program.sizes if program else {})},
        "models": {name: s.to_json() for name, s in zip(asked, scored, strict=True)},
    }
    if as_json:
        print_json(content)
        return
    _show(dict(zip(asked, scored, strict=True)), content, markdown)


def _categories(given: Sequence[str]) -> list[str]:
    """The names in all options; ConfigError with those that are none."""
    from alia_ctx.evaluation.function_calling import CATEGORIES, MULTI_TURN

    names = [n.strip() for text in given for n in text.split(",") if n.strip()]
    known = [*CATEGORIES, *MULTI_TURN]
    remedy = f"there are {', '.join(known)}"
    problems = [
        Problem("--categories", name, "is no category", remedy)
        for name in dict.fromkeys(names)
        if name not in known
    ]
    if given and not names:
        problems.append(Problem("--categories", ",".join(given), "is empty", remedy))
    if problems:
        raise ConfigError("", problems)
    return names


def _models(
    models: Sequence[str],
    endpoint: str | None,
    settings: Any,
    template: str | None,
    batch_size: int,
) -> dict[str, AnsweringModel]:
    """Models by names that differ, as do their folders, in the order given."""
    from alia_ctx.evaluation.model_names import names_apart
    from alia_ctx.workflow.call_endpoint import EndpointModel
    from alia_ctx.workflow.call_generation import TransformersModel
    from alia_ctx.workflow.calls import answers_folder

    made: list[AnsweringModel] = []
    if endpoint is not None:
        for name in models or [None]:  # type: ignore[list-item]
            made.append(EndpointModel(endpoint, settings, name, batch_size))
    else:
        for text in models:
            made.append(TransformersModel(path(text), settings, template, batch_size))
    places = [*models] if endpoint else [os.path.abspath(path(m)) for m in models]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise _error("MODEL", models[number], "is named twice", "leave one out")
    own = [model.name for model in made]
    own = [
        name if own.count(name) == 1 else _distinct(place, places)
        for name, place in zip(own, places or [""], strict=True)
    ]
    # By their folders: `a/m` and one that is called `a_m` would share one.
    names = names_apart(own, lambda name: answers_folder(Path(), name))
    return dict(zip(names, made, strict=True))


def _distinct(place: str, places: Sequence[str]) -> str:
    """As few of the last folders of a path as tell it from the others: the same whatever
    is named first, as answers are kept by it.
    """
    parts = Path(place).parts
    others = [Path(other).parts for other in places if other != place]
    tails = (parts[-count:] for count in range(1, len(parts) + 1))
    return "/".join(next(t for t in tails if all(o[-len(t) :] != t for o in others)))


def _multi_turn_scores(
    given: Sequence[str], models: dict[str, AnsweringModel]
) -> dict[str, dict[str, Score]]:
    """Model -> category -> score, of all folders given; ConfigError where two of a model
    have a category.
    """
    from alia_ctx.evaluation.function_calling import read_multi_turn

    scores: dict[str, dict[str, Score]] = {}
    origins: dict[tuple[str, str], str] = {}
    for text in given:
        name, folder = _named_folder(text, models)
        for category, score in read_multi_turn(folder).items():
            if other := origins.get((name, category)):
                rule = f"has scores of {category}, of which {other} has some too"
                raise _error("--multi-turn", text, rule, _EITHER)
            origins[name, category] = text
            scores.setdefault(name, {})[category] = score
    return scores


def _named_folder(text: str, models: dict[str, AnsweringModel]) -> tuple[str, Path]:
    """Whose scores, and where they are."""
    name, equals, folder = text.partition("=")
    if not equals or path(text).is_dir():
        name, folder = next(iter(models)), text
        if len(models) > 1:
            rule = "does not say whose scores these are"
            raise _error("--multi-turn", text, rule, f"as in {name}={text}")
    if name not in models:
        remedy = f"there are {', '.join(models)}"
        raise _error("--multi-turn", text, f"{name} is no model here", remedy)
    if not path(folder).is_dir():
        rule = "is no folder"
        raise _error("--multi-turn", folder, rule, "name bfcl's --score-dir")
    return name, path(folder)


def _show(
    scored: dict[str, ScoredModel], content: dict[str, Any], markdown: bool
) -> None:
    from alia_ctx.evaluation.function_calling import (
        call_remarks,
        calls_markdown,
        score_tables,
        suite_name,
    )
    from alia_ctx.progress import say

    scores = {name: s.scores for name, s in scored.items()}
    places = [line for name, model in scored.items() for line in _places(name, model)]
    width = None if markdown else terminal_width()
    if width is None:
        typer.echo(calls_markdown(scores, content))
        for place in places:  # not for who reads the table, in a model card say
            say(escape(place))
        return
    for table in score_tables(scores, width, suite_name(content)):
        print_whole(table)
    for line in [*call_remarks(content), *places]:
        typer.echo(line)


def _places(name: str, model: ScoredModel) -> Iterator[str]:
    """Where a model's answers are, of several turns too where the table lacks them."""
    from alia_ctx.evaluation.function_calling import MULTI_TURN
    from alia_ctx.workflow.call_conversations import are_kept

    yield f"{name}: answers and scores in {model.directory}"
    if are_kept(model.directory) and not any(n in model.scores for n in MULTI_TURN):
        brings = "--bfcl-env brings them into the table"
        yield f"{name}: answers of several turns are kept there too; {brings}"


def _error(key: str, value: object, rule: str, remedy: str) -> ConfigError:
    return ConfigError("", [Problem(key, value, rule, remedy)])
