"""Whether the programs of this process are those that were tested, and its limits wide
enough.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from alia_ctx.cluster.findings import Finding, broken, good, weak
from alia_ctx.errors import LayoutError
from alia_ctx.host_memory import available_memory
from alia_ctx.nn.attention_kernels import Heads, choose_kernel
from alia_ctx.nn.determinism import deterministic_algorithms
from alia_ctx.nn.dtypes import DTYPES
from alia_ctx.nn.layer_choice import choose_layers
from alia_ctx.optional_packages import half_installed, installed_version, reason
from alia_ctx.spec.compute_capability import kernel_speed
from alia_ctx.spec.execution import Fp8, Precision
from alia_ctx.spec.model import ModelSpec

# By what ranks compute on: what constraints.txt pins, with which the tests of hosts run, and
# what every figure of a GPU was measured with (docs/gpu-software.md).
TESTED: dict[str, dict[str, str]] = {
    "cpu": {"torch": "2.13.0", "megatron-core": "0.19.2", "transformers": "5.23.0"},
    "cuda": {"torch": "2.11.0", "megatron-core": "0.19.2", "transformers": "5.17.0"},
}
_WHERE = {"cpu": "hosts", "cuda": "GPUs"}
_BY = {"cpu": "make test", "cuda": "pytest tests/gpu"}
_FILES = 4096
Device = Literal["auto", "cpu", "cuda"]
_SHARED_MEMORY = 1 << 30


@dataclass(frozen=True)
class Needs:
    """What a run asks of the programs: settings of its engine, its model, and the tensor
    parallelism of its stages; without a model those of no run in particular.
    """

    device: Device = "auto"
    attention: str = "auto"
    layers: str = "local"
    fp8: Fp8 = "off"
    precision: Precision = "bf16"
    deterministic: bool = False
    model: ModelSpec | None = None
    tp: tuple[int, ...] = (1,)

    @property
    def device_type(self) -> str:
        """What its ranks compute on here: `cuda` or `cpu`."""
        on_gpu = self.device != "cpu" and torch.cuda.is_available()
        return "cuda" if on_gpu else "cpu"

    @property
    def lacks_gpu(self) -> bool:
        """Whether it wants a GPU, and none is here."""
        return self.device == "cuda" and not torch.cuda.is_available()

    def heads(self) -> Iterator[Heads]:
        """What a kernel is tried with: each stage's, or heads as many models have them."""
        if self.model is None:
            yield Heads(8, 1, 128, DTYPES[self.precision])
            return
        for tp in sorted({*self.tp}):
            yield Heads.of(self.model, self.precision, tp)


def software(needs: Needs) -> Iterator[Finding]:
    """What this process is made of."""
    yield good("python", f"{platform.python_version()} on {platform.release()}")
    wanted = "cuda" if needs.device == "cuda" else needs.device_type
    for package in TESTED[wanted]:
        yield version(package, wanted)
    yield from packages()
    yield cuda(needs.device)
    with _own_gpu():
        yield from kernel(needs)
        yield layers(needs)
    yield from limits()


