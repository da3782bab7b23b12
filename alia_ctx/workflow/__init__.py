"""The steps of a run, one function each; `train/run_directory.py` has their places on disk.

The whole configuration is known here and in `cli`; what lies below takes its parts.
"""

from alia_ctx.config.run import HELD_OUT
from alia_ctx.workflow.ablation import Ranking, ablate
from alia_ctx.workflow.chain import (
    BestCheckpoint,
    best_checkpoint,
    check_trained,
    constants_notes,
    finished_checkpoint,
    unknown_tokenizer,
)
from alia_ctx.workflow.checking import check_all, check_end, check_vocabulary
from alia_ctx.workflow.comparing_rope import base_rope, compare_rope, left_out_ropes
from alia_ctx.workflow.evaluation import (
    EVALUATORS,
    Evaluated,
    Evaluation,
    EvaluationTask,
    Role,
    measure_models,
)
from alia_ctx.workflow.evaluation_tasks import (
    evaluation_task,
    standard_lines,
    standard_task,
)
from alia_ctx.workflow.exporting import export
from alia_ctx.workflow.named_models import Asked, models_task
from alia_ctx.workflow.pipeline import run_all
from alia_ctx.workflow.planning import PlanQuestion, draw_update, plan_stages
from alia_ctx.workflow.plans import contamination, not_seen, open_plan, pack
from alia_ctx.workflow.recomputing import recompute
from alia_ctx.workflow.reporting import (
    keep_page,
    lines_of,
    page_verdicts,
    report,
    text_report,
    write_page,
)
from alia_ctx.workflow.starting import load_on_all_ranks, task_on_all_ranks
from alia_ctx.workflow.stores import (
    few_held_out,
    open_store,
    open_stores,
    require_same_text,
    tokenize,
)
from alia_ctx.workflow.training import train

__all__ = [
    "EVALUATORS",
    "HELD_OUT",
    "Asked",
    "BestCheckpoint",
    "Evaluated",
    "Evaluation",
    "EvaluationTask",
    "PlanQuestion",
    "Ranking",
    "Role",
    "ablate",
    "base_rope",
    "best_checkpoint",
    "check_all",
    "check_end",
    "check_trained",
    "check_vocabulary",
    "compare_rope",
    "constants_notes",
    "contamination",
    "draw_update",
    "evaluation_task",
    "export",
    "few_held_out",
    "finished_checkpoint",
    "keep_page",
    "left_out_ropes",
    "lines_of",
    "load_on_all_ranks",
    "measure_models",
    "models_task",
    "not_seen",
    "open_plan",
    "open_store",
    "open_stores",
    "pack",
    "page_verdicts",
    "plan_stages",
    "recompute",
    "report",
    "require_same_text",
    "run_all",
    "standard_lines",
    "standard_task",
    "task_on_all_ranks",
    "text_report",
    "tokenize",
    "train",
    "unknown_tokenizer",
    "write_page",
]
