"""Packages that may be there or not, and those that are there in part.

Megatron-Core, transformers and our own table of kernels use packages where they can be
imported. A build for another torch, or half an installation, raises errors of any type
(OSError, RuntimeError, AttributeError) where a missing package raises ImportError, which
is all that most of them catch, or asks the program to end (SystemExit). `guard` makes the
former look like the latter.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from alia_ctx.errors import STOP_REQUESTS

# What computes on GPUs alone: name, and which modules of it are asked for where that is
# not itself. Megatron-Core 0.19.2 asks for all of them in a `try`
# (tests/test_optional_packages.py), but for flash_attn_interface, which we do.
_OF_GPUS: dict[str, tuple[str, ...]] = {
    "amp_C": (),
    "apex": (),
    "causal_conv1d": (),
    "cudnn": (),
    "cupy": (),
    "deep_ep": (),
    "fast_hadamard_transform": (),
    "fla": (),
    "flash_attn": ("flash_attn", "flash_attn.cute"),
    "flash_attn_3": ("flash_attn_3.flash_attn_interface",),
    "flash_attn_interface": (),
    "flash_mla": (),
    "flashattn_hopper": ("flashattn_hopper.flash_attn_interface",),
    "flashinfer": (),
    "flashinfer_cubin": (),
    "flashinfer_jit_cache": (),
    "fused_weight_gradient_mlp_cuda": (),
    "mamba_ssm": (),
    "nvidia_kitchen": (),
    "nvshmem": (),
    "scaled_masked_softmax_cuda": (),
    "scaled_softmax_cuda": (),
    "scaled_upper_triang_masked_softmax_cuda": (),
    "tensorrt_llm": (),
    "tilelang": (),
    "torch_memory_saver": (),
    "transformer_engine": ("transformer_engine.pytorch",),
    "transformer_engine_torch": (),
}
# The others that Megatron-Core asks for; torch and Megatron-Core compile with triton.
_OF_MEGATRON = (
    *("boto3", "botocore", "cuda", "einops", "emerging_optimizers", "flask"),
    *("flask_restful", "hypercorn", "modelopt", "msgpack", "multistorageclient"),
    *("nixl", "nvidia_resiliency_ext", "orjson", "pynvml", "quart", "tiktoken"),
    *("triton", "wandb", "wget", "zmq"),
    "tensorflow",  # tensorboard's
)
# transformers imports these where it finds them, without trying whether they import
# (utils/import_utils.py): a torchvision for another torch ends every AutoModel. Of all
# releases from 4.57 on: jmespath is 5.0's, librosa that of those before 5.19. torchdistx is
# torch's, torch_xla accelerate's.
_OF_TRANSFORMERS = (
    *("accelerate", "deepspeed", "hqq", "jmespath", "librosa", "scipy", "sklearn"),
    *("soundfile", "soxr", "torch_mlu", "torch_musa", "torch_npu", "torch_xla"),
    *("torchao", "torchaudio", "torchdistx", "torchvision"),
)
# What transformers imports of them, where their own import does not: a scipy for another
# numpy has no optimize.
_BELOW = {
    "scipy": ("scipy.optimize",),
    "sklearn": ("sklearn.metrics",),
    "torchvision": ("torchvision.transforms.v2.functional",),
}
# Those that are asked for their version where they are found, by whom, and imported for it
# where they have no metadata (transformers' `_is_package_available`): a checkout on
# PYTHONPATH, the rest of an uninstall, a folder that was carried without its dist-info.
_ASKED_FOR_THEIR_VERSION = {
    "transformers": (
        *("accelerate", "auto_round", "bitsandbytes", "compressed_tensors", "fla"),
        *("flash_attn", "flash_attn_interface", "flute", "fp_quant", "gguf", "hqq"),
        *("kernels", "liger_kernel", "mamba_ssm", "mistral_common", "onnxruntime"),
        *("openvino", "optimum", "peft", "quark", "qutlass", "schedulefree"),
        *("sudachipy", "torchao", "torchcodec", "torchvision", "triton", "vptq"),
    )
}
# What single commands of ours need, who say so where it is not there; sinks of metrics.
_OF_OURS = (
    *("babel", "jsonschema", "mlflow", "py3langid", "sentencepiece", "tensorboard"),
    "wandb",
)
# Those that are imported where they are found, outside of any `try`, by whom: hidden before
# where they do not import. megatron/core/optimizer/__init__.py imports emerging_optimizers
# by its metadata alone (`hidden_have_no_version`).
_SOUGHT = {"transformers": _OF_TRANSFORMERS, "megatron": ("emerging_optimizers",)}
# What transformers 4.57 imports beside torch, in seconds, for models that are not ours.
_NOT_WANTED = {"transformers": ("jax", "tensorflow")}
# What takes seconds to import, or prints, and computes nothing of ours; and what is named by
# whoever needs it.
_NOT_TRIED = ("deepspeed", "tensorflow", "tensorrt_llm", *_OF_OURS)
_GUARDED = frozenset(
    (
        *(*_OF_GPUS, *_OF_MEGATRON, *_OF_TRANSFORMERS, *_OF_OURS),
        *_ASKED_FOR_THEIR_VERSION["transformers"],
    )
)


@dataclass(frozen=True)
class HalfInstalled:
    """A module that is there and does not import: distribution and version it is of (its
    own name where it is of none), and why, in words.
    """

    module: str
    distribution: str
    reason: str


def guard() -> None:
    """From now on a guarded package that does not import is a missing one to whoever
    imports it: any error becomes ModuleNotFoundError, with the error as its cause. Before
    transformers or Megatron-Core is imported, what it would import wherever it finds it is
    hidden where it does not import.
    """
    if not any(isinstance(finder, _Guard) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Guard())


def hide(names: Iterable[str]) -> None:
    """Have these packages fail to import in this process as if they were not installed."""
    gone = frozenset(names)
    # Another thread may import meanwhile: `list` reads the table in one step, which a loop
    # over it does not, and what is in the list may be gone by then.
    for name in list(sys.modules):
        if name.partition(".")[0] in gone:
            sys.modules.pop(name, None)
    # An import of what is None here raises ModuleNotFoundError.
    sys.modules.update(dict.fromkeys(gone))  # type: ignore[arg-type]


def hide_all_of_gpus() -> None:
    """Have what computes on GPUs alone not be found: for a host, where Megatron-Core would
    take the norm of the gradients from TransformerEngine or Apex.
    """
    hide(_OF_GPUS)


@contextlib.contextmanager
def hidden_have_no_version() -> Iterator[None]:
    """Within it what is hidden states no version either, to those who ask for nothing else."""
    ask = importlib.metadata.version

    def version(distribution_name: str) -> str:
        package = distribution_name.replace("-", "_")
        if package in _GUARDED and sys.modules.get(package, guard) is None:
            raise importlib.metadata.PackageNotFoundError(distribution_name)
        return ask(distribution_name)

    importlib.metadata.version = version
    try:
        yield
    finally:
        importlib.metadata.version = ask


def reason(error: BaseException) -> str:
    """Why an import failed, in a line: type and words, if any, of what was raised first."""
    while isinstance(error, ModuleNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    words = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def installed_version(distribution: str) -> str | None:
    """The version that its metadata state; None where there is none."""
    try:
        # Metadata without a version give None up to Python 3.13, and KeyError later.
        return importlib.metadata.version(distribution) or None
    except (importlib.metadata.PackageNotFoundError, KeyError):
        return None


def half_installed(names: Sequence[str] = ()) -> list[HalfInstalled]:
    """What of the guarded packages (default: all) is there and does not import. What is
    hidden is tried too, and hidden again; imports what imports.
    """
    guard()
    # What one thread has taken out of hiding another would find not hidden.
    with _TRYING:
        tried = names or sorted(_GUARDED.difference(_NOT_TRIED))
        return [found for name in tried if (found := _half_installed(name)) is not None]


_TRYING = threading.RLock()


def _half_installed(name: str) -> HalfInstalled | None:
    hidden = sys.modules.get(name, guard) is None
    if hidden:
        del sys.modules[name]
    try:
        for module in _parts(name):
            if module not in sys.modules and (why := _why_not(module)) is not None:
                # What is below it fails alike.
                return HalfInstalled(module, distribution_of(name), why)
        return None
    finally:
        if hidden:
            hide([name])


def _parts(name: str) -> tuple[str, ...]:
    """The modules of a package that are tried: itself where no others are known."""
    return _OF_GPUS.get(name) or _BELOW.get(name) or (name,)


def _why_not(module: str) -> str | None:
    """Why a module that is there does not import; None where it does or is not there."""
    try:
        if _spec(module) is not None:
            importlib.import_module(module)
    except STOP_REQUESTS:
        raise
    except BaseException as error:
        return reason(error)
    return None


def _spec(module: str) -> importlib.machinery.ModuleSpec | None:
    """Where a module is; None where it, or what it is below, is not there."""
    parent, _, _ = module.rpartition(".")
    if parent and _spec(parent) is None:
        return None
    path = importlib.import_module(parent).__path__ if parent else None
    return _found(module, path)


def _found(
    name: str, path: Sequence[str] | None, target: ModuleType | None = None
) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        if not isinstance(finder, _Guard) and hasattr(finder, "find_spec"):
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
    return None


def distribution_of(module: str) -> str:
    """`flash-attn 2.8.3`: what a module is of, with the version; of several, as flash_attn
    has, all. Without metadata the name of its package, with the version that it states.
    """
    package = module.partition(".")[0]
    versions = {n: installed_version(n) for n in _distributions().get(package, ())}
    if not versions:
        stated = getattr(sys.modules.get(package), "__version__", None)
        versions = {package: stated if isinstance(stated, str) else None}
    return ", ".join(f"{name} {v or ''}".strip() for name, v in versions.items())


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    return importlib.metadata.packages_distributions()


class _Guard(importlib.abc.MetaPathFinder):
    """Finds guarded packages as all others are found, and watches how they are executed."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in _SOUGHT:
            asked = _without_metadata(_ASKED_FOR_THEIR_VERSION.get(fullname, ()))
            unwanted = {*_NOT_WANTED.get(fullname, ())}.difference(sys.modules)
            hide([*_broken((*_SOUGHT[fullname], *asked)), *unwanted])
        if fullname.partition(".")[0] not in _GUARDED:
            return None
        spec = _found(fullname, path, target)
        # One loader a module: archives share theirs, and hold no extensions.
        if spec is not None and isinstance(spec.loader, _FILE_LOADERS):
            loader: Any = spec.loader
            for step in ("create_module", "exec_module"):
                setattr(loader, step, _as_if_missing(fullname, getattr(loader, step)))
        return spec


_FILE_LOADERS = (
    importlib.machinery.SourceFileLoader,
    importlib.machinery.SourcelessFileLoader,
    importlib.machinery.ExtensionFileLoader,
)


def _as_if_missing(name: str, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(step)
    def watched(argument: Any) -> Any:
        try:
            return step(argument)
        except (ModuleNotFoundError, *STOP_REQUESTS):
            raise
        except BaseException as error:
            words = f"{name} is there and does not import ({reason(error)})"
            raise ModuleNotFoundError(words, name=name) from error

    return watched


def _without_metadata(names: Iterable[str]) -> Iterator[str]:
    """Those that are there and state no version but in themselves."""
    for name in names:
        if _found(name, None) is None or installed_version(name) is not None:
            continue
        if not _distributions().get(name):
            yield name


def _broken(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name in _NOT_TRIED or sys.modules.get(name, name) is None:
            continue
        if any(_why_not(part) is not None for part in _parts(name)):
            yield name
