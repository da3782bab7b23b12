"""The steps of a run, one function each, with their places on disk:

OUTPUT/tokens/SOURCE.{bin,idx}       tokenize
OUTPUT/plans/STAGE/                  pack
OUTPUT/stages/STAGE/checkpoints/     train
OUTPUT/evaluation/NAME.json          evaluate
OUTPUT/report/                       report
OUTPUT/hf/STAGE/                     export
"""

from alia_ctx.workflow.data import (
    HELD_OUT,
    contamination,
    open_plan,
    open_store,
    open_stores,
    pack,
    tokenize,
)
from alia_ctx.workflow.evaluation import (
    Evaluation,
    evaluate,
    recompute,
    report,
    standard_evaluations,
)
from alia_ctx.workflow.pipeline import export, plan_stages, run_all
from alia_ctx.workflow.training import train

__all__ = [
    "HELD_OUT",
    "Evaluation",
    "contamination",
    "evaluate",
    "export",
    "open_plan",
    "open_store",
    "open_stores",
    "pack",
    "plan_stages",
    "recompute",
    "report",
    "run_all",
    "standard_evaluations",
    "tokenize",
    "train",
]
