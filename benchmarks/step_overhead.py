"""Time of an update of our trainer over that of a bare Megatron-Core loop, paired in one run.

    python benchmarks/step_overhead.py [--updates 12] [--context 2048] [--hidden 256]

Both have the same model, attention, loss, optimizer and rows. The bare loop holds its
batches in memory and does nothing but zero, forward-backward, step. Ours reads rows
from a plan, balances them, checks gradients, counts the ledger, groups losses by
position and source, writes metrics and TensorBoard, and asks whether to stop. Updates
alternate, and so does which comes first; the ratio is of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from alia_ctx import workflow
from alia_ctx.config.load import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.data.tokens import write_store
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.forward_backward import Batch
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.train.trainer import StageTrainer
from alia_ctx.workflow.chain import stage_task
from alia_ctx.workflow.training import stage_engine

CONFIG = """
name: overhead
output: {folder}/out
tokenizer: {folder}/tokenizer
model: {{num_hidden_layers: 4, hidden_size: {hidden}, intermediate_size: {ffn},
  num_attention_heads: 8,
         num_key_value_heads: 4, head_dim: {head}, vocab_size: 4096}}
data: {{sources: {{text: {{inputs: [], store: {folder}/text}}}}}}
engine: {{precision: fp32}}
checkpoint: {{every_updates: 100000}}
stages:
  only:
    init_from: random
    context: {context}
    rope: {{type: default, theta: 10000}}
    tokens: {tokens}
    update_tokens: {update}
    learning_rate: 1.0e-4
    pack: {{policy: best_fit, long_docs: split}}
"""


class BareLoop:
    """What a Megatron-Core example does, on the engine's own modules."""

    def __init__(self, engine: MegatronEngine, batches: list[list[Batch]]) -> None:
        assert engine.optimizer is not None
        self.engine, self.optimizer, self.batches = engine, engine.optimizer, batches

    def update(self, number: int) -> None:
        batches = self.batches[number]
        for group in self.optimizer.upstream.param_groups:
            group["lr"] = 1e-4
        self.optimizer.begin_update()
        self.engine.passes.batches(batches, len(batches), forward_only=False)
        self.optimizer.upstream.step()


def prepare(folder: Path, arguments: argparse.Namespace) -> RunConfig:
    generator = np.random.default_rng(0)
    lengths = np.minimum(generator.lognormal(6.5, 1.2, 4000).astype(int) + 2, 20_000)
    write_store(
        folder / "text", (generator.integers(4, 4096, n) for n in lengths), 4096
    )
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    update = 4 * arguments.context
    (folder / "run.yaml").write_text(
        CONFIG.format(
            folder=folder,
            hidden=arguments.hidden,
            ffn=3 * arguments.hidden,
            head=arguments.hidden // 8,
            context=arguments.context,
            update=update,
            tokens=update * (arguments.updates + 2),
        )
    )
    return load_run(folder / "run.yaml")


def measure(run: RunConfig, updates: int) -> tuple[list[float], list[float]]:
    stage = run.stage("only")
    plan = workflow.pack(run, "only")
    with Distributed(run.engine):
        engine = stage_engine(run, "only", run.optimizer)
        trainer = StageTrainer(stage_task(run, "only"), engine, plan)
        trainer.prepare()
        log = trainer.open_log()
        rows = stage.rows_per_update
        batches = [
            [engine.passes.batch(plan.row(u * rows + i)) for i in range(rows)]
            for u in range(updates + 1)
        ]
        bare = BareLoop(engine, batches)
        ours, theirs = [], []
        for number in range(updates + 1):
            steps = [
                (ours, lambda: trainer.advance(log)),
                (theirs, lambda number=number: bare.update(number)),
            ]
            for times, step in steps if number % 2 else reversed(steps):
                started = time.perf_counter()
                step()
                times.append(time.perf_counter() - started)
        log.close()
    return ours[1:], theirs[1:]  # the first pair warms up


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = measure(prepare(Path(folder), arguments), arguments.updates)
    print(
        f"bare Megatron-Core loop: {statistics.median(theirs):.3f} s an update (median "
        f"of {len(theirs)})"
    )
    print(f"our trainer:             {statistics.median(ours):.3f} s an update")
    print(
        "ratio of medians:        "
        f"{statistics.median(ours) / statistics.median(theirs):.3f} (aim: at most 1.03)"
    )
    pairs = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"ratios of pairs:         {pairs[0]:.3f} to {pairs[-1]:.3f}, median "
        f"{statistics.median(pairs):.3f}"
    )


if __name__ == "__main__":
    main()
