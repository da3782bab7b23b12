"""What the texts and tokenizers of a configuration break, before any work: read from disk,
so apart from the rules of the configuration itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alia_ctx.config.run import HELD_OUT, RunConfig
from alia_ctx.data.tokens import TokenStore, vocabulary_problems
from alia_ctx.errors import AliaError, ConfigError, Problem, Problems
from alia_ctx.workflow.stores import text_sources


def check_vocabulary(run: RunConfig, where: str | Path) -> None:
    """ConfigError unless every id of the tokenizer, and of every store that is there, has
    a row in the model's embedding. What lies on a root that is not mounted is left out.
    """
    problems = Problems()
    if not run.deferred(run.tokenizer):
        problems += _tokenizer_problems(run)
    problems += _store_problems(run)
    if problems:
        raise ConfigError(f"{where} has {problems.counted()}", problems)


def _tokenizer_problems(run: RunConfig) -> Sequence[Problem]:
    try:
        return vocabulary_problems(
            run.tokenizer, run.model.vocab_size, model_type=run.model.architecture
        )
    except AliaError as error:
        remedy = "give the directory of the model's tokenizer"
        return [Problem("tokenizer", run.tokenizer, str(error), remedy)]


def _store_problems(run: RunConfig) -> Problems:
    problems = Problems()
    for name, spec in text_sources(run).items():
        if spec.store is None or run.deferred(spec.store):
            continue
        try:
            TokenStore(Path(spec.store)).check_vocabulary(run.model.vocab_size)
        except AliaError as error:
            key = "evaluation" if name == HELD_OUT else "data.sources"
            remedy = "tokenize the source again with the tokenizer of this model"
            problems.add(f"{key}.{name}.store", spec.store, str(error), remedy)
    return problems
