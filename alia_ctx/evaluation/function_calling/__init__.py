"""Function calls by the Berkeley Function Calling Leaderboard: cases, verdicts, table.

The rules are those of the package `bfcl-eval` (Apache-2.0), whose data is read; the
code is our own, and `benchmarks/bfcl_agreement.py` compares the two.
"""

from alia_ctx.evaluation.function_calling.answers import (
    Answer,
    Calls,
    calls_of,
    reasoning_and_words,
)
from alia_ctx.evaluation.function_calling.cases import (
    CATEGORIES,
    Case,
    CaseSet,
    read_cases,
)
from alia_ctx.evaluation.function_calling.checker import Verdict, check_calls
from alia_ctx.evaluation.function_calling.ledger import AnswerLedger
from alia_ctx.evaluation.function_calling.multi_turn import read_multi_turn
from alia_ctx.evaluation.function_calling.release import are_the_benchmarks
from alia_ctx.evaluation.function_calling.remarks import (
    call_remarks,
    public_names,
    suite_name,
)
from alia_ctx.evaluation.function_calling.scores import (
    MULTI_TURN,
    ROWS,
    Score,
    score_answers,
    summaries,
)
from alia_ctx.evaluation.function_calling.table import (
    calls_markdown,
    read_scores,
    score_markdown,
    score_table,
    score_tables,
)
from alia_ctx.evaluation.function_calling.tools import FunctionNames, tools_of

__all__ = [
    "CATEGORIES",
    "MULTI_TURN",
    "ROWS",
    "Answer",
    "AnswerLedger",
    "Calls",
    "Case",
    "CaseSet",
    "FunctionNames",
    "Score",
    "Verdict",
    "are_the_benchmarks",
    "call_remarks",
    "calls_markdown",
    "calls_of",
    "check_calls",
    "public_names",
    "read_cases",
    "read_multi_turn",
    "read_scores",
    "reasoning_and_words",
    "score_answers",
    "score_markdown",
    "score_table",
    "score_tables",
    "suite_name",
    "summaries",
    "tools_of",
]
