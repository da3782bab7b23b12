"""Every gradient of the whole model, on every layout, against one dense fp64 computation.

The engine's gradients are put in the place of its weights, saved, and exported: so each
layout's share of each matrix is named and joined by the code that users rely on, and
compared under its Hugging Face name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from alia_ctx import checkpoint
from alia_ctx.data.packing import PackedRow
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.rope import RopeSpec
from tests import dense, hf_models
from tests.distributed import run_distributed
from tests.engine import save_checkpoint

CONTEXT = hf_models.CONTEXT
LENGTHS = (
    (128,),
    (40, 1, 50, 20),
    (7, 90, 31),
    (2, 100),
    (64, 64),
)  # of the documents of an update's five rows
FOUR = [
    Layout(),
    Layout(cp=2),
    Layout(cp=4),
    Layout(tp=2),
    Layout(tp=2, cp=2),
    Layout(pp=2),
    Layout(tp=2, pp=2),
    Layout(cp=2, pp=2),
]
# fp32 against fp64 through four layers, per matrix by norm. Measured: up to 5.8e-6, and
# 5.1e-6 without any parallelism.
TOLERANCE = 1e-5


def rows() -> list[PackedRow]:
    generator = np.random.default_rng(11)
    return [
        PackedRow.from_documents(
            [generator.integers(0, 96, n) for n in lengths], CONTEXT, index=index
        )
        for index, lengths in enumerate(LENGTHS)
    ]


def dense_gradients(
    weights: dict[str, Tensor], rope: RopeSpec, config: Any
) -> tuple[float, dict[str, Tensor]]:
    """Mean loss over all predicted tokens and its gradients:

    Llama by its definition, in fp64, document by document.
    """
    w = {name: value.double().requires_grad_() for name, value in weights.items()}
    total, predicted = torch.zeros((), dtype=torch.float64), 0
    for row in rows():
        offsets = [int(x) for x in row.doc_offsets]
        tokens = torch.from_numpy(row.tokens(0, offsets[-1])).long()
        hidden = w["model.embed_tokens.weight"][tokens]
        for layer in range(config.num_hidden_layers):
            hidden = dense_layer(
                w, f"model.layers.{layer}.", hidden, offsets, rope, config
            )
        logits = norm(hidden, w["model.norm.weight"], config) @ w["lm_head.weight"].T
        targets = torch.from_numpy(row.targets(0, offsets[-1])).long()
        total = total + functional.cross_entropy(logits, targets, reduction="sum")
        predicted += int((targets >= 0).sum())
    (total / predicted).backward()
    return float(total.detach()) / predicted, {
        name: value.grad for name, value in w.items()
    }


def dense_layer(
    w: dict[str, Tensor],
    name: str,
    hidden: Tensor,
    offsets: list[int],
    rope: RopeSpec,
    config: Any,
) -> Tensor:
    x = norm(hidden, w[f"{name}input_layernorm.weight"], config)
    dim = config.hidden_size // config.num_attention_heads
    q, k, v = (
        torch.unflatten(x @ w[f"{name}self_attn.{p}_proj.weight"].T, 1, (-1, dim))
        for p in "qkv"
    )
    hidden = (
        hidden
        + dense.packed(q, k, v, offsets, rope).flatten(1)
        @ w[f"{name}self_attn.o_proj.weight"].T
    )
    x = norm(hidden, w[f"{name}post_attention_layernorm.weight"], config)
    gate, up = (x @ w[f"{name}mlp.{p}_proj.weight"].T for p in ("gate", "up"))
    return hidden + (functional.silu(gate) * up) @ w[f"{name}mlp.down_proj.weight"].T


def norm(x: Tensor, weight: Tensor, config: Any) -> Tensor:
    return (
        x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps) * weight
    )


def save_gradients(rank: int, folder: str, layouts: list[Layout]) -> list[float]:
    """A checkpoint of gradients for each layout; the losses."""
    from alia_ctx.config.run import EngineConfig, OptimizerConfig
    from alia_ctx.mcore.engine import MegatronEngine
    from alia_ctx.mcore.runtime import Distributed

    config = EngineConfig(
        device="cpu", precision="fp32", attention="reference", loss_chunk_tokens=16
    )
    manifest = checkpoint.read_manifest(Path(folder) / "ck")
    losses = []
    with Distributed(config):
        for number, layout in enumerate(layouts):
            engine = MegatronEngine(
                manifest.model,
                manifest.rope,
                CONTEXT,
                layout,
                config,
                OptimizerConfig(),
            )
            engine.load(Path(folder) / "ck/state", with_optimizer=False)
            own = rows()[engine.data_parallel_rank :: engine.data_parallel_size]
            loss, _ = engine.reduce_losses(engine.accumulate_gradients(own))
            losses.append(loss)
            put_gradients_into_weights(engine)
            target = Path(folder) / f"gradients-{number}"
            save_checkpoint(engine, target, manifest, Path(folder) / "ck/assets")
    return losses


def put_gradients_into_weights(engine: Any) -> None:
    """Each rank's own range of the reduced gradients becomes its range of the weights."""
    for parameter, owned in engine.optimizer.owned.ranges().items():
        gradient = parameter.main_grad.view(-1)[owned]
        parameter.data.view(-1)[owned] = gradient


@pytest.fixture(scope="module")
def model(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, float, dict[str, Tensor]]:
    """An imported model with its loss and gradients."""
    folder = tmp_path_factory.mktemp("gradients")
    original = hf_models.save_model(
        folder / "hf", "llama", "llama3", dtype=torch.float32
    )
    import_hf(folder / "hf", folder / "ck")
    rope = checkpoint.read_manifest(folder / "ck").rope
    loss, gradients = dense_gradients(
        dict(original.state_dict()), rope, original.config
    )
    return folder, loss, gradients


def exported(folder: Path) -> dict[str, Tensor]:
    """The gradients of a checkpoint by Hugging Face name."""
    from safetensors.torch import load_file

    target = folder.with_name(folder.name + "-hf")
    export_hf(folder, target)
    return {
        k: v
        for file in target.glob("*.safetensors")
        for k, v in load_file(file).items()
    }


@pytest.mark.parametrize(
    "world,layouts",
    [(4, FOUR), (8, [Layout(tp=2, cp=2, pp=2)])],
    ids=["4 ranks", "8 ranks"],
)
def test_gradients_of_every_layout_equal_dense_fp64(
    tmp_path: Path,
    model: tuple[Path, float, dict[str, Tensor]],
    world: int,
    layouts: list[Layout],
) -> None:
    folder, loss, expected = model
    for name in ("ck", "hf"):
        os.symlink(folder / name, tmp_path / name)
    found = run_distributed(save_gradients, world, str(tmp_path), layouts, timeout=300)
    assert found[0] == pytest.approx([loss] * len(layouts), rel=1e-6)
    for number, layout in enumerate(layouts):
        ours = exported(tmp_path / f"gradients-{number}")
        assert ours.keys() == expected.keys()
        errors = {
            name: dense.relative_error(ours[name], expected[name]) for name in expected
        }
        assert max(errors.values()) < TOLERANCE, (layout, errors)
