"""GPU attention kernels against the blocked reference in fp32 on the same GPU: bf16, GQA,
packed documents, CP chunks.

How far a bf16 kernel may be from exact: its inputs are given (no error), its output is
rounded once (2**-9 relative), and the weights P are rounded to bf16 before P@V, which
adds as much again; the backward rounds P and dS likewise and its results once. So 3
roundings in quadrature bound the relative norm of the error: 3 * 2**-9 = 6e-3.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from alia_ctx.mcore.attention import RowGeometry, attend, row_geometry
from alia_ctx.nn import kernel_trial
from alia_ctx.nn.attention_kernels import Heads, Kernel, resolve_kernel, try_kernel
from alia_ctx.nn.context_parallel import Balance
from tests.dense import ALIA_160K
from tests.gpu.installed import PACKAGES, is_installed

pytestmark = pytest.mark.gpu(1)

KERNELS = ("flash4", "flash3", "flash2", "torch_varlen")
DIM = 128
TOLERANCE = 3 * 2**-9


# The GPUs' generations that a kernel is made for; the others are for all.
GENERATIONS = {"flash3": (9,), "flash4": (9, 10, 11)}


def kernel_or_skip(name: str) -> Kernel:
    """Skips where a kernel is not installed or for other GPUs; fails where it is broken."""
    if name in PACKAGES and not is_installed(name):
        pytest.skip(f"{name} is not installed")
    generation = torch.cuda.get_device_capability()[0]
    if generation not in GENERATIONS.get(name, (generation,)):
        pytest.skip(f"{name} is not made for GPUs of generation {generation}")
    return resolve_kernel(name, "cuda")


def random_inputs(tokens: int, heads: int, groups: int, seed: int = 0) -> list[Tensor]:
    """q, k, v and the output's gradient, bf16."""
    generator = torch.Generator("cuda").manual_seed(seed)
    shapes = [
        (tokens, heads, DIM),
        (tokens, groups, DIM),
        (tokens, groups, DIM),
        (tokens, heads, DIM),
    ]
    return [
        torch.randn(s, device="cuda", generator=generator).bfloat16() for s in shapes
    ]


def run(inputs: list[Tensor], rows: list[RowGeometry], kernel: Kernel) -> list[Tensor]:
    """Output and gradients of a whole row, computed rank after rank with their own key buffers."""
    *leaves, gradient = inputs
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    q, k, v = leaves
    out = torch.empty_like(gradient)
    for row in rows:
        mine = torch.cat([torch.arange(*r, device="cuda") for r in row.rank.ranges])
        held = torch.cat([torch.arange(*r, device="cuda") for r in row.rank.key_ranges])
        keys, values = k[held], v[held]
        pairs = [
            (keys[slice(*c.keys)], values[slice(*c.keys)]) for c in row.rank.chunks
        ]
        part = attend(q[mine], pairs, row, kernel, DIM**-0.5)
        part.backward(gradient[mine])
        out[mine] = part.detach()
    return [out, *(x.grad for x in leaves)]


