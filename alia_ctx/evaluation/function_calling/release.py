"""The files of the benchmark's release that our rules are compared with: questions in the
same form may be anybody's, and a score of them is none of BFCL's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RELEASE = "2026.3.23"  # of the package bfcl-eval
# xxh3_128 of each file, as `CaseSet.statement` has them.
_FILES = {
    "BFCL_v4_simple_python.json": "1cf7bb94b45b1c905061bad19e5c1270",
    "BFCL_v4_simple_java.json": "f1f162e772c5c246bd0636f3aa9feff6",
    "BFCL_v4_simple_javascript.json": "1dc21e52049a07ea971cffd39286502b",
    "BFCL_v4_multiple.json": "533fd5841891da66d93d5ac79b79c8b5",
    "BFCL_v4_parallel.json": "9cfc0fe43ece34c6a3cb89a62c3a00ca",
    "BFCL_v4_parallel_multiple.json": "dfea7625d0a2e66b9cda774e0a479a62",
    "BFCL_v4_live_simple.json": "b8ddc9d92be174bfb9552d90fbcd52c3",
    "BFCL_v4_live_multiple.json": "abb1f06772e6395042fe02c065271c0a",
    "BFCL_v4_live_parallel.json": "a6bcc163539e884a62c31d339f26d8b3",
    "BFCL_v4_live_parallel_multiple.json": "5b3566e2aba5eb6f44388b2605ecb948",
    "BFCL_v4_live_relevance.json": "dfa6c409a89f744fa1664a4d31a95328",
    "BFCL_v4_irrelevance.json": "4889b569ba3cd21bfaa89af26e5a9225",
    "BFCL_v4_live_irrelevance.json": "87f2cee9bcd7543347cafbaf6c0727b2",
    "possible_answer/BFCL_v4_simple_python.json": "a6a30171b28aa5ecf5ef1e6fa58ed925",
    "possible_answer/BFCL_v4_simple_java.json": "1ee8d77979ef0a1c935234e6014e1103",
    "possible_answer/BFCL_v4_simple_javascript.json": "84cfa4219e16272106fe83a85dc43939",
    "possible_answer/BFCL_v4_multiple.json": "9db3150e5c0cd05c1443425229e90c9d",
    "possible_answer/BFCL_v4_parallel.json": "703b43b8df1db5ff0692bf7b9b85c57d",
    "possible_answer/BFCL_v4_parallel_multiple.json": "8fdc94ab6d4e0479509b2d3b9a5f2754",
    "possible_answer/BFCL_v4_live_simple.json": "6c84d9429be90d21d768e25d75885a66",
    "possible_answer/BFCL_v4_live_multiple.json": "c6b39e4fdce2984fa75447e5d509afb0",
    "possible_answer/BFCL_v4_live_parallel.json": "692a9fca5fc8b22579105fd8f32f9db6",
    "possible_answer/BFCL_v4_live_parallel_multiple.json": "5c8f2be961f16056fc7d89c15eda3d1e",
}


def are_the_benchmarks(statement: Mapping[str, Any]) -> bool:
    """Whether all files that a `CaseSet` states are those of `RELEASE`."""
    files = statement.get("files") or {}
    return bool(files) and files.items() <= _FILES.items()
