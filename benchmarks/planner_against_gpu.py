"""The planner's seconds and memory beside what `gpu_layouts.py` measured.

    python benchmarks/planner_against_gpu.py docs/benchmarks/gpu-several.json
    python benchmarks/planner_against_gpu.py docs/benchmarks/gpu-several.json \
        --beside docs/benchmarks/gpu-two.json

Two constants of a machine, `cluster.efficiency` and `cluster.attention_efficiency`, are
fitted to every second row of the first file (least squares of the logarithm of seconds
over a grid of 0.01) and quoted on the others, beside the defaults of `H100-80`; on rows
`--beside` it as well, which are in no fit.

How many GPUs a row is of stands in it since `gpu_layouts.py` writes it; `--ranks` says it
of a file from before. Rows that ran out of memory are left out, and so are rows in FP8,
whose products the defaults know nothing of; both are listed.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from alia_ctx.planner.stage import StagePlan
from alia_ctx.spec.cluster import ClusterSpec
from benchmarks.gpu_layouts import Case
from benchmarks.gpu_products import LOCAL, Products
from benchmarks.gpu_program import Parser, at_least, existing_file


@dataclass(frozen=True)
class Row:
    """A case of `gpu_layouts.py` and what it took."""

    name: str
    case: Case
    tp_chunks: int
    ranks: int
    seconds: float
    gib: float

    @classmethod
    def of(cls, name: str, measured: dict[str, Any], ranks: int | None) -> Row:
        """ValueError where it cannot be told what was measured."""
        text, _, words = name.partition(" ")
        products = Products.parse(words) if words else LOCAL
        world = measured.get("ranks", ranks)
        if world is None:
            raise ValueError("it does not say of how many GPUs it is; give --ranks")
        if ranks not in (None, world):
            raise ValueError(f"it is of {world} GPU(s), and --ranks says {ranks}")
        case = Case.parse(text)
        if (problem := case.problem(world)) is not None:
            raise ValueError(problem)
        return cls(
            *(name, case, measured.get("tp_chunks", products.tp_chunks), world),
            *(float(measured["seconds"]), float(measured["peak_gib"])),
        )

    def planned(self, constants: tuple[float, float] | None = None) -> StagePlan:
        """By (efficiency, attention_efficiency), or the defaults."""
        cluster = ClusterSpec(ranks_per_node=self.ranks, memory_gib=80, overhead_gib=0)
        if constants is not None:
            cluster = replace(
                cluster, efficiency=constants[0], attention_efficiency=constants[1]
            )
        return self.case.planned(cluster, self.tp_chunks)


def fit(rows: list[Row]) -> tuple[float, float]:
    """(efficiency, attention_efficiency) that are nearest to rows' measured seconds."""
    steps = [n / 100 for n in range(40, 81)]

    def misfit(pair: tuple[float, float]) -> float:
        return sum(
            math.log(row.planned(pair).timing.total / row.seconds) ** 2 for row in rows
        )

    return min(itertools.product(steps, steps), key=misfit)


def rows_of(parser: Parser, file: Path, ranks: int | None) -> list[Row]:
    """The rows of a file; ends here where one cannot be read, and lists those left out."""
    measured: dict[str, dict[str, Any]] = parser.read(
        file, lambda path: dict(json.loads(path.read_text()))
    )
    rows = []
    for name, result in measured.items():
        if "seconds" not in result:
            print(f"{name}: not measured ({'; '.join(map(str, result.values()))})\n")
        elif result.get("fp8", "off") != "off":
            print(f"{name}: left out, as it is in FP8\n")
        else:
            try:
                rows.append(Row.of(name, result, ranks))
            except (ValueError, KeyError) as error:
                parser.error(f"{file}: {name}: {error}")
    if not rows:
        parser.error(f"{file}: it has no row that was measured")
    return rows


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=existing_file, help="what gpu_layouts.py wrote")
    parser.add_argument(
        "--beside", type=existing_file, help="another one, in no fit", nargs="+"
    )
    parser.add_argument(
        "--ranks", type=at_least(1), help="GPUs, of a file that does not say it"
    )
    options = parser.parse_args()
    rows = rows_of(parser, options.file, options.ranks)
    beside = [
        row
        for file in options.beside or ()
        for row in rows_of(parser, file, options.ranks)
    ]
    fitted = rows[::2]
    constants = fit(fitted)
    print(
        f"fitted to every second row: efficiency {constants[0]}, attention {constants[1]}\n"
    )
    print("| case | GiB | planned | seconds | by the defaults | by the fit | |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for row in (*rows, *beside):
        usual, own = row.planned(), row.planned(constants).timing.total
        gib, s = row.gib, row.seconds
        print(
            f"| {row.name} | {gib:.1f} | {usual.fullest.total:.1f} "
            f"({usual.fullest.total / gib - 1:+.1%}) | {s:.2f} "
            f"| {usual.timing.total:.2f} ({usual.timing.total / s - 1:+.0%}) "
            f"| {own:.2f} ({own / s - 1:+.0%}) | {'fitted' if row in fitted else ''} |"
        )


if __name__ == "__main__":
    main()
