"""The command that measures models: evaluate. Wiring only.

It takes the ranks that torchrun or srun started, and finds a layout for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alia_ctx.cli.arguments import path
from alia_ctx.cli.output import print_json, print_table
from alia_ctx.config.evaluation import EvaluationConfig, RetrievalConfig
from alia_ctx.config.load import given_of, load_run, require_stages
from alia_ctx.config.schema import build
from alia_ctx.errors import AliaError, ConfigError, Problem, Problems
from alia_ctx.progress import is_main, loading

if TYPE_CHECKING:
    from alia_ctx.spec.layout import Layout
    from alia_ctx.workflow import Evaluated, EvaluationTask

Target = Annotated[
    Path,
    typer.Argument(
        metavar="TARGET",
        help="A run's YAML, a checkpoint, or a Hugging Face directory.",
        show_default=False,
        parser=path,
    ),
]
Others = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL|OVERRIDE]...",
        help="More models, the base first; or, after a YAML, overrides.",
    ),
]
PANEL = "What is measured"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(evaluate)


def evaluate(
    config: Target,
    overrides: Others = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(help="Only these stages of a run, and its base; may be repeated."),
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(
            help="Tokens shown at a time, as in 8192,32768 (default: a stage's own; of models "
            "without a run the first one's)."
        ),
    ] = None,
    update: Annotated[
        int | None,
        typer.Option(help="Recompute the logged loss of this update of the stage."),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Held-out text: a file, directory or glob.", parser=path),
    ] = None,
    text_key: Annotated[
        str,
        typer.Option(help="Field or column of --text that has the text."),
    ] = "text",
    evaluators: Annotated[
        str | None,
        typer.Option(
            help="Of positions, blocks, longppl, retrieval, passkey, leak.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    retrieval: Annotated[
        bool,
        typer.Option("--retrieval", help="Retrieval too.", rich_help_panel=PANEL),
    ] = False,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Retrieval tasks (default: all).", rich_help_panel=PANEL),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(help="Of en, es, ca, eu, gl.", rich_help_panel=PANEL),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Samples of each task.", rich_help_panel=PANEL),
    ] = None,
    haystack: Annotated[
        str | None,
        typer.Option(help="text (the held-out text) or noise.", rich_help_panel=PANEL),
    ] = None,
    documents: Annotated[
        int | None,
        typer.Option(help="Held-out documents.", rich_help_panel=PANEL),
    ] = None,
    contrast: Annotated[
        str | None,
        typer.Option(
            help="Model that finds LongPPL's key tokens (default: the last).",
            rich_help_panel=PANEL,
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Tokenizer of models that have none.", parser=path),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32 or bf16 (default: bf16 on GPUs, fp32 on hosts)."),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="In place of the layout that is found, as in tp=2,cp=4."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where results are kept (default: a run's OUTPUT/evaluation, else "
            "./evaluation).",
            parser=path,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON, no tables.")
    ] = False,
) -> None:
    """Measure models on held-out text and on retrieval, the base first; or recompute a
    loss of the log. Results are kept, and measured anew only where something differs.
    """
    has_run = any(
        file.is_file() for file in (config, config.with_name(f"{config.name}.yaml"))
    )
    is_model = config.is_dir() or (text and not has_run)
    if not is_model:  # the base is no stage, and may be named as one
        named = [name for name in stage or () if name != "base"]
        require_stages(config, overrides or (), named)
    loading("torch")
    from alia_ctx import workflow

    if update is not None:
        _recompute(config, overrides or (), stage or (), update, as_json)
        return
    values = {
        "tasks": _names(task),
        "languages": _names(language),
        "samples": samples,
        "haystack": haystack,
    }
    given = {name: value for name, value in values.items() if value not in (None, [])}
    names = _names([evaluators] if evaluators else ())
    # Wrong values are named before what is lacking, and all of them at once.
    contexts, chosen_layout, checked_retrieval, *_ = _checked(
        lambda: _contexts(context or ()),
        lambda: _layout(layout),
        lambda: _retrieval(given),
        lambda: _require_known(names),
        lambda: _require_precision(precision),
        lambda: _require_documents(documents),
    )

    def of_models() -> EvaluationTask:
        if stage:
            raise _error("--stage", stage[0], "is of a run", "name the run's YAML")
        chosen = names or (["positions", "blocks"] if text else [])
        if haystack == "text" and not text:
            remedy = "name held-out text with --text, or leave it out: noise hides them"
            raise _error("--haystack", haystack, "there is no text to hide in", remedy)
        asked = workflow.Asked(
            evaluators=_evaluators(chosen, retrieval or _asks(given, names)),
            texts=tuple(map(str, text or ())),
            text_key=text_key,
            contexts=tuple(contexts),
            documents=64 if documents is None else documents,
            retrieval=checked_retrieval,
            tokenizer=tokenizer,
            precision=precision,
            contrast=contrast,
            layout=chosen_layout,
        )
        return workflow.models_task(paths, asked, output or Path("evaluation"))

    def of_a_run() -> EvaluationTask:
        for option, value in (("--text", text), ("--tokenizer", tokenizer)):
            if value:
                key = "evaluation.held_out" if option == "--text" else "tokenizer"
                shown = ", ".join(map(str, value)) if isinstance(value, list) else value
                raise _error(option, shown, "is for models without a run", f"set {key}")
        configured = load_run(config, overrides or (), stages=stage or ())
        options = {**given, "documents": documents, "precision": precision}
        changes = given_of(config, overrides or ()).with_options(options)
        run = load_run(config, [*(overrides or ()), *changes], stages=stage or ())
        measured = names or run.evaluation.measure
        chosen = _evaluators(measured, retrieval or _asks(given, measured))
        made = workflow.evaluation_task(
            run, stage or (), contexts, chosen, contrast, configured
        )
        return replace(made, layout=chosen_layout, directory=output or made.directory)

    paths = [config, *(path(name) for name in overrides or ())] if is_model else []
    if is_model:
        workflow.read_weights_once(paths)
    made = workflow.task_on_all_ranks(of_models if is_model else of_a_run)
    evaluated = workflow.measure_models(made)
    _show(evaluated, made, as_json)
    if evaluated.refused:
        raise typer.Exit(AliaError.exit_code)


def _recompute(
    config: Path,
    overrides: Sequence[str],
    stages: Sequence[str],
    update: int,
    as_json: bool,
) -> None:
    from alia_ctx import workflow

    if len(stages) != 1:
        rule = "is needed with --update, once"
        raise _error("--stage", ", ".join(stages) or None, rule, "name the stage")
    run = workflow.load_on_all_ranks(config, overrides, stages)
    recomputed = workflow.recompute(run, stages[0], update)
    if is_main() and as_json:
        print_json(vars(recomputed))
    elif is_main():
        typer.echo(str(recomputed))


def _show(evaluated: Evaluated, task: EvaluationTask, as_json: bool) -> None:
    from alia_ctx import workflow
    from alia_ctx.evaluation.tables import tables
    from alia_ctx.evaluation.verdicts import verdicts

    if not is_main():
        return
    lines = workflow.lines_of(evaluated)
    said = verdicts(lines, evaluated.native, has_base=evaluated.has_base)
    reasons = dict.fromkeys(
        f"{r.evaluation.name}, {r.evaluator}: {r.reason}"
        for r in evaluated.results
        if r.reason
    )
    if as_json:
        document = {**evaluated.to_json(), "verdicts": said}
        print_json(document, compact=True)
        return
    for table in tables(lines):
        print_table(table)
    for sentence in said:
        typer.echo(f"- {sentence}")
    for note in evaluated.notes:
        typer.echo(f"note: {note}")
    for reason in [*reasons, *_left_out(evaluated)]:
        typer.echo(f"not measured: {reason}")
    for name, through in {
        e.model.name: e.model.through for e in task.evaluations
    }.items():
        typer.echo(f"{name} was read through {through}")
    typer.echo(f"results: {task.directory}")


def _left_out(evaluated: Evaluated) -> list[str]:
    """Tasks that do not fit into the length that they were asked for."""
    return list(
        dict.fromkeys(
            f"{task}: {reason}"
            for result in evaluated.of("retrieval")
            for task, reason in (result.content or {})["left_out"].items()
        )
    )


def _names(values: Sequence[str] | None) -> list[str]:
    """Names given one by one or with commas between them; each once."""
    parts = (part.strip() for value in values or () for part in value.split(","))
    return list(dict.fromkeys(filter(None, parts)))


def _checked(*checks: Callable[[], Any]) -> list[Any]:
    """What each check gives; ConfigError with what all of them refuse."""
    made, problems = [], Problems()
    for check in checks:
        try:
            made.append(check())
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError("", problems)
    return made


def _require_known(evaluators: Sequence[str]) -> None:
    from alia_ctx import workflow

    known = workflow.EVALUATORS
    remedy = f"there are {', '.join(known)}"
    problems = [
        Problem("--evaluators", name, "is no evaluator", remedy)
        for name in evaluators
        if name not in known
    ]
    if problems:
        raise ConfigError("", problems)


def _require_precision(precision: str | None) -> None:
    if precision not in (None, "fp32", "bf16"):
        raise _error("--precision", precision, "is none", "use fp32 or bf16")


def _require_documents(documents: int | None) -> None:
    if documents is not None and documents < 1:
        raise _error("--documents", documents, "must be at least 1", "64 is usual")


def _contexts(values: Sequence[str]) -> list[int]:
    contexts = []
    for text in _names(values):
        digits = text.replace("_", "")
        if not digits.isdecimal() or int(digits) < 2:
            raise _error(
                "--context", text, "is no number of tokens", "as in 8192,32768"
            )
        contexts.append(int(digits))
    return sorted(set(contexts))


def _asks(given: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether options of retrieval ask for it: nothing else that is measured heeds them."""
    return bool(given) and not {"retrieval", "passkey"} & set(names)


