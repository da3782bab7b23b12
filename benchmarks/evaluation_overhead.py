"""Evaluation of held-out documents over their forward passes alone, paired in one run.

    python benchmarks/evaluation_overhead.py [--documents 64] [--context 32768]

Both read the same rows with the same engine. The bare loop calls the forward of the
engine's module and sums its losses; the evaluation is `alia-ctx evaluate`'s: it makes the
rows of a token store, reads hits and losses back, and counts them by position, source and
document. Documents alternate, and so does which comes first; gathering and merging over
ranks is on the evaluation's side at every document. The ratio is of the sums: of CPU time of
this process on a host, whose cores others may use, of wall time on a GPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pages import heading, table

from alia_ctx.config.run import EngineConfig
from alia_ctx.data.tokens import write_store
from alia_ctx.evaluation.held_out import StoredText, held_out_rows
from alia_ctx.evaluation.positions import PositionBands
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec
from alia_ctx.workflow.measuring import measure

VOCABULARY = 1024


def make_engine(context: int, hidden: int, layers: int) -> MegatronEngine:
    model = ModelSpec(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=hidden // 2,
        vocab_size=VOCABULARY,
    )
    rope = RopeSpec("default", 10_000.0)
    engine = EngineConfig(precision="fp32")
    return MegatronEngine(model, rope, context, Layout(), engine, None)


def clock() -> float:
    """Seconds of CPU time of this process, or of wall time once the GPU is idle."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def compare(folder: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    """Seconds of (the forward passes alone, the evaluation)."""
    generator = np.random.default_rng(0)
    texts = (
        generator.integers(0, VOCABULARY, arguments.context)
        for _ in range(arguments.documents)
    )
    text = StoredText(write_store(folder / "text", texts, VOCABULARY))
    edges = (0, arguments.context // 8, arguments.context)
    with Distributed(EngineConfig(precision="fp32")):
        engine = make_engine(arguments.context, arguments.hidden, arguments.layers)
        rows = held_out_rows(
            text,
            context=arguments.context,
            length=arguments.context,
            documents=arguments.documents,
        )
        batches = [engine.passes.batch(rows[n].row) for n in range(len(rows))]
        bands = partial(PositionBands, edges)
        seconds = {"forward": 0.0, "evaluation": 0.0}

        def forward(number: int) -> None:
            with torch.no_grad():
                engine.passes.batches([batches[number]], 1, forward_only=True)

        def evaluation(number: int) -> None:
            measure(engine, rows[number : number + 1], bands)

        forward(0)  # the first pass takes memory
        for number in range(len(rows)):
            steps = [("forward", forward), ("evaluation", evaluation)]
            for name, step in steps if number % 2 else reversed(steps):
                started = clock()
                step(number)
                seconds[name] += clock() - started
    return seconds["forward"], seconds["evaluation"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--context", type=int, default=32_768)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--layers", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        forward, evaluation = compare(Path(folder), arguments)
    print(heading("Evaluation over its forward passes alone", "torch", "megatron-core"))
    print(
        f"{arguments.documents} documents of {arguments.context:,} tokens, a model of "
        f"{arguments.layers} layer(s) of width {arguments.hidden}, one rank.\n"
    )
    columns = [
        "",
        "CPU seconds" if not torch.cuda.is_available() else "seconds",
        "tokens/s",
        "ratio",
    ]
    tokens = arguments.documents * arguments.context
    rows = [
        ["forward passes alone", f"{forward:.1f}", f"{tokens / forward:,.0f}", "1"],
        [
            "evaluation",
            f"{evaluation:.1f}",
            f"{tokens / evaluation:,.0f}",
            f"{evaluation / forward:.3f}",
        ],
    ]
    print(table(columns, rows))
    print("\nThe aim is a ratio of at most 1.1.")


if __name__ == "__main__":
    main()
