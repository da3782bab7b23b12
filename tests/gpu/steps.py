"""Training updates of a decoder with ALIA's layer shapes; a process of its own, for the
host adapter is process-wide.

    python -m tests.gpu.steps --precision fp32 --attention reference
    CUDA_VISIBLE_DEVICES= python -m tests.gpu.steps --precision fp32 --attention reference

Prints one JSON line: the loss and number of predicted tokens of each update, and the
norm of each parameter's gradient in the first. The norms are formed here in fp64:
torch's fp32 norm on a CPU, by which upstream clips where neither TransformerEngine nor
Apex is installed, is 1% low over 400 million entries and 3% over 200 million on one
thread. Clipping is off, and Adam's steps do not depend on the gradients' scale. What the
last update did is counted, as a setting that does nothing changes no figure either.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np
import torch

from alia_ctx.config.run import EngineConfig, OptimizerConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from tests.dense import ALIA_160K

CONTEXT = 256
UPDATES, RATE = 3, 1e-5
# One layer is 754,991,104 parameters. The vocabulary is cut from 256,000 to keep the
# optimizer's state on a host small.
ALIA_LAYER = {
    "num_hidden_layers": 1,
    "hidden_size": 8192,
    "intermediate_size": 24_576,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 1024,
}
DOCUMENTS = (
    (130, 1, 60),
    (256,),
)  # lengths in the two rows of an update; the first row ends in fill


def rows(vocabulary: int) -> list[PackedRow]:
    generator = np.random.default_rng(0)
    return [
        PackedRow.from_documents(
            [generator.integers(0, vocabulary, n) for n in lengths], CONTEXT, index=i
        )
        for i, lengths in enumerate(DOCUMENTS)
    ]


def train(
    model: ModelSpec, engine_config: EngineConfig, recompute: str
) -> dict[str, Any]:
    """`UPDATES` updates over the same rows at a rate that visibly changes the loss."""
    optimizer = OptimizerConfig(clip_grad=1e9)
    with Distributed(engine_config):
        engine = MegatronEngine(
            model,
            ALIA_160K,
            CONTEXT,
            Layout(),
            engine_config,
            optimizer,
            recompute=recompute,
        )
        results = [engine.train_update(rows(model.vocab_size), RATE)]
        norms = [
            exact_norm(parameter.main_grad)  # type: ignore[attr-defined]
            for parameter in engine.parameters()
        ]
        results += [
            engine.train_update(rows(model.vocab_size), RATE)
            for _ in range(UPDATES - 2)
        ]
        counted = Counted(engine)
        results.append(engine.train_update(rows(model.vocab_size), RATE))
    return {
        "losses": [r.loss for r in results],
        "predicted": results[0].predicted_tokens,
        "norms": norms,
        "kernel": engine.kernel,
        "counted": vars(counted),
    }


class Counted:
    """What an engine does from now on.

    layers, mlps: forwards of the first layer and of its MLP, recomputation among them.
    kept: bytes on the GPU from the embedding to the last norm of a row's forward, that of
        the last row.
    buckets: of gradients.
    reduced_before_the_end: reductions begun before all gradients are there.
    gathered_in_forward: gathers of weights begun in a forward.
    """

    def __init__(self, engine: MegatronEngine) -> None:
        self.layers = self.mlps = self.kept = 0
        self.reduced_before_the_end = self.gathered_in_forward = 0
        assert engine.optimizer is not None
        groups = engine.optimizer.chunk.bucket_groups
        self.buckets = len(groups)
        decoder, config = engine.module.decoder, engine.module.config
        first = decoder.layers[0]
        begun, where = 0, "outside"

        def enter(*_: Any) -> None:
            nonlocal where
            where = "forward"

        def begin(*_: Any) -> None:
            nonlocal begun
            begun = torch.cuda.memory_allocated()

        def at_last_norm(*_: Any) -> None:
            self.kept = torch.cuda.memory_allocated() - begun

        def leave(*_: Any) -> None:
            nonlocal where
            where = "backward"

        def count(name: str) -> Any:
            def add(*_: Any) -> None:
                setattr(self, name, getattr(self, name) + 1)

            return add

        engine.module.register_forward_pre_hook(enter)
        engine.module.register_forward_hook(leave)
        decoder.register_forward_pre_hook(begin)
        decoder.final_layernorm.register_forward_pre_hook(at_last_norm)
        first.register_forward_pre_hook(count("layers"))
        first.mlp.register_forward_pre_hook(count("mlps"))

        def watched(name: str, place: str, begin: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                if where == place:
                    setattr(self, name, getattr(self, name) + 1)
                return begin(*arguments, **options)

            return call

        for group in groups:
            for method, name, place in (
                ("start_grad_sync", "reduced_before_the_end", "backward"),
                ("start_param_sync", "gathered_in_forward", "forward"),
            ):
                setattr(group, method, watched(name, place, getattr(group, method)))
        finish = config.finalize_model_grads_func

        def finishing(*arguments: Any, **options: Any) -> None:
            nonlocal where
            where = "outside"
            finish(*arguments, **options)

        config.finalize_model_grads_func = finishing


# TransformerEngine has a norm in the product behind it, under the name of checkpoints.
_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}


def canonical(name: str) -> str:
    """A parameter's name in a checkpoint, whosever layer has it."""
    for local, other in _NORMS.items():
        name = name.replace(local, other)
    return name


def exact_norm(tensor: Any) -> float:
    return float(
        sum(
            part.double().square().sum()
            for part in torch.split(tensor.flatten(), 1 << 24)
        )
        ** 0.5
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--recompute", default="none")
    parser.add_argument(
        "--model", type=json.loads, default={}, help="sizes to change, as JSON"
    )
    parser.add_argument("--no-overlap", action="store_true")
    parser.add_argument("--offload", action="store_true")
    parser.add_argument("--deterministic", action="store_true")
    options = parser.parse_args()
    config = EngineConfig(
        precision=options.precision,
        attention=options.attention,
        loss_chunk_tokens=100,
        overlap_communication=not options.no_overlap,
        offload_activations=options.offload,
        deterministic=options.deterministic,
    )
    json.dump(
        train(ModelSpec(**{**ALIA_LAYER, **options.model}), config, options.recompute),
        sys.stdout,
    )
    print()


if __name__ == "__main__":
    main()
