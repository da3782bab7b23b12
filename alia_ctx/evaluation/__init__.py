"""What long context does to the loss:

accumulate it by position in the document, compare models, report.
"""

from alia_ctx.evaluation.positions import (
    BandLoss,
    PairedDifference,
    PositionBands,
    paired_difference,
)
from alia_ctx.evaluation.report import Report, Verdict, judge, loss_table, write_report

__all__ = [
    "BandLoss",
    "PairedDifference",
    "PositionBands",
    "Report",
    "Verdict",
    "judge",
    "loss_table",
    "paired_difference",
    "write_report",
]
