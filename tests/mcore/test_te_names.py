"""TransformerEngine's own modules are named, cut and marked as the local layers are, so that
checkpoints go over both ways; and they are what the stand-in of `test_te_layers.py` is.

Where the package is not installed this is skipped. It needs no GPU.
"""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

import pytest

from tests.processes import python_on_a_host

# What the local layers call the norms that TransformerEngine has in its products.
RENAMED = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
PER_LAYER = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")


def named(tp: int) -> dict[str, Any]:
    try:
        importlib.metadata.version("transformer_engine")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("TransformerEngine is not installed")
    launch = ["-m", "alia_ctx.cli.launch", "--standalone", f"--nproc-per-node={tp}"]
    command = [*(launch if tp > 1 else []), "-m", "tests.mcore.te_names", str(tp)]
    done = python_on_a_host(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    result: dict[str, Any] = json.loads(lines[-1])
    return result


@pytest.mark.parametrize("tp", [1, 2])
def test_names_shapes_and_weights_are_those_of_the_local_layers(tp: int) -> None:
    for name, built in named(tp).items():
        te, local = built["te"], built["local"]
        assert te["keys"] == local["keys"], name
        marks = {}
        for key, value in local["attributes"].items():
            for old, new in RENAMED.items():
                key = key.replace(old, new)
            marks[key] = value
        assert te["attributes"] == marks, name
        assert len(te["fused"]) == 4 * len(PER_LAYER)
        assert not local["fused"]
