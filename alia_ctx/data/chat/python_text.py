"""Python's source and literals as syntax trees: read, never run."""

from __future__ import annotations

import ast
import warnings
from typing import Any


def tree_of(text: str) -> ast.Module:
    """SyntaxError, ValueError, RecursionError or MemoryError where it is no source."""
    with warnings.catch_warnings():  # '\d' in it is nothing that a user here can mend
        warnings.simplefilter("ignore")
        return ast.parse(text)


def expression_of(text: str) -> ast.Expression:
    """As `tree_of`, of one expression."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text, mode="eval")


def literal_of(text: str) -> Any:
    """The value of a literal; TypeError too where it is none."""
    return ast.literal_eval(expression_of(text))
