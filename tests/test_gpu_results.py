"""What programs on several GPUs leave for the tests that started them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gpu.programs import write_results


def test_the_first_rank_alone_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results.json"
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        write_results(out, {"rank": rank})
    assert json.loads(out.read_text()) == {"rank": 0}
    with pytest.raises(FileExistsError):
        write_results(out, {"rank": 0})
