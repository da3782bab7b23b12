"""The optimizer steps as a dense loop of transformers and torch's AdamW does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import optimizer_parity

# fp32 against fp64: rounding of a weight is up to 6e-8 an update; what an update moves is
# 1e-4 of a weight and differs by less than a hundredth. Decay on norms or biases is 1e-4.
TOLERANCE = 1e-6


@pytest.mark.timeout(580)
def test_five_updates_equal_dense_adamw_on_every_layout(tmp_path: Path) -> None:
    table = optimizer_parity.differences(tmp_path)
    assert len(table) == 6 and all(len(row) == 5 for row in table.values())
    worst = {name: max(row.values()) for name, row in table.items()}
    assert max(worst.values()) < TOLERANCE, table
