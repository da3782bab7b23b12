"""What results say of models in words: what each costs and brings against the base, and
claims that hold or do not.
"""

from alia_ctx.evaluation.verdicts.changes import verdicts
from alia_ctx.evaluation.verdicts.claims import (
    Chain,
    Verdict,
    claims,
    judge,
    own_bands,
)
from alia_ctx.evaluation.verdicts.measured import Measured

__all__ = ["Chain", "Measured", "Verdict", "claims", "judge", "own_bands", "verdicts"]
