"""Whose layers are taken, and what is said where they are not TransformerEngine's."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from alia_ctx.cli.stopping import Stopped
from alia_ctx.errors import LayoutError
from alia_ctx.nn import layer_choice
from alia_ctx.nn.layer_choice import choose_layers, try_layer
from tests.processes import python_on_a_host


class Works:
    """What the rule asks of TransformerEngine, computed by torch."""

    @staticmethod
    def is_fp8_available(return_reason: bool) -> tuple[bool, str]:
        return True, ""

    @staticmethod
    def is_fp8_block_scaling_available(return_reason: bool) -> tuple[bool, str]:
        return False, "CUDA 12.9 or higher is required"

    class LayerNormLinear(torch.nn.Module):
        factor = 1.0

        def __init__(self, inputs: int, outputs: int, **options: Any) -> None:
            super().__init__()
            self.fused = options["fuse_wgrad_accumulation"]
            dtype = options["params_dtype"]
            self.weight = torch.nn.Parameter(torch.empty(outputs, inputs, dtype=dtype))
            self.layer_norm_weight = torch.nn.Parameter(torch.ones(inputs, dtype=dtype))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            size = (x.shape[-1],)
            x = torch.nn.functional.rms_norm(x, size, self.layer_norm_weight, 1e-5)
            return x @ self._weight().T * self.factor

        def _weight(self) -> torch.Tensor:
            """The one whose gradient goes to `grad`, or, fused, to `main_grad`."""
            if not self.fused:
                return self.weight
            weight = self.weight.detach().requires_grad_()
            weight.register_hook(self.add)
            return weight

        def add(self, gradient: torch.Tensor) -> None:
            self.weight.main_grad += gradient  # type: ignore[attr-defined]


class Changed(torch.autograd.Function):
    """The numbers forward; backward their gradients times a factor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient * ctx.factor, None