def _evaluators(names: Sequence[str], retrieval: bool) -> tuple[str, ...]:
    from alia_ctx import workflow

    known = workflow.EVALUATORS
    chosen = [n for n in known if n in names or (n == "retrieval" and retrieval)]
    if not chosen:
        raise _error(
            "--text",
            None,
            "there is nothing to measure on",
            "name held-out text, or ask for --retrieval",
        )
    return tuple(chosen)


_OPTIONS = {"tasks": "--task", "languages": "--language"}


def _retrieval(given: dict[str, Any]) -> RetrievalConfig:
    """ConfigError naming the options, as they were given."""
    problems = Problems()
    made = build(RetrievalConfig, given, "retrieval", problems)
    if made is not None and not problems:
        problems += EvaluationConfig(retrieval=made).problems()
    if made is None or problems:
        raise ConfigError("", [replace(p, key=_option(p.key)) for p in problems])
    return made


def _option(key: str) -> str:
    """The option that a key below `retrieval` was given by."""
    name = key.partition("retrieval.")[2].partition("[")[0]
    return _OPTIONS.get(name, f"--{name}")


def _layout(text: str | None) -> Layout | None:
    """`tp=2,cp=4` as a layout; dp takes what is left."""
    if text is None:
        return None
    from alia_ctx.spec.layout import Layout

    sizes: dict[str, int] = {}
    for part in _names([text]):
        name, _, size = part.partition("=")
        if name not in ("tp", "cp", "pp") or not size.isdecimal() or int(size) < 1:
            raise _error(
                "--layout", part, "is no size", "as in tp=2,cp=4; dp is the rest"
            )
        sizes[name] = int(size)
    return Layout(**sizes)


def _error(key: str, value: object, rule: str, remedy: str) -> ConfigError:
    return ConfigError("", [Problem(key, value, rule, remedy)])
