"""The checkpoints of one stage: written in the background, committed whole, opened only
when all ranks find them so.

Every method but the properties is collective: all ranks call it, and all of them learn
of a failure on any.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import DamagedError, Manifest
from alia_ctx.config.run import CheckpointConfig
from alia_ctx.errors import CheckpointError
from alia_ctx.train.best import BEST, naming
from alia_ctx.train.checkpoints_before import (
    begin_anew,
    leave_word,
    require_none_ever,
)
from alia_ctx.train.engine import Engine, PendingSave

# A file system that writes or reads a whole checkpoint more slowly than this hangs.
_SLOWEST_BYTES_PER_SECOND = 50e6
_BYTES_PER_PARAMETER = 16


class CheckpointManager:
    """Writes to and reads from `root`, the checkpoints directory of a stage.

    What travels with the weights (tokenizer, licence, ...) is read from the checkpoint
    that the stage goes on from, and held in memory on rank 0: that checkpoint may be
    gone when the next ones are written.

    Beside the last ones the best stays, which the newest whole checkpoint names: the one
    that was the best before goes when a better one is whole, and not earlier.

    Args:
        rules: retention, and whether saves go on in the background.
        notice: called on rank 0 with what a person should know.
        beat: called after everything that takes long.
        allow: called with the seconds for which no beat may come.
    """

    def __init__(
        self,
        engine: Engine,
        root: Path,
        rules: CheckpointConfig,
        notice: Callable[[str], None],
        beat: Callable[[], None],
        allow: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.engine, self.root, self.rules = engine, root, rules
        self.notice, self.beat, self.allow = notice, beat, allow
        self._on_first_rank = partial(_on_first_rank, engine, root)
        self.longest_seconds = 0.0
        self._assets: dict[str, bytes] = {}
        self.whole: Path | None = None  # the newest that we opened or committed
        self.best: Mapping[str, Any] | None = None  # as that one names it
        self._damaged: set[Path] = set()
        self._seconds = 0.0
        self._begun = 0.0
        self._pending: tuple[PendingSave, Manifest] | None = None
        self._sweeper: threading.Thread | None = None

    @property
    def is_writing(self) -> bool:
        """Whether this rank still writes what was begun."""
        return self._pending is not None and not self._pending[0].done

    def path(self, manifest: Manifest) -> Path:
        return self.root / checkpoint.checkpoint_name(manifest.update)

    def whole_best(self) -> Mapping[str, Any] | None:
        """What is the best of all that is whole, once what is being written is; None where
        there is none, or, which is said, somebody removed it.
        """
        self.finish()
        if self.best is None:
            return None
        path = self.root / checkpoint.checkpoint_name(self.best["update"])
        if self.engine.gather_objects(path.is_dir())[0]:
            return self.best
        self.best = None
        self.notice(f"{path}, the best, is not there any more; the best begins anew")
        return None

    def take_seconds(self) -> float:
        """How long saving kept the caller from training since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    # -- writing -----------------------------------------------------------------------

    def require_free(self, update: int) -> None:
        """CheckpointError, on all ranks, where a save of `update` could not begin."""
        final = self.root / checkpoint.checkpoint_name(update)
        error = self._on_first_rank(lambda: checkpoint.require_free(final))
        if error is not None:
            raise CheckpointError(error)

    def begin(self, manifest: Manifest) -> None:
        """Start a checkpoint of the engine's state. A failure, now or later on, is loud,
        and not the end.
        """
        self.finish()
        error = self._begin(manifest)
        if error is not None:
            self._say_failed(error)
        elif not self.rules.background:
            self.finish()

    def finish(self, *, must_succeed: bool = False) -> None:
        """Commit what `begin` began, if anything. CheckpointError where it failed and must not."""
        if self._pending is None:
            return
        started = time.perf_counter()
        pending, manifest = self._pending
        self._pending = None
        self.allow(_patience(manifest))
        error = self._commit(pending, manifest)
        self.beat()
        now = time.perf_counter()
        self._seconds += now - started
        # The writer's, who was ready before, as in an evaluation.
        idle = max(0.0, started - pending.ended_at)
        self.longest_seconds = max(self.longest_seconds, now - self._begun - idle)
        if error is not None and must_succeed:
            raise CheckpointError(error)
        if error is not None:
            self._say_failed(error)

    def save(self, manifest: Manifest) -> Path:
        """A checkpoint of the engine's state, whole when this returns;

        nothing is done where it is there already. CheckpointError, on all ranks alike,
        where it cannot be written.
        """
        final = self.path(manifest)
        if self._pending is None or self._pending[1].update != manifest.update:
            self.finish()
            if self.whole == final:
                return final
            error = self._begin(manifest)
            if error is not None:
                raise CheckpointError(error)
        self.finish(must_succeed=True)
        self._finish_sweeping()
        return final

    def _begin(self, manifest: Manifest) -> str | None:
        """Make the directory with its assets and start writing; what went wrong, if anything."""
        self._begun = started = time.perf_counter()
        manifest = naming(manifest, self.best)
        final = self.path(manifest)
        error = self._on_first_rank(lambda: self._make_directory(final))
        if error is None:
            temporary = checkpoint.temporary_path(final)
            self._pending = self.engine.begin_save(temporary), manifest
        self._seconds += time.perf_counter() - started
        return error

    def _make_directory(self, final: Path) -> None:
        self._finish_sweeping()  # the space may be needed
        temporary = checkpoint.begin(final)
        try:
            for name, content in self._assets.items():
                file = temporary / checkpoint.ASSETS / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        except OSError:
            checkpoint.discard(temporary)
            raise

    def _commit(self, pending: PendingSave, manifest: Manifest) -> str | None:
        final = self.path(manifest)
        temporary = checkpoint.temporary_path(final)
        try:
            files = pending.finish()
        except CheckpointError as failure:  # the same on all ranks
            self._on_first_rank(lambda: checkpoint.discard(temporary))
            return str(failure)

        def commit() -> None:
            try:
                checkpoint.commit(
                    temporary, final, manifest, known=files, overwrite=True
                )
            except (CheckpointError, OSError):
                checkpoint.discard(temporary)
                raise
            leave_word(self.root, self.notice)

        error = self._on_first_rank(commit)
        if error is None:
            self.whole, self.best = final, manifest.extra.get(BEST)
            self._damaged.discard(final)
            self._retire()
        return error

    def _retire(self) -> None:
        """Make room. What cannot be removed is no reason to call the checkpoint failed."""
        best: list[Path] = []
        if self.best is not None:
            best = [self.root / checkpoint.checkpoint_name(self.best["update"])]

        def retire() -> None:
            checkpoint.retain(
                self.root,
                keep_last=self.rules.keep_last,
                keep_every=self.rules.keep_every,
                keep={*self._damaged, *best},
            )
            # freeing terabytes takes a file system a while, and nobody needs to wait for it
            self._sweeper = threading.Thread(
                target=checkpoint.sweep, args=(self.root,), name="checkpoint sweeper"
            )
            self._sweeper.start()

        error = self._on_first_rank(retire)
        if error is not None:
            self.notice(f"{error}; older checkpoints stay, watch the space")

    def _finish_sweeping(self) -> None:
        if self._sweeper is not None:
            self._sweeper.join()
            self._sweeper = None

    def _say_failed(self, error: str) -> None:
        kept = (
            "the checkpoint before it is intact" if self.whole else "none is there yet"
        )
        self.notice(f"{error}; training goes on, {kept}")

    # -- reading -----------------------------------------------------------------------

    def newest_whole(self) -> Path | None:
        """The newest checkpoint that is whole; None where there never was one.

        Damaged ones are passed over, loudly, and left where they are, under their name:
        training replaces them when it gets there. Only what all ranks find damaged is;
        where one cannot read, or reads otherwise than the others, UnreadableError stops
        the run with nothing changed. CheckpointError where there are checkpoints, or
        remnants of some, and none is whole: a stage never begins anew unasked.
        """
        found = checkpoint.agreed_checkpoints(self.root, self.engine)
        for path in reversed(found):
            error = self.damage(path)
            if error is None:
                self.whole = path
                self.best = checkpoint.read_manifest(path).extra.get(BEST)
                return path
            self._damaged.add(path)
            if self.engine.rank == 0:
                self.notice(f"{error}\n{path} is passed over")
        _require_none_before(self.engine, self.root, found)
        return None

    def damage(self, path: Path) -> str | None:
        """What is wrong with a checkpoint, or None; each rank reads its share of it.

        A whole one gives its assets to the checkpoints to come. UnreadableError where
        the ranks do not agree, or cannot read.
        """
        with suppress(CheckpointError):
            self.allow(_patience(checkpoint.read_manifest(path)))
        try:
            manifest = checkpoint.open_checkpoint(path, self.engine)
        except DamagedError as error:
            return str(error)
        assets = _read_assets(self._on_first_rank, path, manifest)
        if self.engine.rank == 0:
            self._assets = assets
        self.allow(_patience(manifest))  # loading comes next
        return None


