"""Documents that something beside the run's own evaluation measured, for its page:
OUTPUT/beside/NAME.json, written by a program that knows what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alia_ctx.errors import DataError
from alia_ctx.evaluation.verdicts import Verdict
from alia_ctx.files import write_json
from alia_ctx.identity import IdentityError, differences, statement
from alia_ctx.report.facts import Beside, BesideTable
from alia_ctx.train.run_directory import RunDirectory
from alia_ctx.workflow.reading import read_json

_REMEDY = "make it again with what wrote it, or move it away"


def write_beside(
    root: Path, name: str, document: Beside, checkpoints: Mapping[str, Any]
) -> None:
    """Write `document` as OUTPUT/beside/NAME.json; `root` is OUTPUT.

    checkpoints: `checkpoint_statement` of what was measured, by stage. While a stage's
    newest checkpoint is another one, the page names the document and does not show it.
    """
    folder = RunDirectory(root).beside
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "title": document.title,
        "how": document.how,
        "tables": [vars(table) for table in document.tables],
        "verdicts": [vars(verdict) for verdict in document.verdicts],
        "notes": document.notes,
        "checkpoints": checkpoints,
    }
    write_json(folder / f"{name}.json", statement(content))


def read_beside(
    root: Path, statements: Mapping[str, Any], problems: list[str]
) -> list[Beside]:
    """The documents below `root`, in the order of their names; one that is broken is a
    line in `problems`. `statements`: of the checkpoints that are there now, by stage.
    """
    documents = []
    for path in sorted(RunDirectory(root).beside.glob("*.json")):
        try:
            content = read_json(path, f"the document {path}", _REMEDY)
            documents.append(_document(path, content, statements))
        except (DataError, IdentityError) as error:
            problems.append(" ".join(str(error).split()))
    return documents


def _document(path: Path, content: Any, statements: Mapping[str, Any]) -> Beside:
    try:
        differing = [
            difference
            for stage, of in content["checkpoints"].items()
            for difference in _differences(stage, of, statements.get(stage))
        ]
        return Beside(
            title=_text(content["title"]),
            how=_text(content["how"]),
            tables=[
                BesideTable(
                    _text(table["caption"]),
                    list(map(_text, _listed(table["headings"]))),
                    [list(map(str, _listed(row))) for row in _listed(table["rows"])],
                )
                for table in _listed(content["tables"])
            ],
            verdicts=[_verdict(verdict) for verdict in _listed(content["verdicts"])],
            notes=list(map(_text, _listed(content["notes"]))),
            differs=tuple(differing),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: is no document of what was measured beside a run ({error!r}); "
            f"{_REMEDY}"
        ) from error


def _differences(stage: str, of: Any, now: Any) -> Sequence[str]:
    if now is None:
        return [f"there is no checkpoint of {stage} here, so it may be of another"]
    return differences(of, now)


def _verdict(content: Any) -> Verdict:
    holds = content["holds"]
    if holds not in (True, False, None):
        raise ValueError(f"holds is {holds!r}")
    return Verdict(_text(content["claim"]), holds, _text(content["detail"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value
