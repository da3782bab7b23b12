"""What a precision of the configuration is in torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from alia_ctx.spec.execution import Precision

# Of weights and activations; sums and the optimizer's state are fp32 in any case.
DTYPES: Mapping[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
}
