"""torchtitan's peers of `gpu_peers.py` on a host beside transformers' Llama with the same
weights: losses and all gradients. In a process of its own, whose devices, compiler and
process groups it sets.

    python -m tests.benchmarks.torchtitan_peers

Each case is a whole `measure`; a row's documents are given to transformers one by one.
Weights and gradients are brought to torchtitan's names and order by its own converter of
Hugging Face's. Prints one JSON line; `test_torchtitan_peer.py` reads it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import transformers

from alia_ctx.data.packing import PackedRow
from alia_ctx.spec.model import ModelSpec
from benchmarks import gpu_peers, torchtitan_peer
from benchmarks.peers import Task
from tests.benchmarks.torchtitan_documents import let_flex_run_on_a_host

CONTEXT, WORDS = 128, 96
MODEL = ModelSpec(
    num_hidden_layers=2,
    hidden_size=64,
    intermediate_size=192,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=WORDS,
)
ROWS = {"one": [CONTEXT], "packed": [50, 1, 48, 29]}
CASES = (
    ("torchtitan_sdpa", "one"),
    ("torchtitan", "one"),
    ("torchtitan", "packed"),
)


def reference() -> transformers.LlamaForCausalLM:
    """transformers' Llama of these sizes, with Llama 3's RoPE and norms that are not ones."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=MODEL.hidden_size,
        intermediate_size=MODEL.intermediate_size,
        num_hidden_layers=MODEL.num_hidden_layers,
        num_attention_heads=MODEL.num_attention_heads,
        num_key_value_heads=MODEL.num_key_value_heads,
        head_dim=MODEL.head_dim,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Losses far from ln(words), and attention that is far from uniform.
            if parameter.ndim > 1:
                parameter.mul_(8)
            else:
                parameter.uniform_(0.5, 1.5)
    return model


def expected(model: torch.nn.Module, row: PackedRow) -> float:
    """The mean loss of a row's targets; gradients of it are left in the parameters."""
    model.zero_grad()
    documents = np.split(row.tokens(), row.doc_offsets[1:-1])
    targets = sum(len(d) - 1 for d in documents)
    total = 0.0
    for document in documents:
        if len(document) < 2:
            continue
        tokens = torch.as_tensor(document, dtype=torch.long)[None]
        logits = model(tokens).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum")
        (loss / targets).backward()
        total += float(loss.detach()) / targets
    return total


def run_case(peer: str, row: PackedRow, model: torch.nn.Module) -> dict[str, Any]:
    from torchtitan.models.llama3 import Llama3StateDictAdapter

    kept: list[Any] = []

    def build(task: Task, attention: str, *rest: Any) -> Any:
        """The peer's own, with the reference's weights put in."""
        built = original(task, attention, *rest)
        config = torchtitan_peer.model_config(task.model, task.context, attention)
        adapter = Llama3StateDictAdapter(config, None)
        plain = config.build()
        plain.load_state_dict(adapter.from_hf(dict(model.state_dict())))
        with torch.no_grad():
            for mine, other in pairs(built[0], plain):
                mine.to_local().copy_(other)
        kept.extend((built[0], plain, adapter))
        return built

    original = torchtitan_peer.build
    torchtitan_peer.build = build
    try:
        result = gpu_peers.measure(peer, Task(MODEL, row, CONTEXT, 1), False)
    finally:
        torchtitan_peer.build = original
    made, plain, adapter = kept
    with torch.no_grad():
        for mine, other in pairs(made, plain):
            other.copy_(mine.grad.to_local())
    found = plain.state_dict()
    loss = expected(model, row)
    wanted = adapter.from_hf({n: p.grad for n, p in model.named_parameters()})
    assert found.keys() == wanted.keys()
    return {
        "peer": peer,
        "kernel": result["kernel"],
        "parameters": [
            result["parameters"],
            sum(p.numel() for p in model.parameters()),
        ],
        "losses": [result["loss"], loss],
        "gradients": {
            name: float((found[name] - g).norm() / g.norm())
            for name, g in wanted.items()
        },
    }


def pairs(a: torch.nn.Module, b: torch.nn.Module) -> list[tuple[Any, Any]]:
    first, second = dict(a.named_parameters()), dict(b.named_parameters())
    assert first.keys() == second.keys()
    return [(first[name], second[name]) for name in first]


def main() -> None:
    let_flex_run_on_a_host()
    torchtitan_peer.import_for_any_torch()
    model = reference()
    generator = np.random.default_rng(1)
    found = {}
    for peer, name in CASES:
        documents = [generator.integers(0, WORDS, n) for n in ROWS[name]]
        row = PackedRow.from_documents(documents, CONTEXT)
        found[f"{peer}, {name}"] = run_case(peer, row, model)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
