"""Which kernel TransformerEngine's DotProductAttention takes: by itself cuDNN's on Hopper and
later, wherever that can (`get_attention_backend` of its attention's `utils`, 2.12), and
FlashAttention where it is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from unittest import mock

from benchmarks.row_attention import UnableError

# Read at each choice, by TransformerEngine and, once a model is built, by Megatron-Core.
FLASH_ALONE = {
    "NVTE_FLASH_ATTN": "1",
    "NVTE_FUSED_ATTN": "0",
    "NVTE_UNFUSED_ATTN": "0",
}


def package_words(name: str) -> str:
    """A package and its version."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:  # a folder on the path
        return name


def _chosen() -> dict[str, Any]:
    """What was chosen in the last call: DotProductAttention keeps that in its module."""
    package = "transformer_engine.pytorch.attention.dot_product_attention"
    chosen: dict[str, Any] = importlib.import_module(package)._attention_backends
    return chosen


def te_backend() -> str:
    """TransformerEngine's version, and the kernel of the last call of its attention."""
    chosen = _chosen()
    if chosen.get("use_fused_attention"):
        kernel = "cuDNN"
    elif chosen.get("use_flash_attention"):
        kernel = f"flash-attn {chosen.get('flash_attention_backend')}"
    else:
        kernel = "unfused"
    return f"{package_words('transformer_engine')}, {kernel}"


def require_flash() -> None:
    """UnableError where the last call was not FlashAttention's."""
    if not _chosen().get("use_flash_attention"):
        raise UnableError(f"FlashAttention was asked for, and it is {te_backend()}")


@contextlib.contextmanager
def flash_alone() -> Iterator[None]:
    """TransformerEngine may take FlashAttention and nothing else as long as this is entered."""
    chosen = _chosen()
    # It keeps a choice for as long as the arguments stay the same.
    chosen["backend_selection_requires_update"] = True
    try:
        with mock.patch.dict(os.environ, FLASH_ALONE):
            yield
    finally:
        chosen["backend_selection_requires_update"] = True
