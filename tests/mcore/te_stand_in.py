"""A stand-in for TransformerEngine that computes on a host, so that Megatron-Core's own
layers over it can be built, run and saved without a GPU.

Its modules have the names, shapes and signs of TransformerEngine 2.12's
(transformer_engine.pytorch.module: Linear, LayerNormLinear, RMSNorm), as
`test_te_names.py` compares where that is installed: parameters `weight`, `bias`,
`layer_norm_weight`; a pickled `_extra_state` once FP8 was used; a weight's gradient
added to `main_grad` where `fuse_wgrad_accumulation` is set; FP8 for the products within
`fp8_autocast`. What else upstream imports of the package is an empty class.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.abc
import importlib.machinery
import pickle
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as torch_checkpoint

NAME = "transformer_engine"
E4M3_MAX, E5M2_MAX = 448.0, 57344.0
# Each product of a layer in order: the recipe's name or "off", tokens, names of autograd.
PRODUCTS: list[tuple[str, int]] = []


@dataclasses.dataclass
class Recipe:
    fp8_format: Any = None
    fp8_dpa: bool = False

    def delayed(self) -> bool:
        return False


class Float8CurrentScaling(Recipe): ...


class Float8BlockScaling(Recipe): ...


class State:
    recipe: Recipe | None = None

    @classmethod
    def is_fp8_enabled(cls) -> bool:
        return cls.recipe is not None


@contextlib.contextmanager
def fp8_autocast(
    enabled: bool = True, fp8_recipe: Recipe | None = None, fp8_group: Any = None
) -> Iterator[None]:
    before, State.recipe = State.recipe, fp8_recipe if enabled else None
    try:
        yield
    finally:
        State.recipe = before


def rounded(x: Tensor, dtype: torch.dtype, largest: float) -> Tensor:
    """`x` in FP8 with one scale, by its largest number, and back."""
    scale = x.float().abs().max().clamp(min=1e-12) / largest
    return ((x.float() / scale).to(dtype).float() * scale).to(x.dtype)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, fused: bool) -> Tensor:
        fp8 = State.is_fp8_enabled()
        name = type(State.recipe).__name__ if fp8 else "off"
        PRODUCTS.append((name, x.shape[0]))
        if fp8:
            assert x.shape[0] % 16 == 0, f"{x.shape[0]} tokens"
            assert all(size % 16 == 0 for size in weight.shape), weight.shape
        x_used, w_used = (
            rounded(t.detach(), torch.float8_e4m3fn, E4M3_MAX) if fp8 else t.detach()
            for t in (x, weight)
        )
        ctx.saved, ctx.weight, ctx.fused, ctx.fp8 = (x_used, w_used), weight, fused, fp8
        return x_used @ w_used.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, w = ctx.saved
        if ctx.fp8:
            gradient = rounded(gradient, torch.float8_e5m2, E5M2_MAX)
        of_weight = gradient.flatten(0, 1).float().T @ x.flatten(0, 1).float()
        if not ctx.fused:
            return gradient @ w, of_weight.to(w.dtype), None
        ctx.weight.main_grad.add_(of_weight)
        ctx.weight.grad_added_to_main_grad = True
        return gradient @ w, torch.zeros_like(ctx.weight), None


class Linear(torch.nn.Module):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_size: int = 1,
        bias: bool = True,
        parallel_mode: str | None = None,
        params_dtype: torch.dtype | None = None,
        device: Any = None,
        normalization: str | None = None,
        eps: float = 1e-5,
        **ignored: Any,
    ) -> None:
        super().__init__()
        self.fuse_wgrad_accumulation = fuse_wgrad_accumulation
        self.parallel_mode, self.eps, self.used_fp8 = parallel_mode, eps, False
        self.save_original_input = False
        column = parallel_mode == "column"
        out_features //= tp_size if column else 1
        in_features //= tp_size if parallel_mode == "row" else 1
        options = {"dtype": params_dtype, "device": device}
        if normalization is not None:
            self.layer_norm_weight = torch.nn.Parameter(
                torch.ones(in_features, **options)
            )
            self.layer_norm_weight.sequence_parallel = sequence_parallel
        self.weight = torch.nn.Parameter(
            torch.empty(out_features, in_features, **options)
        )
        self.weight.tensor_model_parallel = True
        self.weight.partition_dim, self.weight.partition_stride = int(not column), 1
        self.use_bias = bias
        self.bias: Any = torch.empty(0)
        if bias:
            self.bias = torch.nn.Parameter(torch.zeros(out_features, **options))
            self.bias.tensor_model_parallel = column
            self.bias.partition_dim, self.bias.partition_stride = 0, 1

    def forward(self, x: Tensor, is_first_microbatch: bool | None = None) -> Tensor:
        assert is_first_microbatch is None, "a cache of casts would have to be kept"
        self.used_fp8 = self.used_fp8 or State.is_fp8_enabled()
        if hasattr(self, "layer_norm_weight"):
            size = (x.shape[-1],)
            x = torch.nn.functional.rms_norm(x, size, self.layer_norm_weight, self.eps)
        output = Product.apply(x, self.weight, self.fuse_wgrad_accumulation)
        return output + self.bias if self.use_bias else output

    def get_extra_state(self) -> Tensor:
        if not self.used_fp8:
            return torch.empty(0, dtype=torch.uint8)
        state = pickle.dumps({"recipe": Recipe()})
        return torch.frombuffer(bytearray(state), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError("no state of FP8 is to be loaded")


class LayerNormLinear(Linear): ...


class RMSNorm(torch.nn.Module):
    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-5,
        sequence_parallel: bool | None = None,
        params_dtype: torch.dtype | None = None,
        device: Any = None,
        **ignored: Any,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(
            torch.ones(normalized_shape, dtype=params_dtype, device=device)
        )
        self.weight.sequence_parallel = sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[-1],)
        return torch.nn.functional.rms_norm(x, size, self.weight, self.eps)

    def get_extra_state(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError("no state of a norm is to be loaded")


class SplitAlongDim:
    @staticmethod
    def apply(x: Tensor, dim: int, sizes: list[int]) -> tuple[Tensor, ...]:
        return torch.split(x, sizes, dim=dim)


def checkpoint(
    function: Any,
    *args: Any,
    distribute_saved_activations: bool = False,
    get_rng_state_tracker: Any = None,
    tp_group: Any = None,
    **kwargs: Any,
) -> Any:
    """The recomputation runs in the FP8 of the forward, as TransformerEngine's does."""
    recipe = State.recipe

    def again(*inner: Any) -> Any:
        with fp8_autocast(recipe is not None, recipe):
            return function(*inner, **kwargs)

    return torch_checkpoint(again, *args, use_reentrant=True)