def compare(
    kernel: Kernel,
    offsets: np.ndarray,
    tokens: int,
    heads: int,
    groups: int,
    cp: int,
    balance=None,
) -> None:
    inputs = random_inputs(tokens, heads, groups)
    rows = [
        row_geometry(offsets, tokens, cp, rank, ALIA_160K, DIM, "cuda", balance=balance)
        for rank in range(cp)
    ]
    ours = run(inputs, rows, kernel)
    whole = [row_geometry(offsets, tokens, 1, 0, ALIA_160K, DIM, "cuda")]
    exact = run([x.float() for x in inputs], whole, resolve_kernel("reference", "cuda"))
    for name, mine, true in zip(("out", "dq", "dk", "dv"), ours, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        error = float((mine.float() - true).norm() / true.norm())
        # Gradients of keys add up over the chunks of all ranks here in bf16: one more
        # rounding for each addition.
        bound = TOLERANCE * (1 if cp == 1 or name in ("out", "dq") else 2)
        assert error < bound, f"{name}: {error:.2e} >= {bound:.2e}"


@pytest.mark.parametrize(("heads", "groups"), [(64, 8), (16, 2), (4, 4)])
@pytest.mark.parametrize("name", KERNELS)
def test_packed_documents(name: str, heads: int, groups: int) -> None:
    offsets = np.array([0, 1, 2, 130, 131, 700, 2048, 2050, 4096, 5000])
    compare(kernel_or_skip(name), offsets, 5120, heads, groups, cp=1)


@pytest.mark.parametrize("balance", [None, Balance(pairs_per_token=0)])
@pytest.mark.parametrize("name", KERNELS)
def test_context_parallel_chunks_of_eight_ranks(
    name: str, balance: Balance | None
) -> None:
    offsets = np.array([0, 1000, 1001, 5000, 12_288, 16_000])
    compare(kernel_or_skip(name), offsets, 16_384, 16, 2, cp=8, balance=balance)


@pytest.mark.parametrize("cp", [1, 8])
@pytest.mark.parametrize("name", KERNELS)
def test_one_document_of_the_longest_row(name: str, cp: int) -> None:
    """163,840 tokens, two heads: the reference takes its time but fits."""
    compare(kernel_or_skip(name), np.array([0, 163_840]), 163_840, 2, 1, cp=cp)


@pytest.mark.parametrize("name", KERNELS)
def test_many_lengths_in_the_longest_row(name: str) -> None:
    lengths = [1, 3, 127, 128, 129, 4096, 65_536, 2, 50_001]
    offsets = np.cumsum([0, *lengths, 163_840 - sum(lengths)])
    compare(
        kernel_or_skip(name),
        offsets,
        163_840,
        2,
        1,
        cp=8,
        balance=Balance(pairs_per_token=46_080),
    )


@pytest.mark.parametrize("name", KERNELS)
def test_a_document_never_changes_another(name: str) -> None:
    """To the bit, in the forward: nothing masked leaks."""
    kernel = kernel_or_skip(name)
    offsets = np.array([0, 1000, 3000, 4096])
    rows = [row_geometry(offsets, 4096, 1, 0, ALIA_160K, DIM, "cuda")]
    inputs = random_inputs(4096, 16, 2)
    before = run(inputs, rows, kernel)[0]
    for tensor in inputs[:3]:
        tensor[1000:3000] = 100
    after = run(inputs, rows, kernel)[0]
    assert torch.equal(before[:1000], after[:1000])
    assert torch.equal(before[3000:], after[3000:])


@pytest.mark.parametrize("heads", [(64, 8, 128), (8, 1, 128), (4, 4, 64), (1, 1, 64)])
@pytest.mark.parametrize("name", KERNELS)
def test_it_passes_the_trial_with_room(
    name: str, heads: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within what is allowed above, a third of what the trial allows."""
    kernel, before = kernel_or_skip(name), torch.cuda.get_rng_state()
    monkeypatch.setitem(kernel_trial.TOLERANCE, torch.bfloat16, TOLERANCE)
    try_kernel(kernel, Heads(*heads, torch.bfloat16), "cuda")
    assert torch.equal(before, torch.cuda.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_reference_passes_the_trial(dtype: torch.dtype) -> None:
    try_kernel(resolve_kernel("reference", "cuda"), Heads(16, 2, DIM, dtype), "cuda")


def test_a_layer_does_not_wait_for_the_device() -> None:
    """Any copy to the host or implicit synchronisation in forward or backward raises here."""
    kernel = resolve_kernel("auto", "cuda")
    row = row_geometry(np.array([0, 1000, 4096]), 4096, 1, 0, ALIA_160K, DIM, "cuda")
    q, k, v, gradient = random_inputs(4096, 16, 2)
    q.requires_grad_()
    attend(q, [(k, v)], row, kernel, DIM**-0.5).backward(
        gradient
    )  # loads and compiles what it needs
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend(q, [(k, v)], row, kernel, DIM**-0.5).backward(gradient)
    finally:
        torch.cuda.set_sync_debug_mode("default")
