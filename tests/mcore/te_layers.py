"""Layers of TransformerEngine's stand-in beside the local ones, in a process of its own:
Megatron-Core looks for the package while it is imported.

    python -m tests.mcore.te_layers FOLDER

Prints one JSON line; `test_te_layers.py` reads it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from alia_ctx.nn import layer_choice
from tests.mcore import te_stand_in

te_stand_in.install()
layer_choice.hide_where_unusable = lambda: None

from alia_ctx.config.run import EngineConfig, OptimizerConfig  # noqa: E402
from alia_ctx.mcore import engine as engine_module  # noqa: E402
from alia_ctx.mcore.engine import MegatronEngine  # noqa: E402
from alia_ctx.spec.layout import Layout  # noqa: E402
from alia_ctx.spec.model import ModelSpec  # noqa: E402
from tests import engine as small  # noqa: E402

engine_module.choose_layers = lambda asked, *ignored: layer_choice.LayerChoice(
    "te" if asked == "te" else "local", "stand-in"
)
Numbers = dict[str, Any]
QWEN3 = {"qk_norm": True, "architecture": "qwen3"}
QWEN2 = {"attention_bias": True, "architecture": "qwen2"}


def make(
    layers: str,
    fp8: str = "off",
    ends: int = 0,
    train: bool = True,
    offload: bool = False,
    **changes: Any,
) -> MegatronEngine:
    recompute = changes.pop("recompute", "none")
    return MegatronEngine(
        ModelSpec(**{**small.MODEL, **changes}),
        small.ROPE,
        small.CONTEXT,
        Layout(),
        EngineConfig(
            precision="bf16",
            loss_chunk_tokens=16,
            layers=layers,
            fp8=fp8,
            fp8_bf16_layers=ends,
            offload_activations=offload,
        ),
        OptimizerConfig() if train else None,
        recompute=recompute,
    )


def losses(engine: MegatronEngine, updates: int = 3) -> list[float]:
    return [loss for loss, _, _ in small.train(engine, range(updates))]


def products(engine: MegatronEngine, run: Any) -> list[tuple[str, int]]:
    te_stand_in.PRODUCTS.clear()
    run(engine)
    return list(te_stand_in.PRODUCTS)


def gradients(engine: MegatronEngine) -> dict[str, torch.Tensor]:
    """By the names that a checkpoint gives them."""
    engine.accumulate_gradients(small.rows_of(0))
    by_address = {p.data_ptr(): p.main_grad.clone() for p in engine.parameters()}
    state = engine.module.state_dict(keep_vars=True)
    names = {
        "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
        "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    }
    found = {}
    for name, value in state.items():
        if isinstance(value, torch.nn.Parameter):
            for old, new in names.items():
                name = name.replace(old, new)
            found[name] = by_address[value.data_ptr()]
    return found


def compare(changes: dict[str, Any]) -> Numbers:
    """Losses, and the largest difference of a gradient over its norm, te against local."""
    local, te = make("local", **changes), make("te", **changes)
    ours, theirs = gradients(te), gradients(local)
    assert ours.keys() == theirs.keys()
    apart = max(float((ours[n] - theirs[n]).norm() / theirs[n].norm()) for n in theirs)
    local, te = make("local", **changes), make("te", **changes)
    return {"gradients": apart, "te": losses(te), "local": losses(local)}


def go_on(folder: Path) -> Numbers:
    """Two updates by one kind, saved, and two more by the other."""
    found = {}
    for first, then in (("te", "local"), ("local", "te"), ("te", "te")):
        fp8 = "current" if first == "te" else "off"
        engine = make(first, fp8)
        losses(engine, 2)
        state = folder / f"{first}-{then}" / "state"
        small.save(engine, state)
        after = make(then)
        after.load(state, with_optimizer=True)
        again = folder / f"{first}-{then}-again" / "state"
        small.save(after, again)
        found[f"{first}-{then}"] = losses(after, 2)
    return found


def shapes(layers: str) -> dict[str, list[Any]]:
    """Of the sharded state: key, global shape, local shape, type of what it is."""
    engine = make(layers, **QWEN2)
    from megatron.core.dist_checkpointing.dict_utils import nested_values

    found = {}
    for item in nested_values(engine.module.sharded_state_dict()):
        shape = list(getattr(item, "global_shape", ()))
        found[item.key] = [type(item).__name__, shape]
    return found


def fp8(name: str) -> Numbers:
    engine = make("te", name, ends=1)
    rows = small.rows_of(0)
    engine.passes.padding.multiple = 48
    training = products(engine, lambda e: e.train_update(rows[:1], 1e-3))
    measuring = products(engine, lambda e: e.row_losses(rows[:1]))
    logits = products(engine, lambda e: e.logits(rows[0]))
    again = products(
        make("te", name, recompute="full"), lambda e: e.train_update(rows[:1], 1e-3)
    )
    apart = make("te", name, train=False)
    return {
        "training": training,
        "measuring": measuring,
        "logits": logits,
        "recomputed": again,
        "without optimizer": products(apart, lambda e: e.row_losses(rows[:1])),
        "trained": losses(make("te", name), 6),
        "selective": losses(make("te", name, recompute="selective"), 2),
    }


def fused(**options: Any) -> list[bool]:
    """Whether each product adds its weight's gradient itself."""
    parts = make("te", **options).module.modules()
    flags = [getattr(part, "fuse_wgrad_accumulation", None) for part in parts]
    return [flag for flag in flags if flag is not None]


def padded(name: str) -> list[list[float]]:
    """Losses in FP8 with 64 tokens and with 96, of which 32 are padding."""
    found = []
    for multiple in (16, 48):
        engine = make("te", name)
        engine.passes.padding.multiple = multiple
        found.append(losses(engine, 3))
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    with small.distributed():
        found = {
            "plain": compare({}),
            "qwen2": compare(QWEN2),
            "qwen3": compare(QWEN3),
            "shapes": {layers: shapes(layers) for layers in ("te", "local")},
            "go on": go_on(folder),
            "fp8": {name: fp8(name) for name in ("current", "blockwise")},
            "padded": padded("current"),
            "fused": [fused(), fused(offload=True), fused(train=False)],
            "offloaded": losses(make("te", offload=True)),
            "bf16": losses(make("te"), 6),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
