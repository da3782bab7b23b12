"""Packages that are there in part: fakes in a folder of their own, each in a process."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import optional_packages
from alia_ctx.cli.stopping import Stopped
from alia_ctx.data.chat.making.functions import require_jsonschema
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import DataError
from tests.processes import python_on_a_host
from tests.small_run import write_run

ALL = sorted(optional_packages._GUARDED)
# What Megatron-Core cannot do without, or we and torch require ourselves.
REQUIRED = {
    *("absl", "megatron", "omegaconf", "packaging", "psutil", "sentencepiece"),
    *("torch", "tqdm", "transformers", "yaml"),
}


def fake(folder: Path, name: str, body: str, version: str = "9.9.9") -> None:
    """A package called `name` whose import runs `body`; without a version no metadata."""
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(body)
    if not version:
        return
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    stated = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (info / "METADATA").write_text(stated)
    (info / "top_level.txt").write_text(f"{name}\n")


@pytest.fixture
def found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose packages this process finds before all others, with their metadata."""
    monkeypatch.syspath_prepend(tmp_path)
    optional_packages._distributions.cache_clear()
    yield tmp_path
    optional_packages._distributions.cache_clear()


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python_on_a_host(*arguments, first=(folder,), HOME=str(folder))


def sought(root: Path) -> Iterator[str]:
    """What a tree of sources imports in a `try`, by its first name."""
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Try):
                continue
            for inner in (i for line in node.body for i in ast.walk(line)):
                if isinstance(inner, ast.Import):
                    yield from (alias.name.partition(".")[0] for alias in inner.names)
                elif isinstance(inner, ast.ImportFrom) and not inner.level:
                    yield str(inner.module).partition(".")[0]


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_every_package_that_megatron_tries_is_guarded() -> None:
    """Against the source of Megatron-Core that is installed."""
    found = importlib.util.find_spec("megatron")
    assert found is not None and found.submodule_search_locations
    names = {*sought(Path(found.submodule_search_locations[0], "core"))}
    assert {"transformer_engine", "flash_attn", "apex", "triton"} <= names
    assert names - {*sys.stdlib_module_names} - REQUIRED - {*ALL} == set()


ENGINE = (
    "import alia_ctx.mcore.engine, alia_ctx.mcore.model\n"
    "from megatron.core.optimizer import clip_grads\n"
    "print(clip_grads.l2_norm_impl.__module__)\n"
)
TRANSFORMERS = (
    "import alia_ctx.hf, torch\n"
    "from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig\n"
    "config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1,\n"
    "    num_attention_heads=2, vocab_size=100)\n"
    "torch.manual_seed(0)  # of 1 in 100 random models the first word is the last\n"
    "model = AutoModelForCausalLM.from_config(config)\n"
    "print(model.generate(torch.arange(5)[None], max_new_tokens=2).shape[1])\n"
)


