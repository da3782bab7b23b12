"""Who is there when ranks have lost touch: a thread in each rank answers for it, as it may
compute for a long while before it notices anything itself.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from alia_ctx.train.stopping import waits_for_others

_LOOK_SECONDS = 0.5
_LOOKS_A_SECOND = 400  # of all ranks at the store
_QUIET_SECONDS = 10.0  # without a further answer; longer than between two looks
_CALL_SECONDS = 25.0  # for all of a call
_STAYS_SECONDS = 2.0  # that the host of the store is there after its last word
_IDLE_SECONDS = 3.0
_BUSY_SECONDS = 0.01  # of processor time between two looks


@dataclass(frozen=True)
class Verdict:
    """What a call has found: the ranks that do not answer or stand still, and those that
    compute still; `by` is the rank that called.
    """

    by: int
    silent: list[int] = field(default_factory=list)
    computing: list[int] = field(default_factory=list)


class Presence:
    """Answers calls for this rank, and calls the others.

    A rank that is asked is there if either its own word has come, which it gives as soon as
    it notices the loss, or this thread's answer: whether it waits for others, and for how
    long it has used no processor. Nobody is silent whose thread answers, unless all are
    there: then the one that stands still, and does not wait, has kept them waiting.

    Args:
        store: that the ranks met at.
        rank, world: of this process.
        key: below which the words of one call are, the same on all ranks.
    """

    def __init__(self, store: Any, rank: int, world: int, key: str) -> None:
        self.store, self.rank, self.world, self.key = store, rank, world, key
        self.verdict: Verdict | None = None
        self._watched = threading.get_ident()
        self._counted, self._lock = False, threading.Lock()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._stay, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self, *, well: bool) -> None:
        """Answer no more; `well`: this rank is done, and not lost to those that call."""
        self._ends.set()
        self._thread.join(_LOOK_SECONDS + 2)
        if well and not self._thread.is_alive():
            farewell = threading.Thread(target=self._give_word, daemon=True)
            farewell.start()
            farewell.join(1.0)

    def call(self) -> Verdict | None:
        """Give this rank's word, and hear who is silent: the first to come calls, once no
        further answer comes; what it finds all read, so that a store of 800 ranks is not
        asked by each for each. None where the store does not answer.
        """
        if self.verdict is not None:  # while this rank computed others have called
            return self.verdict
        found: list[Verdict] = []

        def call() -> None:
            with suppress(RuntimeError, ValueError):
                self._give_word()
                is_first = self.store.add(f"{self.key}/callers", 1) == 1
                found.append(self._ask() if is_first else self._hear())
                if self.rank == 0:  # may host the store: it stays until that is known
                    time.sleep(_STAYS_SECONDS)

        calling = threading.Thread(target=call, daemon=True)
        calling.start()
        calling.join(_CALL_SECONDS + 2 * _STAYS_SECONDS)
        return found[0] if found else self.verdict

    def _ask(self) -> Verdict:
        self.store.set(f"{self.key}/asked", "")
        began = last = time.monotonic()
        there = 0
        while there < self.world and time.monotonic() - began < _CALL_SECONDS:
            if (now := self.store.add(f"{self.key}/there", 0)) != there:
                there, last = now, time.monotonic()
            elif time.monotonic() - last > _QUIET_SECONDS:
                break
            time.sleep(0.1)
        verdict = self._found()
        self.store.set(f"{self.key}/said", json.dumps(asdict(verdict)))
        time.sleep(_STAYS_SECONDS)  # the others read it
        return verdict

    def _found(self) -> Verdict:
        absent = [r for r in range(self.world) if not self._has(f"word/{r}")]
        dead = [r for r in absent if not self._has(f"answer/{r}")]
        answers = {
            r: json.loads(self.store.get(f"{self.key}/answer/{r}"))
            for r in absent
            if r not in dead
        }
        elsewhere = [r for r, answer in answers.items() if not answer["waits"]]
        still = [r for r in elsewhere if answers[r]["idle"] > _IDLE_SECONDS]
        if dead or not still:
            return Verdict(self.rank, dead, elsewhere)
        return Verdict(self.rank, still, [r for r in elsewhere if r not in still])

    def _has(self, name: str) -> bool:
        return bool(self.store.check([f"{self.key}/{name}"]))

    def _hear(self) -> Verdict:
        deadline = time.monotonic() + _CALL_SECONDS
        while not self._has("said"):
            if time.monotonic() > deadline:
                raise ValueError("nobody has called")
            time.sleep(0.2)
        return Verdict(**json.loads(self.store.get(f"{self.key}/said")))

    def _give_word(self) -> None:
        with suppress(RuntimeError, ValueError):
            self.store.set(f"{self.key}/word/{self.rank}", "")
            self._count()

    def _count(self) -> None:
        with self._lock:
            if not self._counted:
                self._counted = True
                self.store.add(f"{self.key}/there", 1)

    # -- the thread ------------------------------------------------------------------------

    def _stay(self) -> None:
        with suppress(RuntimeError, ValueError):  # the store may go at any time
            clock = time.pthread_getcpuclockid(self._watched)
            used, busy_at = time.clock_gettime(clock), time.monotonic()
            each = max(_LOOK_SECONDS, self.world / _LOOKS_A_SECOND)
            while not self._ends.wait(each):
                now = time.clock_gettime(clock)
                if now - used > _BUSY_SECONDS:
                    busy_at = time.monotonic()
                used = now
                if self._has("asked"):
                    self._answer(time.monotonic() - busy_at)
                    self.verdict = self._hear()
                    return

    def _answer(self, idle: float) -> None:
        waits = waits_for_others(self._watched) is not None
        text = json.dumps({"waits": waits, "idle": idle})
        self.store.set(f"{self.key}/answer/{self.rank}", text)
        self._count()
