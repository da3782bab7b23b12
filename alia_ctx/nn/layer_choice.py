"""Whose layers compute the model's products and norms, and the rule that picks.

TransformerEngine's fuse the norm with the product behind it, add a weight's gradient to
the fp32 one inside the product, and can compute in FP8. Megatron-Core's own need nothing
but torch. Weights, names and what is computed are the same.

TransformerEngine is used by Megatron-Core wherever it can be imported, also for norms of
gradients, and knows GPUs alone. So `hide_where_unusable` takes it away, before
Megatron-Core is imported, where there is no GPU or where it does not import whole.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alia_ctx.errors import STOP_REQUESTS, LayoutError
from alia_ctx.nn.free_memory import fill_free_memory
from alia_ctx.optional_packages import (
    hide,
    hide_all_of_gpus,
    installed_version,
    reason,
)
from alia_ctx.spec.execution import Fp8, Layers, Precision

PACKAGE = "transformer_engine"
# Its extension of torch, which Megatron-Core imports by itself as well.
EXTENSION = "transformer_engine_torch"
# The release whose modules were built and compared (tests/mcore/test_te_names.py); what
# Megatron-Core 0.19.2 asks a later one for is of other layers than ours.
OLDEST = (2, 12)
# What Megatron-Core derives its layers from while it is imported
# (megatron/core/extensions/transformer_engine.py).
BASES = (
    "DotProductAttention",
    "GroupedLinear",
    "LayerNorm",
    "LayerNormLinear",
    "Linear",
    "RMSNorm",
)
REMEDY = (
    'pip install --no-build-isolation "transformer-engine[core_cu13,pytorch]==2.12.0" on '
    "the GPU machine (docs/gpu-software.md), or set engine.layers=local"
)
# Of the norm, relative. bf16 rounds to 2**-9; E4M3 keeps three bits of the fraction, E5M2
# two, and both factors of a product are rounded.
_TRIAL_ERROR = {"off": 0.02, "current": 0.15, "blockwise": 0.15}


@dataclass(frozen=True)
class LayerChoice:
    """Whose layers are taken, and why not TransformerEngine's: a line each, with the remedy;
    none where they are taken, were not asked for, or there is no GPU.
    """

    name: Layers
    version: str = ""
    passed_over: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        if self.name == "te":
            return f"TransformerEngine {self.version}"
        return "Megatron-Core"


def hide_where_unusable() -> None:
    """Make imports of what computes on GPUs alone fail as if it were not installed: on a
    host all of it, on a GPU TransformerEngine and its extension of torch, unless they are
    of a release that is taken and whole. Call it before Megatron-Core is imported.

    Where one of the two is missing the other misses symbols, and where a part is missing
    Megatron-Core derives its layers from what is not there: no layers could be computed at
    all. What else is broken is no one's base, and Megatron-Core goes on without
    (`alia_ctx.optional_packages`).
    """
    if not torch.cuda.is_available():
        hide_all_of_gpus()
    elif isinstance(_engine(), str):
        hide((PACKAGE, EXTENSION))


@functools.cache
def _engine() -> Any:
    """TransformerEngine's module for torch, or why there is none, in words."""
    version = installed_version(PACKAGE)
    if version is None:
        return f"{PACKAGE} is not installed"
    release = re.match(r"(?:\d+!)?(\d+)(?:\.(\d+))?", version)
    if release is None:
        return f"{PACKAGE} states {version!r}, which is no version"
    if tuple(int(part or 0) for part in release.groups()) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return f"{PACKAGE} {version} is older than {oldest}"
    try:
        package = importlib.import_module(PACKAGE)
        module = importlib.import_module(f"{PACKAGE}.pytorch")
    except STOP_REQUESTS:
        raise
    except BaseException as error:
        # Half an installation, or one for another torch or CUDA, fails with errors of
        # any type, or asks the program to end.
        return f"{PACKAGE} {version} does not import ({reason(error)})"
    lacking = [name for name in BASES if not hasattr(module, name)]
    if not hasattr(package, "__version__"):  # Megatron-Core reads it as it is imported
        lacking.append("__version__")
    if lacking:
        return f"{PACKAGE} {version} is there in part: it has no {', '.join(lacking)}"
    return module


def choose_layers(
    asked: str, fp8: Fp8, precision: Precision, device_type: str, *, trial: bool = True
) -> LayerChoice:
    """The layers for `engine.layers` and `engine.fp8` on `device_type` ("cuda" or "cpu").

    `auto` takes TransformerEngine's on a GPU in bf16, where it is installed and a small
    layer of it computes what torch does, forward and backward (but for `trial=False`).
    Raises LayoutError with the reason and the remedy where they are asked for by name, or
    by FP8, which no others have, and cannot be taken.
    """
    if asked == "local" and fp8 == "off":
        return LayerChoice("local")
    why = _unusable(fp8, precision, device_type, trial)
    if why is None:
        return LayerChoice("te", installed_version(PACKAGE) or "")
    if asked == "auto" and fp8 == "off":
        silent = device_type != "cuda"
        return LayerChoice("local", passed_over=() if silent else (why,))
    setting = "engine.layers=te" if fp8 == "off" else f"engine.fp8={fp8}"
    raise LayoutError(f"{setting}: {why}")


