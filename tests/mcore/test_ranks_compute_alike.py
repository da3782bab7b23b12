"""What of packages and environment each rank finds for itself: ranks that would compute
otherwise stop before any memory is taken, and what is not ours does not stop them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from alia_ctx.config.run import EngineConfig
from alia_ctx.errors import AliaError, LayoutError
from alia_ctx.mcore import engine as engine_module
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.nn.attention_kernels import Kernel, KernelChoice
from alia_ctx.nn.layer_choice import LayerChoice
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from tests.distributed import run_distributed
from tests.engine import CONTEXT, MODEL, ROPE


def build() -> MegatronEngine:
    config = EngineConfig(precision="fp32", loss_chunk_tokens=16)
    return MegatronEngine(ModelSpec(**MODEL), ROPE, CONTEXT, Layout(), config, None)


def refusals(rank: int) -> dict[str, str]:
    """What each rank hears where the second finds something else."""
    choose = engine_module.choose_kernel, engine_module.choose_layers

    def slower(*_: Any) -> KernelChoice:
        unused: Any = choose[0]
        return KernelChoice(Kernel("slower", unused), ("flash is not there",))

    def none(*_: Any) -> KernelChoice:
        raise LayoutError("engine.attention=auto: nothing computes right here")

    def others(*_: Any) -> LayerChoice:
        return LayerChoice("te", "2.12.0")

    found = {}
    with Distributed(EngineConfig()):
        for name, kernel, layers in (
            ("slower kernel", slower, choose[1]),
            ("no kernel", none, choose[1]),
            ("other layers", choose[0], others),
            ("alike", *choose),
        ):
            if rank == 1:
                vars(engine_module).update(choose_kernel=kernel, choose_layers=layers)
            try:
                build()
                found[name] = ""
            except AliaError as error:
                found[name] = str(error)
    return found


def test_a_rank_that_would_compute_otherwise_is_named_on_all() -> None:
    first, second = run_distributed(refusals, 2)
    assert first == second
    assert first["alike"] == ""
    for name, words in (
        ("slower kernel", "is slower, layers by Megatron-Core there, reference"),
        ("no kernel", "nothing computes right here; the other ranks"),
        ("other layers", "layers by TransformerEngine 2.12.0 there"),
    ):
        assert first[name].startswith("rank 1 on ") and words in first[name]
        assert "`alia-ctx doctor` on all ranks" in first[name]


@pytest.fixture
def one_rank() -> Iterator[None]:
    with Distributed(EngineConfig()):
        yield


OF_TE = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("value", ["0", "1", ""])
@pytest.mark.parametrize("name", OF_TE)
def test_a_choice_of_another_attention_is_left_alone(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in OF_TE:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, value)
    build()
    assert {n: v for n, v in os.environ.items() if n in OF_TE} == {name: value}
