"""Whether torchtitan's peers of `gpu_peers.py` keep a row's documents apart, to the bit: other
tokens in the first change nothing in the second, and a loss on the second has no gradient
at words that only the first has. In a process of its own, on a GPU where there is one.

    python -m tests.benchmarks.torchtitan_documents torchtitan torchtitan_flash

The same is asked with both documents taken for one, which must mix them. Prints one JSON
line; `test_torchtitan_peer.py` reads it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch

from alia_ctx.config.run import EngineConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.spec.model import ModelSpec
from benchmarks import torchtitan_peer
from benchmarks.peers import PEERS, Task, device, positions_of

HALF = 64  # words; a document has those below it, the other those above
LENGTHS = (192, 320)  # not at the edge of a block of 128
MODEL = ModelSpec(
    num_hidden_layers=2,
    hidden_size=256,
    intermediate_size=512,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=2 * HALF,
)


def let_flex_run_on_a_host() -> None:
    """Flex attention has no kernel for a host's backward and refuses it; its definition,
    which is what it computes when nothing is compiled, has one.
    """
    if device().type == "cpu":
        torch.nn.attention.flex_attention._validate_device = lambda *tensors: None
        torch.compiler.set_stance("force_eager")


def rows() -> list[PackedRow]:
    """Two that differ in the first document alone."""
    draw = np.random.default_rng(2).integers
    second = draw(HALF, 2 * HALF, LENGTHS[1])
    return [
        PackedRow.from_documents([draw(0, HALF, LENGTHS[0]), second], sum(LENGTHS))
        for _ in range(2)
    ]


def look(attention: str, together: bool) -> dict[str, Any]:
    """What the first document changes in the second: the largest difference of the model's
    outputs, and of the gradient at the first's words; both documents as one, if `together`.
    """
    first, other = (Task(MODEL, row, sum(LENGTHS), 1) for row in rows())
    torch.manual_seed(0)
    compiled = device().type == "cuda"
    model, _, _ = torchtitan_peer.build(first, attention, "float32", compiled)
    with torch.no_grad():
        for parameter in model.parameters():  # attention that is far from uniform
            if parameter.ndim > 1:
                parameter.mul_(8)
    positions = positions_of(first.row)
    if together:
        positions = torch.arange(sum(LENGTHS), device=device())[None]
    masks = model.get_attention_masks(positions=positions)

    def output(task: Task) -> torch.Tensor:
        out: torch.Tensor = model(
            task.tokens, positions=positions, attention_masks=masks
        )
        return out

    changed = output(other).detach()
    out = output(first)
    of_second = (out - changed)[0, LENGTHS[0] :].abs().max()
    of_first = (out - changed)[0, : LENGTHS[0]].abs().max()
    out[0, LENGTHS[0] :].float().sin().sum().backward()
    gradient = model.tok_embeddings.weight.grad.full_tensor()
    return {
        "outputs": [float(of_first), float(of_second)],
        "gradients": [float(g.abs().max()) for g in (gradient[:HALF], gradient[HALF:])],
    }


def main() -> None:
    let_flex_run_on_a_host()
    torchtitan_peer.import_for_any_torch()
    found: dict[str, Any] = {}
    with Distributed(EngineConfig()):
        for peer in sys.argv[1:]:
            attention = PEERS[peer].keywords["attention"]
            found[peer] = look(attention, together=False)
            found[f"{peer}, together"] = look(attention, together=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
