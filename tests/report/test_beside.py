"""What others measured beside a run stands in its page, with its verdicts; of another
checkpoint it is named and not shown, and a file of another form is a problem.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alia_ctx.evaluation.verdicts import Verdict
from alia_ctx.report import run_page
from alia_ctx.report.facts import Beside, BesideTable
from alia_ctx.report.page import stale_results
from alia_ctx.report.verdicts import summary
from alia_ctx.workflow.beside import read_beside, write_beside
from tests.report.made_facts import HOSTILE, run
from tests.report.test_page import Reader

ROWS = [["transformers", "0 of 10"], ["measured", "10 of 10"]]
TABLE = BesideTable("Passkeys.", ["by", "163,840"], ROWS)


def document(holds: bool | None = False) -> Beside:
    verdict = Verdict("Another program answers alike", holds, "0 of 10 against 10")
    return Beside("By another program", "make it", [TABLE], [verdict], ["A note."])


def of(folder: Path, now: dict[str, object]) -> tuple[list[Beside], list[str]]:
    problems: list[str] = []
    return read_beside(folder, now, problems), problems


def test_it_comes_back_and_stands_in_the_page(tmp_path: Path) -> None:
    write_beside(tmp_path, "other", document(), {"x40": {"update": 60}})
    read, problems = of(tmp_path, {"x40": {"update": 60}})
    assert read == [document()] and not problems
    facts = run(beside=read)
    reader = Reader(run_page(facts))
    assert ["transformers", "0 of 10"] in reader.rows
    assert "A note." in reader.words
    assert "By another program" in reader.words
    assert "Does not hold: Another program answers alike" in summary(facts)
    assert "does not hold" not in summary(run(beside=[document(True)])).lower()


@pytest.mark.parametrize("now", [{"x40": {"update": 120}}, {}])
def test_of_another_checkpoint_it_is_named_alone(
    tmp_path: Path, now: dict[str, object]
) -> None:
    write_beside(tmp_path, "other", document(), {"x40": {"update": 60}})
    facts = run(beside=of(tmp_path, now)[0])
    reader = Reader(run_page(facts))
    assert ["transformers", "0 of 10"] not in reader.rows
    assert "By another program" in reader.words
    assert "Another program answers alike" not in summary(facts)
    assert any("make it measures it anew" in line for line in stale_results(facts))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"title": 1}', "\xff"]
    + [
        json.dumps(
            {
                **{"title": "t", "how": "h", "tables": [], "verdicts": []},
                **{"checkpoints": {}, "notes": []},
                **broken,
            }
        )
        for broken in (
            {"tables": {"a": 1}},
            {"tables": [{"caption": "c", "headings": ["h"], "rows": [1]}]},
            {"verdicts": [{"claim": "c", "holds": "yes", "detail": "d"}]},
            {"checkpoints": []},
            {"notes": "text"},
        )
    ],
)
def test_another_form_is_a_problem_and_no_end(tmp_path: Path, text: str) -> None:
    write_beside(tmp_path, "other", document(), {})
    (tmp_path / "beside" / "broken.json").write_bytes(text.encode("latin-1"))
    read, problems = of(tmp_path, {})
    assert read == [document()]
    assert len(problems) == 1 and "broken.json" in problems[0]


def test_its_text_is_text_of_the_page() -> None:
    hostile = Beside(HOSTILE, HOSTILE, [BesideTable(HOSTILE, [HOSTILE], [[HOSTILE]])])
    assert "<script>" not in run_page(run(beside=[hostile]))