_FP8 = {
    "FP8GlobalStateManager": State,
    "fp8_autocast": fp8_autocast,
    "fp8_model_init": None,
}
CONTENT: dict[str, dict[str, Any]] = {
    NAME: {"__version__": "2.12.0"},
    f"{NAME}.common.recipe": {
        "Float8CurrentScaling": Float8CurrentScaling,
        "Float8BlockScaling": Float8BlockScaling,
        "Format": types.SimpleNamespace(E4M3="E4M3", HYBRID="HYBRID"),
    },
    f"{NAME}.pytorch": {
        "Linear": Linear,
        "LayerNormLinear": LayerNormLinear,
        "RMSNorm": RMSNorm,
        **_FP8,
    },
    f"{NAME}.pytorch.fp8": _FP8,
    f"{NAME}.pytorch.attention": {"_SplitAlongDim": SplitAlongDim},
    f"{NAME}.pytorch.distributed": {"checkpoint": checkpoint},
    f"{NAME}.pytorch.cpu_offload": {
        "get_cpu_offload_context": lambda *a, **k: (contextlib.nullcontext(), None)
    },
}
# Upstream then takes its own, as where there is no TransformerEngine.
MISSING = {f"{NAME}.pytorch.optimizers", f"{NAME}.pytorch.attention.rope"}
BEFORE = (f"{NAME}.common.recipe", f"{NAME}.pytorch.distributed")


class Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        parts = Module if name.islower() else type
        made = (
            parts(f"{self.__name__}.{name}") if parts is Module else type(name, (), {})
        )
        setattr(self, name, made)
        return made


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.split(".")[0] != NAME:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> Module:
        if spec.name in MISSING:
            raise ImportError(f"{spec.name} is not in the stand-in")
        return Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__.update(CONTENT.get(module.__name__, {}))


def install() -> None:
    """For the rest of the process, before Megatron-Core is imported."""
    sys.meta_path.insert(0, Finder())
    for name in BEFORE:
        importlib.import_module(name)
