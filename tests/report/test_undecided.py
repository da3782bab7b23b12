"""What a page says where something is not known, and of two runs whose settings are alike."""

from __future__ import annotations

import numpy as np

from alia_ctx.data.packing import PackedRow
from alia_ctx.evaluation.positions import PositionBands
from alia_ctx.report import Result, comparison_page
from alia_ctx.report.verdicts import summary, verdicts
from tests.report.made_facts import bands, results, run
from tests.report.test_page import Reader


def test_what_is_not_decided_is_no_agreement() -> None:
    """Losses of one document decide nothing, however well passkeys are found."""
    one = [
        {"first": 128, "last": 5120, "documents": 1, "gain": 0, "standard_error": None}
    ]
    changed = {
        "positions": [
            Result("base", "positions", 128, bands(3.0, 3.2, documents=1).to_json()),
            Result("x40", "positions", 5120, bands(3.0, 2.7, documents=1).to_json()),
        ],
        "blocks": [Result("x40", "blocks", 5120, {"block": 128, "bands": one})],
    }
    for name, made in changed.items():
        others = [r for r in results() if r.evaluator != name]
        facts = run(results=[*others, *made])
        open_claims = [v.claim for v in verdicts(facts) if v.holds is None]
        assert open_claims and all(claim in summary(facts) for claim in open_claims)
        assert "All that was measured" not in summary(facts)


def test_what_was_measured_of_other_models_says_nothing_of_the_last() -> None:
    for name in ("positions", "blocks", "passkey"):
        others = [r for r in results() if r.evaluator != name]
        of_base = [r for r in results() if r.evaluator == name and r.model == "base"]
        assert f"not known without: {name}" in summary(run(results=others + of_base))
    edges = PositionBands((0, 256, 5120))
    edges.add(PackedRow.from_documents([np.arange(5120)], length=5120), np.ones(5120))
    odd = Result("x40", "positions", 5120, edges.to_json())
    others = [r for r in results() if (r.model, r.evaluator) != ("x40", "positions")]
    assert "not known without: positions" in summary(run(results=[*others, odd]))


def test_settings_of_two_runs_stand_in_their_own_columns() -> None:
    first = "data there, of others: see there, and here"
    a, b = run(config={"notes": first}), run(config={"notes": "there, "})
    rows = Reader(comparison_page(a, b)).rows
    assert ["notes", first, "there,"] in rows
    long = "x" * 300
    a, b = run(config={"notes": f"{long} one"}), run(config={"notes": f"{long} two"})
    [row] = [r for r in Reader(comparison_page(a, b)).rows if r and r[0] == "notes"]
    assert row[1].endswith("one") and row[2].endswith("two")
