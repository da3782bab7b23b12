"""The steps of a run, one function each; `train/run_directory.py` has their places on disk.

The whole configuration is known here and in `cli`; what lies below takes its parts.
"""

from alia_ctx.config.run import HELD_OUT
from alia_ctx.workflow.chain import check_trained, finished_checkpoint
from alia_ctx.workflow.checking import check_vocabulary
from alia_ctx.workflow.data import (
    contamination,
    few_held_out,
    open_plan,
    open_store,
    open_stores,
    pack,
    require_same_text,
    tokenize,
)
from alia_ctx.workflow.evaluation import (
    Evaluation,
    Role,
    evaluate,
    standard_evaluations,
)
from alia_ctx.workflow.exporting import export
from alia_ctx.workflow.pipeline import plan_stages, run_all
from alia_ctx.workflow.recomputing import recompute
from alia_ctx.workflow.reporting import report
from alia_ctx.workflow.starting import load_on_all_ranks
from alia_ctx.workflow.training import train

__all__ = [
    "HELD_OUT",
    "Evaluation",
    "Role",
    "check_trained",
    "check_vocabulary",
    "contamination",
    "evaluate",
    "export",
    "few_held_out",
    "finished_checkpoint",
    "load_on_all_ranks",
    "open_plan",
    "open_store",
    "open_stores",
    "pack",
    "plan_stages",
    "recompute",
    "report",
    "require_same_text",
    "run_all",
    "standard_evaluations",
    "tokenize",
    "train",
]
