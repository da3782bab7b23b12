"""One self-contained HTML page of a run, or of two side by side: facts in, text out.

Nothing here opens a file of a run, and nothing measures: what is missing is said, with
the command that makes it.
"""

from alia_ctx.report.compare import comparison_page
from alia_ctx.report.facts import Result, RunFacts, StageFacts
from alia_ctx.report.page import run_page

__all__ = ["Result", "RunFacts", "StageFacts", "comparison_page", "run_page"]