def _read_assets(
    on_first_rank: Callable[[Callable[[], None]], str | None],
    path: Path,
    manifest: Manifest,
) -> dict[str, bytes]:
    """What travels with the weights of a checkpoint, on rank 0. Collective."""
    assets: dict[str, bytes] = {}

    def read() -> None:
        folder = f"{checkpoint.ASSETS}/"
        for name in manifest.files:
            if name.startswith(folder):
                assets[name.removeprefix(folder)] = (path / name).read_bytes()

    error = on_first_rank(read)
    if error is not None:
        raise checkpoint.UnreadableError(error)
    return assets


def _require_none_before(engine: Engine, root: Path, found: Sequence[Path]) -> None:
    """CheckpointError where a stage had checkpoints, all of those `found` damaged or gone.
    Collective.
    """
    if found:
        raise CheckpointError(
            f"every checkpoint in {root} is damaged "
            f"({', '.join(p.name for p in reversed(found))}); "
            f"restore one, or {begin_anew(root)}"
        )
    remnants = _remnants(engine, root)
    if remnants:
        raise CheckpointError(
            f"{root} holds no checkpoint, but what is left of some "
            f"({', '.join(remnants)}); restore one under its name, or "
            f"{begin_anew(root)}"
        )
    error = _on_first_rank(engine, root, lambda: require_none_ever(root))
    if error is not None:
        raise CheckpointError(error)


def _remnants(engine: Engine, root: Path) -> list[str]:
    """Names below `root` that are left of checkpoints, as rank 0 sees them. Collective."""
    names: list[str] = []
    error = _on_first_rank(
        engine, root, lambda: names.extend(p.name for p in checkpoint.remnants(root))
    )
    if error is not None:
        raise checkpoint.UnreadableError(error)
    first: list[str] = engine.gather_objects(names)[0]
    return first


def _patience(manifest: Manifest) -> float:
    """Seconds that reading or writing a checkpoint may take on a file system that works."""
    return (
        manifest.model.parameters() * _BYTES_PER_PARAMETER / _SLOWEST_BYTES_PER_SECOND
    )


def _on_first_rank(
    engine: Engine, root: Path, action: Callable[[], None]
) -> str | None:
    """Run `action` on rank 0; its error in words, or None, on every rank."""
    error = None
    if engine.rank == 0:
        try:
            action()
        except CheckpointError as failure:
            error = str(failure)
        except OSError as failure:
            error = (
                f"{failure.filename or root}: "
                f"{failure.strerror or failure}; check space, quota and permissions"
            )
    first: str | None = engine.gather_objects(error)[0]
    return first
