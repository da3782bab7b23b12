"""Five updates of a small model in the engine and in a dense loop of transformers and
torch's AdamW: how far the weights are apart.

The dense side shares nothing with the engine: Hugging Face's modelling code in fp64, one
document at a time, torch.nn.utils.clip_grad_norm_, torch.optim.AdamW with decay on
matrices alone. The engine's weights come back through its checkpoint and the export.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alia_ctx.config.run import EngineConfig, OptimizerConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.spec.layout import Layout
from tests import hf_models
from tests.engine import save_checkpoint

UPDATES, RATE = 5, 1e-5
# A decay that shows: 5 * 1e-5 * 2.0 is 1e-4 of a weight, against a tolerance of 1e-6. The
# rate is small because of one kind of weight: the biases of keys, to which softmax is all
# but blind in the slow dimensions of RoPE, have gradients near fp32's noise, which AdamW
# makes as large as any other. At ten times the rate they are 3e-6 apart.
CONSTANTS = OptimizerConfig(
    beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=2.0, clip_grad=1.0
)
# Without a padding token: torch's embedding gives the row of one no gradient, and in
# packed rows any token is a token.
SMALL = {"num_hidden_layers": 2, "max_position_embeddings": 64, "pad_token_id": None}
CONTEXT = 64
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {}),
    "qwen2, biases": ("qwen2", {"tie_word_embeddings": False}),
    "qwen2, biases, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3, query and key norms": ("qwen3", {}),
}
LAYOUTS: dict[str, tuple[int, Layout]] = {
    "dp1": (1, Layout()),
    "tp2": (2, Layout(tp=2)),
    "pp2": (2, Layout(pp=2)),
    "cp2": (2, Layout(cp=2)),
    "dp2": (2, Layout()),
}
LENGTHS = ((30, 34), (64,), (5, 1, 40))  # of the documents of an update's rows


def rows(update: int) -> list[PackedRow]:
    generator = np.random.default_rng(100 + update)
    vocabulary = hf_models.SIZES["vocab_size"]
    return [
        PackedRow.from_documents(
            [generator.integers(0, vocabulary, n) for n in lengths], CONTEXT, index=i
        )
        for i, lengths in enumerate(LENGTHS)
    ]


def dense_weights(model: Any) -> dict[str, Tensor]:
    """Weights of `model` after the updates, by Hugging Face's name, in fp64."""
    model = model.double().train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for p in parameters if p.ndim > 1],
                "weight_decay": CONSTANTS.weight_decay,
            },
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=RATE,
        betas=(CONSTANTS.beta1, CONSTANTS.beta2),
        eps=CONSTANTS.epsilon,
    )
    for update in range(UPDATES):
        optimizer.zero_grad()
        total, predicted = torch.zeros((), dtype=torch.float64), 0
        for row in rows(update):
            bounds = [int(x) for x in row.doc_offsets]
            tokens = torch.from_numpy(row.tokens(0, bounds[-1])).long()
            for start, stop in itertools.pairwise(bounds):
                if stop - start < 2:
                    continue
                document = tokens[start:stop]
                logits = model(document[None], use_cache=False).logits[0, :-1]
                total = total + torch.nn.functional.cross_entropy(
                    logits.double(), document[1:], reduction="sum"
                )
                predicted += stop - start - 1
        (total / predicted).backward()
        torch.nn.utils.clip_grad_norm_(parameters, CONSTANTS.clip_grad)
        optimizer.step()
    return {name: value.detach() for name, value in model.state_dict().items()}


def train_all(rank: int, folder: str, world: int) -> None:
    """Every model on every layout of `world` ranks, from FOLDER/MODEL/start to
    FOLDER/MODEL/LAYOUT.
    """

    from alia_ctx import checkpoint
    from alia_ctx.mcore.engine import MegatronEngine
    from alia_ctx.mcore.runtime import Distributed

    config = EngineConfig(precision="fp32", loss_chunk_tokens=16)
    with Distributed(config):
        for model in MODELS:
            start = Path(folder) / model / "start"
            manifest = checkpoint.read_manifest(start)
            for name, (ranks, layout) in LAYOUTS.items():
                if ranks != world:
                    continue
                engine = MegatronEngine(
                    manifest.model, manifest.rope, CONTEXT, layout, config, CONSTANTS
                )
                engine.load(start / checkpoint.STATE, with_optimizer=False)
                for update in range(UPDATES):
                    share = slice(
                        engine.data_parallel_rank, None, engine.data_parallel_size
                    )
                    engine.train_update(rows(update)[share], RATE)
                target = Path(folder) / model / name
                save_checkpoint(engine, target, manifest, start / "assets")


def differences(folder: Path) -> dict[str, dict[str, float]]:
    """Model -> layout -> the largest relative difference (by norm) of any weight."""
    from safetensors.torch import load_file

    from alia_ctx.hf.convert import export_hf, import_hf
    from tests.distributed import run_distributed

    expected = {}
    for model, (family, changes) in MODELS.items():
        (folder / model).mkdir()
        original = hf_models.save_model(
            folder / model / "hf",
            family,
            dtype=torch.float32,
            **{**SMALL, **changes},
        )
        import_hf(folder / model / "hf", folder / model / "start")
        expected[model] = dense_weights(original)
    for world in (1, 2):
        run_distributed(train_all, world, str(folder), world, timeout=500)
    table: dict[str, dict[str, float]] = {}
    for model, weights in expected.items():
        table[model] = {}
        for name in LAYOUTS:
            target = folder / model / f"{name}-hf"
            export_hf(folder / model / name, target)
            ours = {
                key: value.double()
                for file in target.glob("*.safetensors")
                for key, value in load_file(file).items()
            }
            table[model][name] = max(
                float((ours[key] - weights[key]).norm() / weights[key].norm())
                for key in ours
            )
    return table
