"""torchrun without its traceback: a failed rank has already said what is wrong, above.

    python -m alia_ctx.cli.launch --standalone --nproc-per-node=2 -m alia_ctx.cli train
    CONFIG --stage NAME

Takes torchrun's own arguments and exits with the status of the first rank that failed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any

from alia_ctx.train.stopping import (
    ONE_REQUEST_SECONDS,
    REQUEUE,
    StopRequests,
    requeue_on_early_signals,
)


def main(arguments: list[str] | None = None) -> int:
    requeue_on_early_signals()  # the imports below take seconds
    print("alia-ctx: starting the ranks", file=sys.stderr, flush=True)
    from torch.distributed.elastic.agent.server import api as server
    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # Ranks say themselves why they stop; torchrun's lines on passing it on are left out.
    for upstream in (server.logger, api.logger):
        upstream.addFilter(_is_news)
    for number in StopRequests.SIGNALS:  # torchrun passes them on from now on
        signal.signal(number, signal.SIG_DFL)
    # torchrun stops waiting for the ranks where it is told again while it waits
    # (torch/distributed/elastic/multiprocessing/api.py, _terminate_process_handler).
    api._terminate_process_handler = _once(api._terminate_process_handler)
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # torchrun's own default, without its warning
    # After a request to stop torchrun kills ranks that take longer than 30 s, in the midst
    # of an update or a save. Ours end by themselves, hung ones by their watchdog.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "86400")
    parsed = parse_args(arguments)
    parsed.signals_to_handle = _handled(parsed.signals_to_handle)
    try:
        run(parsed)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        # A signal's negative number becomes the shell's 128 + signal.
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        print(f"rank {rank} stopped first, with exit status {code}", file=sys.stderr)
        return code
    except SignalException as signalled:
        # torchrun passes the signal on, waits for the ranks, and does not tell how they
        # ended (torch/distributed/elastic/agent/server/api.py). Training saves and asks
        # to be started again; one that could not save goes on from its last checkpoint.
        is_training = "train" in (sys.argv[1:] if arguments is None else arguments)
        return REQUEUE if is_training else 128 + int(signalled.sigval)
    return 0


# Beginnings of what torchrun logs where a rank stops or it is told to stop
# (torch/distributed/elastic/agent/server/api.py, .../multiprocessing/api.py).
_NO_NEWS = (
    "Received %s death signal",
    "Got termination signal",
    "Sending process %s closing signal",
    "Closing process %s via signal",
    "failed (exitcode: %s)",
)


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_NO_NEWS)


def _handled(signals: str) -> str:
    """torchrun's own signals to pass on, and warnings, which would end it and leave its
    ranks behind.
    """
    warnings = [number.name for number in StopRequests.WARNINGS]
    return ",".join(dict.fromkeys([*signals.split(","), *warnings]))


def _once(handle: Any) -> Any:
    """A handler of signals that calls `handle` for the first request alone; a later one is
    passed on to the ranks, which end at once where it is the second of its kind.
    """
    import psutil  # now: a request shall not wait for it

    first: list[float] = []

    def receive(number: int, frame: Any) -> None:
        if not first:
            first.append(time.monotonic())
            handle(number, frame)
        elif time.monotonic() - first[0] > ONE_REQUEST_SECONDS:
            for rank in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    rank.send_signal(number)

    return receive


if __name__ == "__main__":
    sys.exit(main())