@pytest.mark.long
@pytest.mark.parametrize(
    "error",
    [
        *("OSError", "type('Panic', (BaseException,), {})"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("RuntimeError", "ImportError", "AttributeError", "SystemExit")
        ),
    ],
)
def test_all_of_them_may_be_broken_at_once(error: str, tmp_path: Path) -> None:
    for name in ALL:
        if name not in ("triton", "cuda"):  # torch's own, which is there
            fake(tmp_path, name, f"raise {error}('{name}: undefined\\nsymbol')")
    done = python(tmp_path, "-c", ENGINE + TRANSFORMERS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["megatron.core.utils", "7"]


@pytest.mark.long
def test_a_part_of_a_package_that_does_not_import_hides_it(tmp_path: Path) -> None:
    """As of a scipy for another numpy, which imports: transformers asks for its optimize."""
    for name, part in optional_packages._BELOW.items():
        fake(tmp_path, name, "", "9.9.9")
        *parents, last = part[0].split(".")[1:]
        folder = tmp_path / name
        for parent in parents:
            folder = folder / parent
            folder.mkdir()
            (folder / "__init__.py").write_text("")
        (folder / f"{last}.py").write_text("raise ValueError('numpy.dtype size')")
    done = python(tmp_path, "-c", TRANSFORMERS)
    assert (done.returncode, done.stdout.split()) == (0, ["7"]), done.stderr[-2000:]
    shown = python(
        tmp_path,
        "-c",
        "from alia_ctx.optional_packages import half_installed\n"
        "print(*sorted(found.module for found in half_installed()))",
    )
    assert {part[0] for part in optional_packages._BELOW.values()} <= {
        *shown.stdout.split()
    }


@pytest.mark.long
@pytest.mark.parametrize(
    ("version", "ends"),
    [("9.9.9", "raise SystemExit"), ("", "raise OSError('lib.so.12')")],
    ids=["metadata", "folder alone"],
)
def test_whatever_transformers_looks_for_may_end_the_program(
    version: str, ends: str, tmp_path: Path
) -> None:
    """Against its source as it is installed: what is not there by chance is asked for too."""
    found = importlib.util.find_spec("transformers.utils.import_utils")
    assert found is not None and found.origin
    text = Path(found.origin).read_text(encoding="utf-8")
    asked = {
        name.partition(".")[0]
        for name in re.findall(r'_is_package_available\(\s*"([\w.]+)"', text)
    }
    assert {"torchvision", "peft", "hqq"} <= asked and len(asked) > 80
    for name in sorted(asked):
        # What this process has hidden may be there.
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            fake(tmp_path, name, ends, version)
    done = python(tmp_path, "-c", TRANSFORMERS)
    assert (done.returncode, done.stdout.split()) == (0, ["7"]), done.stderr[-2000:]


@pytest.mark.long
def test_broken_ones_are_missing_to_megatron_on_a_gpu_too(tmp_path: Path) -> None:
    """A pretended GPU: none is hidden beforehand, and each is imported by Megatron-Core."""
    for name in ("flash_attn", "flash_attn_3", "apex", "amp_C", "deep_ep", "flash_mla"):
        fake(
            tmp_path,
            name,
            f"print('{name}')\nraise OSError('{name}: undefined symbol')",
        )
    program = (
        "import torch\n"
        "torch.cuda.is_available = lambda: True\n"
        "torch.cuda.get_device_capability = lambda *a: (9, 0)\n"
        "import alia_ctx.mcore\n"
        "from megatron.core.transformer import attention\n"
        "from megatron.core import utils\n"
        "print(attention.HAVE_FA3, attention.HAVE_FA4, attention.HAVE_FMLA)\n"
    )
    done = python(tmp_path, "-c", program)
    assert done.returncode == 0, done.stderr[-2000:]
    *tried, last = done.stdout.strip().splitlines()
    assert {"flash_attn", "flash_attn_3", "apex", "flash_mla"} <= {*tried}
    assert last == "False False False"


@pytest.mark.long
def test_doctor_names_package_error_and_remedy(tmp_path: Path) -> None:
    fake(tmp_path / "fakes", "flash_attn", "raise RuntimeError('cuda.so: undefined')")
    fake(tmp_path / "fakes", "apex", "")
    run = write_run(tmp_path)
    done = python(tmp_path / "fakes", "-m", "alia_ctx.cli", "doctor", str(run))
    assert done.returncode == 0, done.stdout + done.stderr
    [line] = [line for line in done.stdout.splitlines() if " packages: " in line]
    assert line.startswith("weak")
    assert "flash_attn does not import (RuntimeError: cuda.so: undefined)" in line
    assert "reinstall flash_attn 9.9.9" in line and " for torch " in line


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "torchvision",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("apex", "transformer_engine")
        ),
    ],
)
def test_a_package_that_ends_the_program_does_not_end_ours(
    name: str, tmp_path: Path
) -> None:
    """With status 0 and in silence, so that `check && submit` would go on."""
    fake(tmp_path / "fakes", name, "import sys\nsys.exit()")
    run = write_run(tmp_path)
    done = python(tmp_path / "fakes", "-m", "alia_ctx.cli", "doctor", str(run))
    assert done.returncode == 0, done.stdout + done.stderr
    [line] = [line for line in done.stdout.splitlines() if " packages: " in line]
    assert line.startswith("weak") and f"{name}" in line and "(SystemExit)" in line
    done = python(tmp_path / "fakes", "-m", "alia_ctx.cli", "check", str(run))
    assert (done.returncode, "no problems" in done.stdout) == (0, True), done.stderr