class NoNumberBackward(Works):
    """All but the last of the gradients are right, which the greatest error would hide."""

    class LayerNormLinear(Works.LayerNormLinear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            apply: Any = Changed.apply
            scale = apply(self.layer_norm_weight, float("nan"))
            x = torch.nn.functional.rms_norm(x, (x.shape[-1],), scale, 1e-5)
            return x @ self._weight().T


class ReplacesTheSum(Works):
    class LayerNormLinear(Works.LayerNormLinear):
        def add(self, gradient: torch.Tensor) -> None:
            self.weight.main_grad.copy_(gradient)  # type: ignore[attr-defined,operator]


class Ends(Works):
    class LayerNormLinear(Works.LayerNormLinear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise SystemExit


class Wrong(Works):
    class LayerNormLinear(Works.LayerNormLinear):
        factor = 1.05


class Breaks(Works):
    class LayerNormLinear(Works.LayerNormLinear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("CUDA error: no kernel\nimage is available")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install `module` (or a word on why there is none) and a trial that runs here."""

    def put(module: Any) -> None:
        trial = layer_choice.try_layer
        monkeypatch.setattr(layer_choice, "_engine", lambda: module)
        monkeypatch.setattr(layer_choice, "installed_version", lambda name: "2.14.1")
        monkeypatch.setattr(
            layer_choice, "try_layer", lambda m, fp8, device: trial(m, fp8, "cpu")
        )

    return put


def test_auto_takes_what_works(installed: Any) -> None:
    installed(Works)
    choice = choose_layers("auto", "off", "bf16", "cuda")
    assert (choice.name, choice.passed_over) == ("te", ())
    assert choice.words == "TransformerEngine 2.14.1"
    assert choose_layers("te", "off", "bf16", "cuda").name == "te"
    assert choose_layers("local", "off", "bf16", "cuda").name == "local"


@pytest.mark.parametrize(
    "module,said",
    [
        ("transformer_engine is not installed", "transformer-engine[core_cu13"),
        (Wrong, "error of output 0.05"),
        (NoNumberBackward, "error of norm's gradient nan; 0.02 is allowed"),
        (ReplacesTheSum, "error of weight's gradient 0."),
        (Ends, "does not compute a layer here (SystemExit)"),
        (Breaks, "RuntimeError: CUDA error: no kernel image"),
    ],
)
def test_auto_says_why_not(installed: Any, module: Any, said: str) -> None:
    installed(module)
    choice = choose_layers("auto", "off", "bf16", "cuda")
    [why] = choice.passed_over
    assert choice.name == "local"
    assert said in why
    assert "engine.layers=local" in why
    with pytest.raises(LayoutError, match=r"engine.layers=te: .*transformer_engine"):
        choose_layers("te", "off", "bf16", "cuda")
    with pytest.raises(LayoutError, match=r"engine.fp8=current: .*engine.fp8=off"):
        choose_layers("auto", "current", "bf16", "cuda")


def test_other_precisions_and_hosts(installed: Any) -> None:
    installed(Works)
    [why] = choose_layers("auto", "off", "fp32", "cuda").passed_over
    assert "engine.precision=bf16" in why
    assert choose_layers("auto", "off", "bf16", "cpu") == layer_choice.LayerChoice(
        "local"
    ), "a host has nothing to be told"
    for asked, fp8 in (("te", "off"), ("auto", "current"), ("local", "current")):
        with pytest.raises(LayoutError, match="needs a GPU and this is cpu"):
            choose_layers(asked, fp8, "bf16", "cpu")


def test_fp8_that_a_gpu_does_not_have(installed: Any) -> None:
    installed(Works)
    with pytest.raises(LayoutError, match=r"CUDA 12.9.*engine.fp8=off"):
        choose_layers("te", "blockwise", "bf16", "cuda", trial=False)
    assert choose_layers("te", "current", "bf16", "cuda", trial=False).name == "te"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), KeyboardInterrupt(), Stopped(15)]
)
def test_memory_that_runs_out_says_nothing_of_the_layers(error: BaseException) -> None:
    class Full(Works):
        class LayerNormLinear(Works.LayerNormLinear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                raise error

    with pytest.raises(type(error)):
        try_layer(Full, "off", "cpu")


def test_no_global_generator_moves() -> None:
    class Draws(Works):
        class LayerNormLinear(Works.LayerNormLinear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                torch.randn(3)
                return super().forward(x)

    before = torch.get_rng_state()
    with torch.no_grad():
        assert try_layer(Draws, "off", "cpu") is None
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("fp8", ["off", "current"])
def test_a_stand_in_with_fused_gradients_passes(
    fp8: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It adds to `main_grad` as TransformerEngine does, and rounds to FP8."""
    from tests.mcore.te_stand_in import CONTENT, Module

    recipes, module = Module("recipe"), Module("pytorch")
    recipes.__dict__.update(CONTENT["transformer_engine.common.recipe"])
    module.__dict__.update(CONTENT["transformer_engine.pytorch"])
    monkeypatch.setitem(sys.modules, "transformer_engine.common.recipe", recipes)
    assert try_layer(module, fp8, "cpu") is None


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import sys; sys.exit()", "SystemExit"),
        ("class Panic(BaseException): ...\nraise Panic('out')", "Panic: out"),
        ("assert False", "AssertionError"),
    ],
)
def test_a_package_that_ends_the_program_is_named(
    raised: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "transformer_engine.py").write_text(raised)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "transformer_engine", raising=False)
    monkeypatch.setattr(layer_choice, "installed_version", lambda name: "2.14.1")
    told = layer_choice._engine.__wrapped__()
    assert told == f"transformer_engine 2.14.1 does not import ({said})"


