"""Can a model find what a long text told it? Tasks of exact length, made from a seed,
scored without generating.

The forms and their parameters are those of RULER (Hsieh et al., arXiv 2404.06654); the
sentences, in five languages, and the generator are ours. See `tasks.RULER` for the
table, `samples.make_sample` for a row.
"""

from alia_ctx.evaluation.retrieval.haystack import Haystack
from alia_ctx.evaluation.retrieval.languages import LANGUAGES
from alia_ctx.evaluation.retrieval.samples import (
    NoSampleError,
    Sample,
    TooShortError,
    UnspelledError,
    make_sample,
)
from alia_ctx.evaluation.retrieval.scores import RetrievalScores
from alia_ctx.evaluation.retrieval.suite import (
    AnswerHits,
    RetrievalSettings,
    SampleRows,
    SampleSpec,
    passkey_specs,
    ruler_specs,
)
from alia_ctx.evaluation.retrieval.tasks import PASSKEY, RULER, TASKS, Task

__all__ = [
    "LANGUAGES",
    "PASSKEY",
    "RULER",
    "TASKS",
    "AnswerHits",
    "Haystack",
    "NoSampleError",
    "RetrievalScores",
    "RetrievalSettings",
    "Sample",
    "SampleRows",
    "SampleSpec",
    "Task",
    "TooShortError",
    "UnspelledError",
    "make_sample",
    "passkey_specs",
    "ruler_specs",
]
