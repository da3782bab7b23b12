"""One stage evaluated beside the report's comparison, on text that is short for another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alia_ctx import workflow
from alia_ctx.config.load import load_run
from alia_ctx.data.tokens import write_store
from alia_ctx.errors import DataError
from tests.config.test_places import changed
from tests.small_run import write_run


def test_documents_as_long_as_the_context_that_is_asked_for(tmp_path: Path) -> None:
    """The longest context is 256; no held-out document has more than 100 tokens."""
    path = write_run(tmp_path, tokens=512)
    starts = {100: 4, 40: 5, 90: 6}  # copies of one would be one
    documents = [np.arange(at, at + length) for length, at in starts.items()]
    write_store(tmp_path / "brief", documents, 200)
    changed(path, evaluation__held_out={"store": str(tmp_path / "brief")})
    run = load_run(path, stages=["short"])
    workflow.pack(run, "short")
    workflow.train(run, "short")
    short = workflow.evaluation_task(run, ["short"], [64], ["positions"])
    bands = workflow.measure_models(short).positions()["short at 64"]
    assert [band.tokens for band in bands.bands()] == [2 * 63, 0]
    too_long = workflow.evaluation_task(run, ["short"], [128], ["positions"])
    with pytest.raises(DataError, match=r"no document of .* has 128 tokens"):
        workflow.measure_models(too_long)