@pytest.mark.long
def test_triton_alone_cannot_be_left_out(tmp_path: Path) -> None:
    """Megatron-Core imports it in no `try`."""
    fake(tmp_path / "fakes", "triton", "raise type('Panic', (BaseException,), {})('!')")
    done = python(tmp_path / "fakes", "-m", "alia_ctx.cli", "doctor")
    [line] = [line for line in done.stdout.splitlines() if " triton: " in line]
    assert line.startswith("broken triton: triton does not import (Panic: !); install")
    assert "Traceback" not in done.stderr
    run = write_run(tmp_path)
    done = python(
        *(tmp_path / "fakes", "-m", "alia_ctx.cli", "train", str(run)),
        *("--stage", "short"),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "Megatron-Core does not import (Panic: !); reinstall triton" in done.stderr


def test_requests_to_stop_pass_an_import(
    found_first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optional_packages.guard()
    for name, raised in (
        ("nixl", "raise KeyboardInterrupt"),
        ("quart", "from alia_ctx.cli.stopping import Stopped\nraise Stopped(15)"),
    ):
        fake(found_first, name, raised)
        monkeypatch.delitem(sys.modules, name, raising=False)
        stop = KeyboardInterrupt if name == "nixl" else Stopped
        with pytest.raises(stop):
            importlib.import_module(name)
        with pytest.raises(stop):
            optional_packages.half_installed([name])


@pytest.mark.parametrize("name", ["jsonschema", "sentencepiece"])
def test_what_single_commands_need_is_named_by_them(
    name: str, found_first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = found_first / "model"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0b")
    ask: dict[str, Callable[[], Any]] = {
        "jsonschema": require_jsonschema,
        "sentencepiece": lambda: HubTokenizer(folder).auto,
    }
    fake(found_first, name, "raise SystemExit('too old')")
    with monkeypatch.context() as patch:
        for loaded in [n for n in sys.modules if n.partition(".")[0] == name]:
            patch.delitem(sys.modules, loaded)
        with pytest.raises(DataError, match=rf"{name}.*SystemExit: too old.*pip inst"):
            ask[name]()


def test_what_is_whole_and_what_is_not_there_is_no_finding(
    found_first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(found_first, "nixl", "x = 1")
    fake(found_first, "quart", "import a_package_that_is_not_there")
    (found_first / "fla").mkdir()  # left behind: a name space without anything
    names = ["nixl", "quart", "fla", "tilelang"]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "quart", None)  # type: ignore[arg-type]
    [found] = optional_packages.half_installed(names)
    assert (found.module, found.distribution) == ("quart", "quart 9.9.9")
    assert found.reason.startswith("ModuleNotFoundError: No module named 'a_package")
    assert sys.modules["quart"] is None, "hidden as before"
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_module_below_a_whole_package_fails_alone(
    found_first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As flash-attn-4 without its compiler beside flash-attn 2."""
    optional_packages.guard()
    for name in [n for n in sys.modules if n.partition(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)
    fake(found_first, "flash_attn", "def flash_attn_varlen_func(): ...")
    (found_first / "flash_attn/cute.py").write_text("{}['sm_90a']")
    import flash_attn  # type: ignore[import-not-found]

    with pytest.raises(ModuleNotFoundError, match="KeyError: 'sm_90a'") as caught:
        import flash_attn.cute  # type: ignore[import-not-found]
    assert isinstance(caught.value.__cause__, KeyError)
    assert optional_packages.reason(caught.value) == "KeyError: 'sm_90a'"
    assert flash_attn.flash_attn_varlen_func() is None
    [found] = optional_packages.half_installed(["flash_attn"])
    assert found.module == "flash_attn.cute"
    for name in [n for n in sys.modules if n.partition(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)


def test_another_thread_imports_while_packages_are_hidden_and_tried(
    found_first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is found by both threads, and hidden afterwards."""
    fake(found_first, "quart", "raise OSError('half of it is there')")
    for name in ("nixl", "quart"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    done = threading.Event()

    def imports() -> None:
        while not done.is_set():
            names = [f"imported_meanwhile.{n}" for n in range(500)]
            sys.modules.update(dict.fromkeys(names, sys))
            for name in names:
                del sys.modules[name]

    def hides() -> None:
        for _ in range(500):
            optional_packages.hide(["nixl"])

    def tries() -> list[str]:
        many = (optional_packages.half_installed(["quart"]) for _ in range(20))
        return [found.module for [found] in many]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            importing, trying = pool.submit(imports), [pool.submit(tries) for _ in "ab"]
            try:
                pool.submit(hides).result(100)
                assert [found.result(100) for found in trying] == [["quart"] * 20] * 2
            finally:
                done.set()
            importing.result(100)
    finally:
        sys.setswitchinterval(interval)
    assert sys.modules["quart"] is None, "hidden as before"


def test_it_is_set_up_once() -> None:
    optional_packages.guard()
    optional_packages.guard()
    guards = [f for f in sys.meta_path if isinstance(f, optional_packages._Guard)]
    assert len(guards) == 1 and os.path.isfile(optional_packages.__file__)
