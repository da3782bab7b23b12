"""GPUs of a machine over the workers of pytest-xdist, so that none computes on another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WORKER = "PYTEST_XDIST_WORKER"


def share_of_worker(
    devices: Sequence[str], each: int, environment: Mapping[str, str]
) -> list[str]:
    """The `each` of `devices` that the worker of this environment has; without workers the
    first. ValueError where there are not as many.
    """
    worker = int(environment.get(WORKER, "gw0").removeprefix("gw"))
    own = list(devices[worker * each : (worker + 1) * each])
    if each < 1 or len(own) < each:
        raise ValueError(
            f"worker {worker} has no {each} of {len(devices)} GPUs: start fewer (-n), or "
            "give each fewer (--gpus-each)"
        )
    return own
