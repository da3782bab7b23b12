"""Megatron-Core and torch without what they say on every start, and without what they take
from the environment that is not ours, for as long as a context is entered.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

# Loggers whose warnings are about upstream's own plans, or about what a host lacks, on
# every start and every save. Errors are still heard.
_LOGGERS = (
    "megatron",
    "megatron.core.models.gpt.gpt_model",
    "torch.distributed.elastic",
    "torch.utils.cpp_extension",
    "DistributedDataParallel",
)
# Regular expressions of messages, as warnings.filterwarnings takes them.
_MESSAGES = (
    r".*(Apex|Transformer Engine).*not installed.*",
    r".*invalid escape sequence.*",
    r"full scope is deprecated.*",
    r".*MimoModelConfig is experimental.*",
    r".*\.grad attribute of a Tensor that is not a leaf.*",
)


# By which TransformerEngine's own attention is chosen, and which upstream's models assert
# to be unset or as they would set them (`_set_attention_backend` in
# megatron/core/models/common/language_module/language_module.py).
_OF_TE_ATTENTION = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")


@contextlib.contextmanager
def without_attention_variables() -> Iterator[None]:
    """Within it no choice of TransformerEngine's attention is set, which is not ours; then
    what the user had set is again.
    """
    before = {name: os.environ.pop(name, None) for name in _OF_TE_ATTENTION}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def quiet_upstream() -> Iterator[None]:
    """Upstream's and torch's loggers at ERROR and their warnings filtered; afterwards all
    is as it was.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for category in (SyntaxWarning, FutureWarning, DeprecationWarning):
            warnings.filterwarnings(
                "ignore",
                category=category,
                module=r"(megatron|torch|alia_ctx\.mcore)\b",
            )
        warnings.filterwarnings(
            "ignore", category=UserWarning, module=r"torch\.distributed\.checkpoint\b"
        )
        for message in _MESSAGES:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
