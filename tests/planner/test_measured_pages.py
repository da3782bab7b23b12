"""The planner's columns in the pages of benchmarks are what it says now."""

from __future__ import annotations

import pytest

from benchmarks import planner_against_gpu
from benchmarks.measured_rows import Measured, measured_rows
from tests.paths import ROOT

PAGES = ROOT / "docs/benchmarks"


def rows_below(page: str, header: str) -> list[dict[str, str]]:
    """Of the one table with this header: cells by column."""
    _, found, rest = (PAGES / page).read_text().partition(f"{header}\n")
    assert found, header
    names = cells(header)
    return [
        dict(zip(names, cells(line), strict=True))
        for line in rest.partition("\n\n")[0].splitlines()[1:]
    ]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def measured(where: str) -> list[Measured]:
    return [row for row in measured_rows() if row.where == where]


def test_all_rows() -> None:
    assert (
        "\n".join(planner_against_gpu.table()) in (PAGES / "gpu-several.md").read_text()
    )


def test_two_gpus_against_one() -> None:
    header = (
        "| layout | recompute | chunks | tokens/s a GPU | of one GPU | exposed | all of NCCL "
        "| idle | GiB | planned | seconds | by the planner |"
    )
    shown, rows = (
        rows_below("gpu-several.md", header),
        measured("gpu-several.md, two GPUs"),
    )
    for row, cell in zip(rows, shown, strict=True):
        layout, _, _, recompute = row.case.split(":")
        assert cell["layout"] in ("one GPU" if row.gpus == 1 else "", layout.upper())
        assert cell["recompute"] == recompute
        assert cell["chunks"] in ("", str(row.tp_chunks))
        assert float(cell["seconds"]) == pytest.approx(row.seconds, abs=6e-4)
        assert cell["planned"] == f"{row.planned_gib():.1f}"
        assert cell["by the planner"] == f"{row.planned_seconds():.3f}"


HEADERS = {
    "the planner's sum": "| layers | context | recompute | weights, gradients, optimizer "
    "| saved by the forward | more at the peak | peak of compute | peak of the optimizer "
    "| the planner's sum |",
    "planned": "| layers | inputs on the host | s | of the first | tokens/s | TFLOP/s "
    "| of the matrix rate | peak GiB | planned | on the host |",
}


@pytest.mark.parametrize("column", HEADERS)
def test_memory_of_one_gpu(column: str) -> None:
    """Each row beside those measured rows that have its peak."""
    known = [row for row in measured_rows() if row.gpus == 1 and row.gib]
    shown = rows_below("gpu.md", HEADERS[column])
    for cell in shown:
        peaks = [
            float(cell[name].split()[0])
            for name in ("peak of compute", "peak of the optimizer", "peak GiB")
            if name in cell
        ]
        planned = {
            f"{row.planned_gib():.1f}"
            for row in known
            if row.case.startswith("dp1:")
            and row.case.split(":")[2] == cell["layers"]
            and row.gib == pytest.approx(max(peaks), abs=0.06)
        }
        assert planned == {cell[column]}, cell
    assert len(shown) == 4
