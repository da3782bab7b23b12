"""Text -> token stores -> plans of rows: the steps before training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from alia_ctx.config.run import RunConfig
from alia_ctx.data.packing import PackPlan, build_plan
from alia_ctx.data.tokens import TokenizeProgress, TokenStore, tokenize_source
from alia_ctx.errors import ConfigError, DataError, Problem
from alia_ctx.progress import meter, say

HELD_OUT = "held_out"


def tokenize(
    run: RunConfig, sources: Sequence[str] = (), *, overwrite: bool = False
) -> None:
    """Tokenise the named sources (default: all, and the held-out text) into OUTPUT/tokens."""
    known = dict(run.data.sources)
    if run.evaluation.held_out is not None:
        known[HELD_OUT] = run.evaluation.held_out
    for name in sources or known:
        if name not in known:
            raise ConfigError(
                "",
                [
                    Problem(
                        "--source",
                        name,
                        "is not a source",
                        f"there are {', '.join(known)}",
                    )
                ],
            )
        spec = known[name]
        if spec.store:
            say(f"{name}: uses the store {spec.store} as it is")
            continue
        with meter(f"tokenize {name}", 1.0, "token") as bar:

            def show(state: TokenizeProgress, bar: Any = bar) -> None:
                bar.total = max(
                    state.tokens * state.bytes_total / max(state.bytes_done, 1), 1
                )
                if bar.bar is not None:
                    bar.bar.update(bar.task, total=bar.total)
                bar.update(state.tokens)

            report = tokenize_source(
                spec,
                name,
                run.tokenizer,
                run.directory("tokens"),
                workers=run.data.workers or os.cpu_count() or 1,
                append_eos=run.data.append_eos,
                prepend_bos=run.data.prepend_bos,
                special_tokens=run.data.special_tokens,
                model_type=run.model.architecture,
                vocab_size=run.model.vocab_size,
                overwrite=overwrite,
                progress=show,
            )
        state = (
            "is there already" if report.unchanged else f"took {report.seconds:.1f} s"
        )
        say(
            f"{name}: {report.tokens:,} tokens of {report.counts.documents:,} "
            f"documents; {state}"
        )
        for line in report.remarks():
            say(f"  {escape(line)}")  # `[/INST]` in a text is no markup


def open_store(run: RunConfig, source: str) -> TokenStore:
    """The token store of a source; DataError tells to tokenise first where there is none."""
    spec = run.evaluation.held_out if source == HELD_OUT else run.data.sources[source]
    if spec is None:
        raise DataError(
            "there is no held-out text; name some under evaluation.held_out"
        )
    prefix = Path(spec.store) if spec.store else run.directory("tokens", source)
    if not prefix.with_name(prefix.name + ".idx").is_file():
        raise DataError(f"{prefix}.idx: no such file; run `alia-ctx tokenize` first")
    return TokenStore(prefix)


def open_stores(run: RunConfig) -> dict[str, TokenStore]:
    return {name: open_store(run, name) for name in run.data.sources}


def plan_directory(run: RunConfig, stage: str) -> Path:
    return run.directory("plans", stage)


def pack(run: RunConfig, name: str, *, overwrite: bool = False) -> PackPlan:
    """Plan the rows of a stage into OUTPUT/plans/STAGE;

    a finished identical plan is left as it is.
    """
    stage = run.stage(name)
    with meter(f"pack {name}", 1.0, "plan") as bar:
        return build_plan(
            open_stores(run),
            stage.pack,
            stage.context,
            stage.rows,
            plan_directory(run, name),
            seed=run.seed,
            overwrite=overwrite,
            progress=lambda what, done: bar.update(done, what),
        )


def open_plan(run: RunConfig, name: str) -> PackPlan:
    directory = plan_directory(run, name)
    if not directory.is_dir():
        raise DataError(
            f"{directory}: stage {name} has no plan; run `alia-ctx pack CONFIG --stage "
            f"{name}` first"
        )
    stage = run.stage(name)
    return PackPlan.open(
        directory,
        open_stores(run),
        spec=stage.pack,
        row_length=stage.context,
        seed=run.seed,
        rows=stage.rows,
    )
