"""RoPE on the GPU against fp64, up to position 163,839."""

from __future__ import annotations

import pytest
import torch

from alia_ctx.nn.rotary import cos_sin, inverse_frequencies, rotate
from tests.dense import ALIA_160K

pytestmark = pytest.mark.gpu(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_at_the_last_positions(dtype: torch.dtype) -> None:
    """Angles are one fp32 product, the same bits as on the CPU;

    the GPU's cosine of them is within 2 units.
    """
    positions = torch.arange(163_840 - 4096, 163_840)
    frequencies, scaling = inverse_frequencies(ALIA_160K, 128, 163_840)
    on_cpu, on_gpu = (
        cos_sin(p, frequencies, scaling) for p in (positions, positions.cuda())
    )
    for mine, theirs in zip(on_gpu, on_cpu, strict=True):
        assert mine.dtype == torch.float32
        assert (mine.cpu() - theirs).abs().max() <= 2 * 2**-24
    x = torch.randn(4096, 4, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = rotate(x.double(), *on_cpu)
    ours = rotate(x.cuda(), *on_gpu).cpu()
    assert ours.dtype == dtype
    rounding = 2**-9 if dtype == torch.bfloat16 else 2**-22
    assert (ours.double() - exact).norm() <= rounding * exact.norm()
