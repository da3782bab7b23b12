"""The checkpoints of one stage: written in the background, committed whole, damaged ones set aside.

Every method but the properties is collective: all ranks call it, and all of them learn
of a failure on any.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.config.run import CheckpointConfig
from alia_ctx.errors import CheckpointError
from alia_ctx.train.engine import Engine, PendingSave


class CheckpointManager:
    """Writes to and reads from `root`, the checkpoints directory of a stage.

    Args:
        rules: retention, and whether saves go on in the background.
        notice: called on rank 0 with what a person should know.
        beat: called after everything that takes long.
    """

    def __init__(
        self,
        engine: Engine,
        root: Path,
        rules: CheckpointConfig,
        notice: Callable[[str], None],
        beat: Callable[[], None],
    ) -> None:
        self.engine, self.root, self.rules = engine, root, rules
        self.notice, self.beat = notice, beat
        self.assets: Path | None = (
            None  # what travels with the weights: copied into every checkpoint
        )
        self.longest_seconds = 0.0
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

    def take_seconds(self) -> float:
        """How long saving kept the caller from training since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def begin(self, manifest: Manifest) -> None:
        """Start a checkpoint of the engine's state. A failure later on is loud, and not the end."""
        self.finish()
        self._begun = started = time.perf_counter()
        final = self.path(manifest)
        if self.engine.rank == 0:
            self._finish_sweeping()  # the space may be needed
            temporary = checkpoint.begin(final)
            if self.assets is not None and self.assets.is_dir():
                shutil.copytree(self.assets, temporary / checkpoint.ASSETS)
        self.engine.barrier()
        self._pending = (
            self.engine.begin_save(checkpoint.temporary_path(final)),
            manifest,
        )
        self._seconds += time.perf_counter() - started
        if not self.rules.background:
            self.finish()

    def finish(self, *, must_succeed: bool = False) -> None:
        """Commit what `begin` began, if anything. CheckpointError where it failed and must not."""
        if self._pending is None:
            return
        started = time.perf_counter()
        pending, manifest = self._pending
        self._pending = None
        error = self._commit(pending, manifest)
        self.beat()
        self._seconds += time.perf_counter() - started
        self.longest_seconds = max(
            self.longest_seconds, time.perf_counter() - self._begun
        )
        if error is not None and must_succeed:
            raise CheckpointError(error)
        if error is not None:
            self.notice(
                f"{error}; training goes on, the checkpoint before it is intact"
            )

    def save(self, manifest: Manifest) -> Path:
        """A checkpoint of the engine's state, whole when this returns;

        nothing is done where it is there already.
        """
        final = self.path(manifest)
        if self._pending is None or self._pending[1].update != manifest.update:
            self.finish()
            if checkpoint.latest(self.root) == final:
                return final
            self.begin(manifest)
        self.finish(must_succeed=True)
        self._finish_sweeping()
        return final

    def _finish_sweeping(self) -> None:
        if self._sweeper is not None:
            self._sweeper.join()
            self._sweeper = None

    def newest_whole(self) -> Path | None:
        """The newest checkpoint whose files are as its manifest says; newer ones that are
        not are set aside, loudly.

        CheckpointError where there are checkpoints and none is whole.
        """
        damaged = []
        for path in reversed(checkpoint.list_checkpoints(self.root)):
            error = self.damage(path)
            if error is None:
                return path
            damaged.append(path)
            if self.engine.rank == 0:
                self.notice(
                    f"{error}\n{path} is set aside as {checkpoint.set_aside(path).name}"
                )
            self.engine.barrier()
        if damaged:
            raise CheckpointError(
                f"every checkpoint in {self.root} is damaged "
                f"({', '.join(p.name for p in damaged)}); "
                "restore one, or empty the directory to begin the stage anew"
            )
        return None

    def damage(self, path: Path) -> str | None:
        """What is wrong with the files of a checkpoint, or None;

        each rank reads its share of them.
        """
        problem = None
        try:
            manifest = checkpoint.read_manifest(path)
            checkpoint.verify_files(
                path, manifest, part=self.engine.rank, parts=self.engine.world_size
            )
        except CheckpointError as error:
            problem = str(error)
        found = [text for text in self.engine.gather_objects(problem) if text]
        self.beat()
        return "\n".join(dict.fromkeys(found)) or None

    def _commit(self, pending: PendingSave, manifest: Manifest) -> str | None:
        error = None
        final = self.path(manifest)
        temporary = checkpoint.temporary_path(final)
        try:
            files = pending.finish()
            if self.engine.rank == 0:
                checkpoint.commit(
                    temporary, final, manifest, known=files, overwrite=True
                )
                checkpoint.retain(
                    self.root,
                    keep_last=self.rules.keep_last,
                    keep_every=self.rules.keep_every,
                )
                # freeing terabytes takes a file system a while, and nobody needs to wait for it
                self._sweeper = threading.Thread(
                    target=checkpoint.sweep,
                    args=(self.root,),
                    name="checkpoint sweeper",
                )
                self._sweeper.start()
        except (CheckpointError, OSError) as failure:
            error = str(failure)
        found = [text for text in self.engine.gather_objects(error) if text]
        if found and self.engine.rank == 0:
            checkpoint.discard(temporary)
        return found[0] if found else None
