"""What the texts and tokenizers of a configuration break, before any work: read from disk,
so apart from the rules of the configuration itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alia_ctx.config.run import HELD_OUT, RunConfig
from alia_ctx.data.documents import SourceSpec
from alia_ctx.data.tokens import TokenStore, vocabulary_problems
from alia_ctx.errors import AliaError, ConfigError, Problem


def check_vocabulary(run: RunConfig, where: str | Path) -> None:
    """ConfigError unless every id of the tokenizer, and of every store that is there, has
    a row in the model's embedding. What lies on a root that is not mounted is left out.
    """
    problems: list[Problem] = []
    if not run.deferred(run.tokenizer):
        problems += _tokenizer_problems(run)
    sources = {f"data.sources.{name}": spec for name, spec in run.data.sources.items()}
    if run.evaluation.held_out is not None:
        sources[f"evaluation.{HELD_OUT}"] = run.evaluation.held_out
    problems += _store_problems(run, sources)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ConfigError(f"{where} has {count}", problems)


def _tokenizer_problems(run: RunConfig) -> Sequence[Problem]:
    try:
        return vocabulary_problems(
            run.tokenizer, run.model.vocab_size, model_type=run.model.architecture
        )
    except AliaError as error:
        remedy = "give the directory of the model's tokenizer"
        return [Problem("tokenizer", run.tokenizer, str(error), remedy)]


def _store_problems(
    run: RunConfig, sources: dict[str, SourceSpec]
) -> Sequence[Problem]:
    problems = []
    for key, spec in sources.items():
        if spec.store is None or run.deferred(spec.store):
            continue
        try:
            TokenStore(Path(spec.store)).check_vocabulary(run.model.vocab_size)
        except AliaError as error:
            remedy = "tokenize the source again with the tokenizer of this model"
            problems.append(Problem(f"{key}.store", spec.store, str(error), remedy))
    return problems
