"""How far the engine's weights are from a dense AdamW loop after five updates, in six
models on five layouts.

    python -m benchmarks.optimizer_parity --write

Compares what `tests/mcore/test_optimizer.py` tests, and with --write puts the table in
docs/benchmarks/optimizer-parity.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from tests import optimizer_parity as parity
from tests.paths import ROOT

PAGE = ROOT / "docs" / "benchmarks" / "optimizer-parity.md"


def page(table: dict[str, dict[str, float]]) -> str:
    constants = parity.CONSTANTS
    lines = [
        "# Optimizer parity",
        "",
        f"Weights after {parity.UPDATES} updates in fp32 against a dense loop in fp64:"
        " Hugging Face's modelling code, one document at a time, and `torch.optim.AdamW`"
        " with decay on matrices alone. In each cell the largest relative difference, by"
        " norm, of any weight; the test's tolerance is 1e-6.",
        "",
        f"Rate {parity.RATE:g}, betas {constants.beta1:g} and {constants.beta2:g}, epsilon"
        f" {constants.epsilon:g}, weight decay {constants.weight_decay:g}, gradients"
        f" clipped at {constants.clip_grad:g}. Decay alone moves a weight by"
        f" {parity.UPDATES * parity.RATE * constants.weight_decay:.1e} of itself.",
        "",
        "| model | " + " | ".join(parity.LAYOUTS) + " |",
        "|---" * (1 + len(parity.LAYOUTS)) + "|",
        *(
            f"| {model} | " + " | ".join(f"{row[n]:.1e}" for n in parity.LAYOUTS) + " |"
            for model, row in table.items()
        ),
        "",
        f"torch {torch.__version__}, gloo; written by `python -m"
        " benchmarks.optimizer_parity --write`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = page(parity.differences(Path(folder)))
    print(text)
    if arguments.write:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
