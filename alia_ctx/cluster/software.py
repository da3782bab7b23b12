"""Whether the programs of this process are those that were tested, and its limits wide
enough.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from alia_ctx.cluster.findings import Finding, broken, good, weak
from alia_ctx.errors import LayoutError
from alia_ctx.host_memory import available_memory
from alia_ctx.nn.attention_kernels import Heads, choose_kernel
from alia_ctx.nn.layer_choice import choose_layers
from alia_ctx.spec.execution import Fp8, Precision, kernel_speed
from alia_ctx.spec.model import ModelSpec

# What constraints.txt pins, and with what all tests run.
TESTED = {"torch": "2.13.0", "megatron-core": "0.19.2", "transformers": "5.23.0"}
_FILES = 4096
Device = Literal["auto", "cpu", "cuda"]
_SHARED_MEMORY = 1 << 30


def software(
    device: Device = "auto",
    layers_asked: str = "local",
    fp8: Fp8 = "off",
    precision: Precision = "bf16",
) -> Iterator[Finding]:
    """What this process is made of. The arguments are settings of the run's engine."""
    yield good("python", f"{platform.python_version()} on {platform.release()}")
    for package, tested in TESTED.items():
        yield version(package, tested)
    yield cuda(device)
    yield kernel()
    if torch.cuda.is_available():
        yield layers(layers_asked, fp8, precision)
    yield from limits()


def gpu_memory_gib() -> float | None:
    """Memory of the smallest GPU that this process sees; None without one."""
    if not torch.cuda.is_available():
        return None
    sizes = (
        torch.cuda.get_device_properties(n).total_memory
        for n in range(torch.cuda.device_count())
    )
    return min(sizes, default=0) / 2**30 or None


def host_memory_gib() -> float:
    """Host memory that this process may still take: of the machine or of its job."""
    return available_memory() / 2**30


_DRIVER = Path("/proc/driver/nvidia")
_HIDES = (
    "",
    "-1",
    "NoDevFiles",
)  # the last as SLURM sets it where no GPU was asked for


def cuda(device: Device) -> Finding:
    """Whether there are GPUs where the run wants them, and none that it does not."""
    if torch.cuda.is_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        words = f"CUDA {torch.version.cuda}, NCCL {nccl}"
        if device == "cpu":
            remedy = "export CUDA_VISIBLE_DEVICES= , or set engine.device=auto"
            return broken(
                "cuda", f"engine.device=cpu, and there are GPUs: {words}", remedy
            )
        return good("cuda", words)
    if device == "cpu":
        return good("cuda", "no GPU in use, as engine.device=cpu asks for")
    words, remedy = _why_no_gpu()
    if device == "cuda":
        remedy += ", or set engine.device=auto to train on the processor"
        return broken("cuda", f"engine.device=cuda, and {words}", remedy)
    if _DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in _HIDES:
        return broken("cuda", words, remedy)
    return weak("cuda", f"{words}: ranks run on the processor", remedy)


def _why_no_gpu() -> tuple[str, str]:
    """(why torch sees no GPU, the remedy)."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "NoDevFiles":
        return "SLURM gave this step no GPU", "ask for GPUs (--gres)"
    if visible in _HIDES:
        return f"CUDA_VISIBLE_DEVICES={visible} hides all GPUs", "unset it"
    if not _DRIVER.exists():
        return "no GPU here", "go to a GPU node, and ask for GPUs (--gres)"
    if torch.version.cuda is None:
        words = "there is a driver, and this torch is built without CUDA"
        return words, "install torch from its wheels with CUDA (docs/gpu.md)"
    return (
        f"there is a driver, and torch (CUDA {torch.version.cuda}) sees no GPU",
        "compare `nvidia-smi`'s CUDA version with torch's, and ask for GPUs (--gres)",
    )


def version(package: str, tested: str) -> Finding:
    """Whether an installed package is of the release that was tested."""
    try:
        installed = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return broken(package, "is not installed", f"pip install {package}=={tested}")
    if installed.partition("+")[0] == tested:
        return good(package, installed)
    remedy = f"install {tested}, or run `make test` with this one first"
    return weak(package, f"{installed}; tested was {tested}", remedy)


def kernel() -> Finding:
    """Which attention kernel `auto` takes here, and whether there are faster ones."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        choice = choose_kernel("auto", device)
    except LayoutError as error:
        reason = " ".join(str(error).split())
        return broken("attention", reason, "install flash-attn-4[cu13] (docs/gpu.md)")
    name = choice.kernel.name
    if device == "cpu":
        return good("attention", f"{name}, for tests and small models")
    if not choice.passed_over:
        return good("attention", f"{name}, of the fastest for this GPU")
    why = f"{name}, {kernel_speed(name)} here: {'; '.join(choice.passed_over)}"
    return weak("attention", why, "install what is missing (docs/gpu.md)")


def kernel_notes(asked: str, model: ModelSpec, precision: Precision) -> list[str]:
    """That faster attention kernels than the one for `engine.attention` are not taken, and
    why, or that it is not there or not made for the precision; nothing without a GPU.
    """
    if not torch.cuda.is_available():
        return []
    try:
        heads = Heads.of(model, precision)
        choice = choose_kernel(asked, "cuda", heads, trial=False)
    except LayoutError as error:
        return [f"engine.attention={asked}: {error}"]
    name = choice.kernel.name
    return [
        f"attention here is by {name}, {kernel_speed(name)}: {why}"
        for why in choice.passed_over
    ]


def layers(asked: str, fp8: Fp8, precision: Precision) -> Finding:
    """Whose layers `engine.layers` takes here, and why not TransformerEngine's."""
    try:
        choice = choose_layers(asked, fp8, precision, "cuda")
    except LayoutError as error:
        return broken("layers", " ".join(str(error).split()), "see docs/gpu.md")
    if choice.passed_over:
        why = f"{choice.words}'s own: {'; '.join(choice.passed_over)}"
        return weak("layers", why, "install what is missing (docs/gpu.md)")
    fp8_words = "" if fp8 == "off" else f", FP8 ({fp8})"
    return good("layers", f"{choice.words}'s{fp8_words}")


def layer_notes(asked: str, fp8: Fp8, precision: Precision) -> list[str]:
    """That TransformerEngine's layers are not taken though `engine.layers` allows it, and
    why, or that they are asked for and not there; nothing without a GPU.
    """
    if not torch.cuda.is_available():
        return []
    try:
        choice = choose_layers(asked, fp8, precision, "cuda", trial=False)
    except LayoutError as error:
        return [str(error)]
    return [f"layers here are {choice.words}'s own: {w}" for w in choice.passed_over]


def limits() -> Iterator[Finding]:
    """Open files, and the shared memory that NCCL takes between GPUs of a node."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FILES:
        remedy = f"`ulimit -n {_FILES}` in launch.setup (at most {hard} here)"
        yield weak("open files", f"at most {soft}", remedy)
    else:
        yield good("open files", f"at most {soft}")
    try:
        size = shutil.disk_usage("/dev/shm").total
    except OSError as error:
        yield weak("shared memory", f"/dev/shm: {error.strerror}", "mount it")
        return
    if size < _SHARED_MEMORY:
        remedy = "a container needs --shm-size or --ipc=host"
        yield weak("shared memory", f"/dev/shm has {size / 2**20:.0f} MiB", remedy)
    else:
        yield good("shared memory", f"/dev/shm has {size / 2**30:.0f} GiB")
