"""When a stage may end, as the lines before its first update say it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from alia_ctx.config.load import load_run
from alia_ctx.workflow.training_block import _end
from tests.small_run import write_run

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("options", "host", "told"),
    [
        ([], True, "no estimate yet: cluster describes a GPU, and a host computes"),
        ([], False, "by the planner, not measured"),
        (["cluster.peak_fp32_tflops=0.1"], True, "by the planner, not measured"),
    ],
)
def test_no_gpu_s_time_for_a_host(
    options: list[str], host: bool, told: str, tmp_path: Path
) -> None:
    run = load_run(write_run(tmp_path), options)
    assert told in _end(run, "short", 12, NOW, host)