def test_an_old_or_broken_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its import fails with whatever type it likes."""
    package = tmp_path / "transformer_engine"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('libcublas.so.13: not found')")
    info = tmp_path / "transformer_engine-2.14.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: transformer_engine\nVersion: 2.14.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    # Megatron-Core may have been kept from it in this process.
    monkeypatch.delitem(sys.modules, "transformer_engine", raising=False)
    engine = layer_choice._engine.__wrapped__
    assert engine().startswith(
        "transformer_engine 2.14.1 does not import (OSError: libcublas.so.13"
    )
    (package / "__init__.py").write_text("__version__ = '2.20.2'")
    (package / "pytorch.py").write_text("Linear = None")
    for name in [n for n in sys.modules if n.startswith("transformer_engine")]:
        monkeypatch.delitem(sys.modules, name)
    (info / "METADATA").write_text("Name: transformer_engine\nVersion: 2.9.0\n")
    importlib.invalidate_caches()
    assert engine() == "transformer_engine 2.9.0 is older than 2.12"
    for version, said in {
        "2.13+cu13": None,
        "2.20.2": None,
        "3": None,
        "1": "transformer_engine 1 is older than 2.12",
        "2.9.0+cu13": "transformer_engine 2.9.0+cu13 is older than 2.12",
        "2": "transformer_engine 2 is older than 2.12",
        "unknown": "transformer_engine states 'unknown', which is no version",
    }.items():
        (info / "METADATA").write_text(
            f"Name: transformer_engine\nVersion: {version}\n"
        )
        (package / "pytorch.py").write_text(
            "".join(f"{name} = None\n" for name in layer_choice.BASES)
        )
        if said is None:
            assert isinstance(engine(), types.ModuleType)
            del sys.modules["transformer_engine.pytorch"]
            lost, *left = layer_choice.BASES
            importlib.invalidate_caches()
            (package / "pytorch.py").write_text("\n".join(f"{n} = 0" for n in left))
            assert str(engine()).endswith(f"is there in part: it has no {lost}")
            del sys.modules["transformer_engine.pytorch"]
        else:
            assert engine() == said
    (info / "METADATA").write_text("Name: transformer_engine\n")
    assert engine() == "transformer_engine is not installed", "no version, no release"
    for name in [n for n in sys.modules if n.startswith("transformer_engine")]:
        monkeypatch.delitem(sys.modules, name)


def test_what_megatron_derives_its_layers_from_is_looked_for() -> None:
    """Against the source of Megatron-Core that is installed."""
    found = importlib.util.find_spec("megatron")
    assert found is not None and found.submodule_search_locations
    folder = Path(found.submodule_search_locations[0], "core/extensions")
    text = (folder / "transformer_engine.py").read_text()
    bases = set(re.findall(r"^ *class \w+\(.*?te\.pytorch\.([A-Z]\w*)", text, re.M))
    built = set(re.findall(r"te\.pytorch\.([A-Z]\w*)", text))
    assert bases and bases <= set(layer_choice.BASES) <= built


@pytest.mark.long
def test_megatron_computes_on_a_host_beside_a_broken_package(tmp_path: Path) -> None:
    """Megatron-Core catches ImportError alone, of the extension ModuleNotFoundError alone,
    and would take kernels of a GPU.
    """
    package = tmp_path / "transformer_engine"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('libcuda.so.1: not found')")
    (tmp_path / "transformer_engine_torch.py").write_text(
        "raise ImportError('undefined symbol: _ZTIN18transformer_engine15Comm')"
    )
    program = (
        "import alia_ctx.mcore, megatron.core.optimizer as o\n"
        "import megatron.core.models.mimo.model.base  # as the optimizer does\n"
        "from megatron.core.extensions.transformer_engine import HAVE_TE\n"
        "from megatron.core.optimizer import clip_grads\n"
        "print(HAVE_TE, clip_grads.l2_norm_impl.__module__)"
    )
    done = python_on_a_host("-c", program, first=(tmp_path,))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["False", "megatron.core.utils"]


def test_a_release_without_the_question_for_fp8_is_there_in_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Lacks(Works):
        is_fp8_available = None

    monkeypatch.setattr(layer_choice, "_engine", lambda: Lacks)
    monkeypatch.setattr(layer_choice, "installed_version", lambda _: "2.12.0")
    with pytest.raises(
        LayoutError, match=r"in part: it has no is_fp8_available; .*off"
    ):
        choose_layers("te", "current", "bf16", "cuda")
