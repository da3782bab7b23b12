"""Options and profiles of the whole test suite."""

from __future__ import annotations

import signal
import threading

import pytest
from hypothesis import HealthCheck, settings

from tests.tiers import starts_processes

# Two shared cores: how long an example takes says nothing, and a failure must repeat.
settings.register_profile(
    "alia",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("alia")


def pytest_configure() -> None:
    """Hear what nohup, and a shell that starts this in the background, let all beneath
    ignore: tests send these signals to what they start.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # an xdist worker that cannot change them
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    for number, handler in usual.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow", action="store_true", help="also run tests that take minutes"
    )
    parser.addoption(
        "--fast",
        action="store_true",
        help="leave out tests that start processes or are marked long",
    )
    parser.addoption(
        "--gpus-each",
        type=int,
        help="GPUs of each worker (-n) of its own; without it all compute on all",
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    if config.getoption("--fast"):
        left_out = [i for i in items if "long" in i.keywords or starts_processes(i)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if "cluster" not in config.getoption("markexpr"):
        apart = pytest.mark.skip(reason="takes a cluster; run make test-cluster")
        for item in items:
            if "cluster" in item.keywords and item.get_closest_marker("cluster"):
                item.add_marker(apart)
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="takes minutes on two cores; run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)
