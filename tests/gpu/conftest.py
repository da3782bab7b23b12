"""Skip what needs more GPUs than there are, saying so, and cut the reference for a GPU."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import pytest
import torch

from alia_ctx.nn import attention_kernels, attention_reference
from tests.gpu.shares import WORKER, share_of_worker

VISIBLE = "CUDA_VISIBLE_DEVICES"


def pytest_configure(config: pytest.Config) -> None:
    """Before CUDA starts, which reads once what a process may see."""
    if (each := config.getoption("gpus_each")) is None:
        return
    count, workers = torch.cuda.device_count(), config.getoption("numprocesses", None)
    seen = os.environ.get(VISIBLE) or ",".join(map(str, range(count)))
    devices, last = seen.split(",") if seen else [], f"gw{(workers or 1) - 1}"
    try:
        # What starts workers asks for the last: where one is refused, xdist starts it again
        # for ever.
        own = share_of_worker(devices, each, {WORKER: last, **os.environ})
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    if not workers or WORKER in os.environ:
        os.environ[VISIBLE] = ",".join(own)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    present = torch.cuda.device_count()
    for item in items:
        marker = item.get_closest_marker("gpu")
        if marker is not None and present < marker.args[0]:
            item.add_marker(
                pytest.mark.skip(
                    reason=f"needs {marker.args[0]} GPU(s), found {present}"
                )
            )


@pytest.fixture(scope="package", autouse=True)
def several_threads() -> Iterator[None]:
    """What a GPU is compared with is computed by a CPU, here and in processes of their own:
    the one thread of the other tests takes minutes for a layer of ALIA.
    """
    before, name = torch.get_num_threads(), "OMP_NUM_THREADS"
    threads = min(8, os.cpu_count() or 1) if torch.cuda.is_available() else before
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, str(threads))
        torch.set_num_threads(threads)
        yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference's tiles fit the cache of a CPU;

    on a GPU each is a few launches, 400,000 tiles a row.
    """
    monkeypatch.setattr(
        attention_kernels,
        "tiles",
        functools.partial(attention_reference.tiles, size=1024),
    )
    monkeypatch.setattr(attention_reference, "BLOCK_KEYS", 4096)
