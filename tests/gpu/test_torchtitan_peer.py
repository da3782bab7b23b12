"""torchtitan's attention on a GPU keeps documents apart, to the bit, by either kernel."""

from __future__ import annotations

import pytest

from tests.benchmarks.test_torchtitan_peer import separated
from tests.gpu.installed import is_installed

pytestmark = [
    pytest.mark.gpu(1),
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not is_installed("torchtitan"), reason="torchtitan is not installed"
    ),
]


@pytest.mark.parametrize("peer", ["torchtitan", "torchtitan_flash"])
def test_documents_are_kept_apart(peer: str) -> None:
    separated([peer])