def _unusable(
    fp8: Fp8, precision: Precision, device_type: str, trial: bool
) -> str | None:
    """Why TransformerEngine's layers cannot be taken, with the remedy; None where they can."""
    off = "" if fp8 == "off" else " and engine.fp8=off"
    if device_type != "cuda":
        return f"{PACKAGE} needs a GPU and this is {device_type}; set engine.layers=local{off}"
    if precision != "bf16":
        return f"{PACKAGE} is taken in bf16 alone; set engine.precision=bf16"
    module = _engine()
    if isinstance(module, str):
        return f"{module}; {REMEDY}{off}"
    if fp8 != "off":
        name = {
            "current": "is_fp8_available",
            "blockwise": "is_fp8_block_scaling_available",
        }[fp8]
        ask = getattr(module, name, None)
        if ask is None:
            version = installed_version(PACKAGE)
            return (
                f"{PACKAGE} {version} is there in part: it has no {name}; {REMEDY}{off}"
            )
        there, why = ask(return_reason=True)
        if not there:
            return f"this GPU has no such FP8 ({why}); set engine.fp8=off"
    if trial and (problem := try_layer(module, fp8, "cuda")) is not None:
        return f"{problem}; {REMEDY}{off}"
    return None


def try_layer(module: Any, fp8: Fp8, device: torch.device | str) -> str | None:
    """Compute a norm and a product by `module`, TransformerEngine's for torch, forward and
    backward, the weight's gradient as one of its own and as added to the fp32 one, and
    compare with torch; what is wrong, or None. Moves no global generator.
    """
    moved = [torch.cuda.current_device()] if torch.device(device).type == "cuda" else []
    try:
        with torch.enable_grad(), torch.random.fork_rng(moved):
            for fused in (False, True):
                errors = _errors(module, fp8, device, fused)
                # Written so that a NaN is wrong.
                wrong = [n for n, e in errors.items() if not e <= _TRIAL_ERROR[fp8]]
                if wrong:
                    words = ", ".join(f"{name} {errors[name]:.3g}" for name in wrong)
                    return (
                        f"{PACKAGE} computes a layer wrongly here (relative error of "
                        f"{words}; {_TRIAL_ERROR[fp8]:g} is allowed)"
                    )
    except (*STOP_REQUESTS, torch.OutOfMemoryError):
        raise  # it says nothing of the layers
    except BaseException as error:
        return f"{PACKAGE} does not compute a layer here ({reason(error)})"
    return None


def _errors(
    module: Any, fp8: Fp8, device: torch.device | str, fused: bool
) -> dict[str, float]:
    """Of each result of a layer, against torch, relative to its norm; `fused` adds the
    weight's gradient to `main_grad`, as training does, which is not empty before.
    """
    generator = torch.Generator(device).manual_seed(0)
    x, weight, scale, gradient, before = (
        torch.randn(shape, generator=generator, device=device).bfloat16()
        for shape in ((128, 1, 256), (512, 256), (256,), (128, 1, 512), (512, 256))
    )
    layer = module.LayerNormLinear(
        256,
        512,
        normalization="RMSNorm",
        bias=False,
        params_dtype=torch.bfloat16,
        device=device,
        fuse_wgrad_accumulation=fused,
    )
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.layer_norm_weight.copy_(scale)
    if fused:
        layer.weight.main_grad = before.float()
    x = x.requires_grad_()
    # What was computed without `fused` is right, and of the same inputs.
    fill_free_memory([x, weight, scale, gradient])
    with fp8_products(module, fp8):
        output = layer(x)
    output.backward(gradient)
    of_weight = layer.weight.main_grad - before if fused else layer.weight.grad
    ours = (output, x.grad, of_weight, layer.layer_norm_weight.grad)
    expected = _by_torch(x.detach(), weight, scale, gradient)
    names = ("output", "input's gradient", "weight's gradient", "norm's gradient")
    errors = map(_relative, ours, expected)
    return dict(zip(names, errors, strict=True))


def fp8_products(module: Any, fp8: Fp8) -> contextlib.AbstractContextManager[Any]:
    """Within it, products of `module`'s layers are computed in FP8."""
    if fp8 == "off":
        return contextlib.nullcontext()
    recipes = importlib.import_module(f"{PACKAGE}.common.recipe")
    recipe = {
        "current": recipes.Float8CurrentScaling,
        "blockwise": recipes.Float8BlockScaling,
    }[fp8]()
    context: contextlib.AbstractContextManager[Any] = module.fp8_autocast(
        enabled=True, fp8_recipe=recipe
    )
    return context


def _by_torch(
    x: Tensor, weight: Tensor, scale: Tensor, gradient: Tensor
) -> tuple[Tensor, ...]:
    """(output, gradients of x, weight and scale) in fp32."""
    parts = [part.float().requires_grad_() for part in (x, weight, scale)]
    normed = torch.nn.functional.rms_norm(parts[0], (x.shape[-1],), parts[2], 1e-5)
    output = normed @ parts[1].T
    return (output.detach(), *torch.autograd.grad(output, parts, gradient.float()))


def _relative(ours: Tensor | None, expected: Tensor) -> float:
    if ours is None or ours.shape != expected.shape:
        return 1.0
    return float((ours.detach().float() - expected).norm() / expected.norm())
