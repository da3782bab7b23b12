"""The sharded state of layers over the TransformerEngine that is installed, built on a host,
and that of the local ones; a process of its own.

    python -m tests.mcore.te_names TP

Nothing is computed: modules are made and named. The package says that it needs CUDA when
a module is made, and needs none for that.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from alia_ctx.nn import layer_choice

layer_choice.hide_where_unusable = lambda: None

from megatron.core.dist_checkpointing import ShardedTensor  # noqa: E402
from megatron.core.dist_checkpointing.dict_utils import nested_values  # noqa: E402
from megatron.core.dist_checkpointing.mapping import apply_factories  # noqa: E402

from alia_ctx.mcore import host  # noqa: E402
from alia_ctx.mcore.model import (  # noqa: E402
    ModelOptions,
    add_gradients_in_products,
    build_model,
    initialize,
    transformer_config,
)
from alia_ctx.mcore.runtime import Ranks  # noqa: E402
from alia_ctx.spec.layout import Layout  # noqa: E402
from alia_ctx.spec.model import ModelSpec  # noqa: E402
from tests import engine as small  # noqa: E402

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"attention_bias": True, "architecture": "qwen2"},
    "qwen3": {"qk_norm": True, "architecture": "qwen3"},
    "tied": {"tie_word_embeddings": True},
}


def described(layers: str, model: ModelSpec, layout: Layout) -> dict[str, Any]:
    """Of the sharded state: what each key is. Of the parameters: what upstream's optimizer
    and reductions look at, and the sum of the weights that are drawn.
    """
    ranks = Ranks(layout, seed=0)
    options = ModelOptions("bf16", "reference", "none", False, False, None, layers)
    config = transformer_config(model, layout, options)
    module = build_model(model, config, small.CONTEXT, options, ranks.groups)
    initialize(module, model, config, 0, ranks.groups)
    if layers == "te":
        add_gradients_in_products(module)
    keys = {}
    state = module.sharded_state_dict()
    apply_factories(state)
    for item in nested_values(state):
        if isinstance(item, ShardedTensor):
            places = (item.global_shape, item.local_shape, item.global_offset)
            key = f"{item.key} {list(item.global_offset)}"
            total = item.data.float().sum().item()
            keys[key] = [*map(list, places), str(item.replica_id), total]
    attributes = {}
    for name, parameter in module.named_parameters():
        attributes[name] = {
            key: getattr(parameter, key, default)
            for key, default in (
                *(("sequence_parallel", False), ("tensor_model_parallel", False)),
                *(("partition_dim", -1), ("allreduce", True)),
            )
        }
        if not attributes[name]["tensor_model_parallel"]:
            attributes[name].pop("partition_dim")
    fused = [
        name
        for name, part in module.named_modules()
        if getattr(part, "fuse_wgrad_accumulation", False)
    ]
    return {"keys": keys, "attributes": attributes, "fused": fused}


def main(tp: int) -> None:
    layout, found = Layout(tp=tp), {}
    with small.distributed():
        host.activate()
        torch.cuda.is_available = lambda: True
        for name, changes in MODELS.items():
            model = ModelSpec(**{**small.MODEL, **changes})
            found[name] = {
                layers: described(layers, model, layout) for layers in ("te", "local")
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))
