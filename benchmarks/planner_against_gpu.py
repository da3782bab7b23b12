"""The planner's seconds and memory beside what `gpu_layouts.py` measured.

    python benchmarks/planner_against_gpu.py docs/benchmarks/gpu-several.json

Two constants of a machine, `cluster.efficiency` and `cluster.attention_efficiency`, are
fitted to every second row (least squares of the logarithm of seconds over a grid of
0.01) and quoted on the others, beside the defaults of `H100-80`.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from alia_ctx.spec.cluster import ClusterSpec
from benchmarks.gpu_layouts import Case

RANKS = 4
CLUSTER = ClusterSpec(ranks_per_node=RANKS, memory_gib=80, overhead_gib=0)


def seconds(text: str, efficiency: float, attention: float) -> float:
    cluster = replace(CLUSTER, efficiency=efficiency, attention_efficiency=attention)
    return Case.parse(text).planned(cluster).timing.total


def fit(rows: dict[str, float]) -> tuple[float, float]:
    """(efficiency, attention_efficiency) that are nearest to rows' measured seconds."""
    steps = [n / 100 for n in range(40, 81)]

    def misfit(pair: tuple[float, float]) -> float:
        return sum(
            math.log(seconds(text, *pair) / took) ** 2 for text, took in rows.items()
        )

    return min(itertools.product(steps, steps), key=misfit)


def main(path: Path) -> None:
    measured: dict[str, Any] = json.loads(path.read_text())
    took = {text: float(row["seconds"]) for text, row in measured.items()}
    fitted = dict(list(took.items())[::2])
    constants = fit(fitted)
    print(
        f"fitted to every second row: efficiency {constants[0]}, attention {constants[1]}\n"
    )
    print("| case | GiB | planned | seconds | by the defaults | by the fit | |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for text, row in measured.items():
        usual, own = Case.parse(text).planned(CLUSTER), seconds(text, *constants)
        gib, s = row["peak_gib"], took[text]
        print(
            f"| {text} | {gib:.1f} | {usual.fullest.total:.1f} "
            f"({usual.fullest.total / gib - 1:+.1%}) | {s:.2f} "
            f"| {usual.timing.total:.2f} ({usual.timing.total / s - 1:+.0%}) "
            f"| {own:.2f} ({own / s - 1:+.0%}) | {'fitted' if text in fitted else ''} |"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
