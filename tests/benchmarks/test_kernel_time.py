"""A step's time by class of kernel."""

from __future__ import annotations

import pytest

from benchmarks.kernel_time import IDLE, NAMES, OTHER, by_class, class_of


@pytest.mark.parametrize(
    "kernel,name",
    [
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopB_NNT", "products"),
        ("void cutlass::device_kernel<flash::FlashAttnFwdSm90<...>>", "attention"),
        ("kernel_cutlass_kernel_flash_attncuteflash_fwd_sm90", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_27", "attention"),
        ("void at::native::vectorized_layer_norm_kernel<...>", "norm"),
        ("_rms_norm_backward_kernel", "norm"),
        ("liger_cross_entropy_kernel", "loss"),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", "communication"),
        ("void transformer_engine::cast_transpose_fused_kernel", "scaling to FP8"),
        ("void at::native::elementwise_kernel<128, 4, ...>", "elementwise and copies"),
        ("Memcpy DtoD (Device -> Device)", "elementwise and copies"),
        ("triton_poi_fused_mul_silu_0", "elementwise and copies"),
        ("something_new", OTHER),
    ],
)  # fmt: skip
def test_kernels_are_told_apart(kernel: str, name: str) -> None:
    assert class_of(kernel) == name


def test_idle_is_what_no_kernel_fills() -> None:
    """Two kernels side by side for 2 ms, a gap of 1 ms, one of 3 ms: 6 of 10 are busy."""
    kernels = [
        ("nccl", 1000.0, 4000.0),
        ("gemm", 2000.0, 4000.0),
        ("flash", 5000.0, 8000.0),
    ]
    times = by_class(kernels, 10.0)
    assert set(times) == set(NAMES)
    assert times["communication"] == 3.0
    assert times["products"] == 2.0
    assert times["attention"] == 3.0
    assert times[IDLE] == 4.0
    assert sum(times.values()) == 12.0