@contextlib.contextmanager
def _own_gpu() -> Iterator[None]:
    """Within it what is tried runs on this rank's GPU, as all of a node would on the first."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available() and local < torch.cuda.device_count():
        with torch.cuda.device(local):
            yield
    else:
        yield


def packages() -> Iterator[Finding]:
    """Optional packages that are there and do not import, which nothing is computed with; and
    triton where it is not there, as it is not optional.
    """
    on_gpu, needs_triton = (
        torch.cuda.is_available(),
        "install the triton that this torch asks for",
    )
    if importlib.util.find_spec("triton") is None:
        yield broken("triton", "is not installed", needs_triton)
    for broken_one in half_installed():
        words = f"{broken_one.module} does not import ({broken_one.reason})"
        # Megatron-Core imports it in no `try`; what is compiled on a GPU needs it too.
        if broken_one.module == "triton":
            yield broken("triton", words, needs_triton)
            continue
        remedy = f"it is left out: reinstall {broken_one.distribution} for torch "
        remedy += f"{torch.__version__}, or uninstall it"
        if not on_gpu:
            remedy += "; it may import where there is a GPU"
        yield weak("packages", words, remedy)


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


def version(package: str, device_type: str) -> Finding:
    """Whether an installed package is of the release that was tested with what ranks
    compute on, `cuda` or `cpu`.
    """
    installed, tested = installed_version(package), TESTED[device_type][package]
    if installed is None:
        return broken(package, "is not installed", f"pip install {package}=={tested}")
    release = installed.partition("+")[0]
    on = [_WHERE[device] for device in TESTED if TESTED[device][package] == release]
    words = f"{installed}, tested on {' and '.join(on)}" if on else installed
    if release == tested:
        return good(package, words)
    words += f"; on {_WHERE[device_type]} {tested} was"
    remedy = f"install {tested} to train on {_WHERE[device_type]}"
    if device_type == "cuda":
        remedy += " (make setup-gpu; docs/gpu-software.md)"
    elif on:
        remedy = f"keep it for GPUs; {remedy}"
    return weak(package, words, f"{remedy}, or run `{_BY[device_type]}` with this one")


def kernel(needs: Needs) -> Iterator[Finding]:
    """Which attention kernel training takes here, tried as training tries it, and whether
    there are faster ones: one finding, or one for each tensor parallelism that has another.
    """
    if needs.lacks_gpu:
        yield weak("attention", f"engine.attention={needs.attention} {_ELSEWHERE}", _GO)
        return
    found: dict[Finding, list[Heads]] = {}
    for heads in needs.heads():
        found.setdefault(_kernel(needs, heads), []).append(heads)
    for finding, of in found.items():
        words = ", ".join(f"{h.queries} heads over {h.groups}" for h in of)
        suffix = f" (for {words} a rank)" if len(found) > 1 else ""
        yield replace(finding, words=finding.words + suffix)


def _kernel(needs: Needs, heads: Heads) -> Finding:
    asked, device = needs.attention, needs.device_type
    try:
        with contextlib.ExitStack() as entered:
            if needs.deterministic:
                entered.enter_context(deterministic_algorithms())
            choice = choose_kernel(asked, device, heads)
    except LayoutError as error:
        words = f"engine.attention={asked}: {' '.join(str(error).split())}"
        return broken("attention", words, _GUIDE)
    except RuntimeError as error:  # a GPU without memory, or one that does not answer
        return weak("attention", f"{_NOT_TRIED} ({reason(error)})", _BUSY)
    name = choice.kernel.name
    if device == "cpu":
        return good("attention", f"{name}, for tests and small models")
    if not choice.passed_over:
        return good("attention", f"{name}, of the fastest for this GPU")
    why = f"{name}, {kernel_speed(name)} here: {'; '.join(choice.passed_over)}"
    return weak("attention", why, _GUIDE)


_GUIDE = "see docs/gpu.md"
_ELSEWHERE = "was not tried: it can only be tried where the GPU is"
_GO = "look again on a GPU node"
_NOT_TRIED = "could not be tried"
_BUSY = "see `nvidia-smi` for who holds the GPU, and look again"


def layers(needs: Needs) -> Finding:
    """Whose layers `engine.layers` takes here, and why not TransformerEngine's."""
    if needs.lacks_gpu and (needs.layers != "local" or needs.fp8 != "off"):
        return weak("layers", f"engine.layers={needs.layers} {_ELSEWHERE}", _GO)
    settings = (needs.layers, needs.fp8, needs.precision, needs.device_type)
    try:
        choice = choose_layers(*settings)
    except LayoutError as error:
        return broken("layers", " ".join(str(error).split()), _GUIDE)
    except RuntimeError as error:
        return weak("layers", f"{_NOT_TRIED} ({reason(error)})", _BUSY)
    if choice.passed_over:
        why = f"{choice.words}'s own: {'; '.join(choice.passed_over)}"
        return weak("layers", why, _GUIDE)
    fp8_words = "" if needs.fp8 == "off" else f", FP8 ({needs.fp8})"
    return good("layers", f"{choice.words}'s{fp8_words}")


def gpu_notes(needs: Needs) -> list[str]:
    """Of a run that trains on the GPU of this machine: by which kernel and whose layers,
    tried as training tries them, and what is better or missing; nothing without a GPU.
    """
    if needs.device_type != "cuda":
        return []
    found = [*kernel(needs)]
    if needs.layers != "local" or needs.fp8 != "off":
        found.append(layers(needs))
    found += packages()
    return [
        f"here {f.name}: {f.words}{f'; {f.remedy}' if f.remedy else ''}" for f in found
    ]


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
