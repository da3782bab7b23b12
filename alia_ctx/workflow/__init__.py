"""The steps of a run, one function each; `train/run_directory.py` has their places on disk.

The whole configuration is known here and in `cli`; what lies below takes its parts. Each
step is imported when it is asked for: `check` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from alia_ctx.workflow.checking import (
        check_all,
        check_end,
        check_vocabulary,
        gpu_notes,
    )
    from alia_ctx.workflow.comparing_rope import (
        base_rope,
        compare_rope,
        left_out_ropes,
        rope_in_words,
        rope_notes,
    )
    from alia_ctx.workflow.delimiter_settings import delimiter_notes
    from alia_ctx.workflow.doctor import examine
    from alia_ctx.workflow.epochs import epoch_notes
    from alia_ctx.workflow.evaluation import (
        EVALUATORS,
        EvaluationTask,
        measure_models,
    )
    from alia_ctx.workflow.evaluation_results import Evaluated, Evaluation, Role
    from alia_ctx.workflow.evaluation_tasks import (
        evaluation_task,
        standard_lines,
        standard_task,
    )
    from alia_ctx.workflow.exporting import export
    from alia_ctx.workflow.importing import base_to_import, how_to_import
    from alia_ctx.workflow.inspecting import inspect_data
    from alia_ctx.workflow.launching import Launched, launch
    from alia_ctx.workflow.named_models import Asked, models_task, read_weights_once
    from alia_ctx.workflow.pipeline import run_all
    from alia_ctx.workflow.plan_question import PlanQuestion
    from alia_ctx.workflow.plan_work import plan_notes
    from alia_ctx.workflow.planning import (
        draw_update,
        plan_document,
        plan_stages,
    )
    from alia_ctx.workflow.plans import not_seen, open_plan, pack
    from alia_ctx.workflow.readiness import warmup_notes
    from alia_ctx.workflow.recomputing import recompute
    from alia_ctx.workflow.reporting import (
        keep_page,
        lines_of,
        page_verdicts,
        report,
        stale_results,
        text_report,
        write_page,
    )
    from alia_ctx.workflow.standing import RunStatus, StageStatus, run_status
    from alia_ctx.workflow.starting import load_on_all_ranks, task_on_all_ranks
    from alia_ctx.workflow.stores import (
        few_held_out,
        open_store,
        open_stores,
        require_same_text,
        tokenize,
    )
    from alia_ctx.workflow.training import train

# Name -> the module that has it.
_MODULES = {
    name: module
    for module, names in {
        "config.run": ("HELD_OUT",),
        "workflow.ablation": (
            "Ranking",
            "ablate",
        ),
        "workflow.chain": (
            "BestCheckpoint",
            "best_checkpoint",
            "check_trained",
            "constants_notes",
            "finished_checkpoint",
            "unknown_tokenizer",
        ),
        "workflow.checking": (
            "check_all",
            "check_end",
            "check_vocabulary",
            "gpu_notes",
        ),
        "workflow.comparing_rope": (
            "base_rope",
            "compare_rope",
            "left_out_ropes",
            "rope_in_words",
            "rope_notes",
        ),
        "workflow.delimiter_settings": ("delimiter_notes",),
        "workflow.doctor": ("examine",),
        "workflow.epochs": ("epoch_notes",),
        "workflow.evaluation": (
            "EVALUATORS",
            "EvaluationTask",
            "measure_models",
        ),
        "workflow.evaluation_results": (
            "Evaluated",
            "Evaluation",
            "Role",
        ),
        "workflow.evaluation_tasks": (
            "evaluation_task",
            "standard_lines",
            "standard_task",
        ),
        "workflow.exporting": ("export",),
        "workflow.importing": (
            "base_to_import",
            "how_to_import",
        ),
        "workflow.inspecting": ("inspect_data",),
        "workflow.launching": (
            "Launched",
            "launch",
        ),
        "workflow.named_models": (
            "Asked",
            "models_task",
            "read_weights_once",
        ),
        "workflow.pipeline": ("run_all",),
        "workflow.plan_question": ("PlanQuestion",),
        "workflow.planning": (
            "draw_update",
            "plan_document",
            "plan_stages",
        ),
        "workflow.plan_work": ("plan_notes",),
        "workflow.plans": (
            "not_seen",
            "open_plan",
            "pack",
        ),
        "workflow.readiness": ("warmup_notes",),
        "workflow.recomputing": ("recompute",),
        "workflow.reporting": (
            "keep_page",
            "lines_of",
            "page_verdicts",
            "stale_results",
            "report",
            "text_report",
            "write_page",
        ),
        "workflow.standing": (
            "RunStatus",
            "StageStatus",
            "run_status",
        ),
        "workflow.starting": (
            "load_on_all_ranks",
            "task_on_all_ranks",
        ),
        "workflow.stores": (
            "few_held_out",
            "open_store",
            "open_stores",
            "require_same_text",
            "tokenize",
        ),
        "workflow.training": ("train",),
    }.items()
    for name in names
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"alia_ctx.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


__all__ = [
    "EVALUATORS",
    "HELD_OUT",
    "Asked",
    "BestCheckpoint",
    "Evaluated",
    "Evaluation",
    "EvaluationTask",
    "Launched",
    "PlanQuestion",
    "Ranking",
    "Role",
    "RunStatus",
    "StageStatus",
    "ablate",
    "base_rope",
    "base_to_import",
    "best_checkpoint",
    "check_all",
    "check_end",
    "check_trained",
    "check_vocabulary",
    "compare_rope",
    "constants_notes",
    "delimiter_notes",
    "draw_update",
    "epoch_notes",
    "evaluation_task",
    "examine",
    "export",
    "few_held_out",
    "finished_checkpoint",
    "gpu_notes",
    "how_to_import",
    "inspect_data",
    "keep_page",
    "launch",
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
    "plan_document",
    "plan_notes",
    "plan_stages",
    "read_weights_once",
    "recompute",
    "report",
    "require_same_text",
    "rope_in_words",
    "rope_notes",
    "run_all",
    "run_status",
    "stale_results",
    "standard_lines",
    "standard_task",
    "task_on_all_ranks",
    "text_report",
    "tokenize",
    "train",
    "unknown_tokenizer",
    "warmup_notes",
    "write_page",
]
