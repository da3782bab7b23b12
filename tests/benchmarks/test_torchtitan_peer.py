"""torchtitan as a peer: it computes what transformers' Llama does, and keeps documents apart."""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks.gpu_peers import KNOWS_DOCUMENTS
from tests.module_result import result_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("torchtitan") is None,
        reason="torchtitan is not installed",
    ),
]
# Relative. Both sides round to fp32, in another order of operations; weights eight times
# the usual size make sums in which much cancels.
LOSS, GRADIENT = 1e-6, 1e-5


def test_it_computes_what_transformers_does() -> None:
    """Through a whole `measure`, on one document with torch's attention and with its own
    mask, and on packed documents, which transformers gets one by one.
    """
    found = result_of("tests.benchmarks.torchtitan_peers", timeout=500)
    assert len(found) == 3
    for result in found.values():
        loss, wanted = result["losses"]
        assert loss == pytest.approx(wanted, rel=LOSS)
        assert wanted > 5.0  # ln 96 is 4.56: the weights have a say
        parameters, counted = result["parameters"]
        assert parameters == counted
        assert max(result["gradients"].values()) < GRADIENT


def separated(peers: list[str]) -> None:
    found = result_of("tests.benchmarks.torchtitan_documents", *peers, timeout=550)
    for peer in peers:
        first, second = found[peer]["outputs"]
        assert first > 0.1
        assert second == 0.0
        at_first, at_second = found[peer]["gradients"]
        assert at_first == 0.0
        assert at_second > 1e-3
        mixed = found[f"{peer}, together"]
        assert min(mixed["outputs"]) > 0.1
        assert min(mixed["gradients"]) > 1e-3


def test_documents_are_kept_apart() -> None:
    peers = [p for p in KNOWS_DOCUMENTS if p.startswith("torchtitan")]
    assert peers
    separated(peers)
