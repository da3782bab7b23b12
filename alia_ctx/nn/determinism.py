"""Results that are the same to the bit when they are computed again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

# What Megatron-LM sets for its `--deterministic-mode` (megatron/training/determinism.py):
# sums over ranks in one order, products whose workspace is not shared, and no kernel of
# TransformerEngine that adds in the order in which blocks come. Each package reads its own
# once: before the first product, and before the ranks meet.
ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NCCL_ALGO": "Ring",
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
}


@contextlib.contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Within it torch, and every attention kernel that asks torch, computes what can be
    repeated to the bit; what has no such form raises RuntimeError where it is called.

    What of `ENVIRONMENT` is set by the user stays, and what is set here outlives this.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    before = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    utils: Any = torch.utils.deterministic
    filled = utils.fill_uninitialized_memory
    # With `warn_only` torch's own FlashAttention stays as it is (ATen/native/transformers).
    torch.use_deterministic_algorithms(True)
    # It would fill each new tensor with NaN, which finds faults and takes time.
    utils.fill_uninitialized_memory = False
    try:
        yield
    finally:
        utils.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before, warn_only=warn)
