"""What is measured of a model on held-out text, accumulated, compared and reported."""

from alia_ctx.evaluation.evaluator import Evaluator
from alia_ctx.evaluation.positions import (
    BandLoss,
    PairedDifference,
    PositionBands,
    paired_difference,
)
from alia_ctx.evaluation.report import Report, loss_table, write_report
from alia_ctx.evaluation.verdicts import Verdict, judge

__all__ = [
    "BandLoss",
    "Evaluator",
    "PairedDifference",
    "PositionBands",
    "Report",
    "Verdict",
    "judge",
    "loss_table",
    "paired_difference",
    "write_report",
]
