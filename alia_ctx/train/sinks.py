"""Where metrics go beside `metrics.jsonl`: TensorBoard by default, W&B and MLflow by extra."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from alia_ctx.config.rules import sink_problems
from alia_ctx.config.run import Sink
from alia_ctx.errors import STOP_REQUESTS, ConfigError, Problem
from alia_ctx.files import atomic_file


class Writer(Protocol):
    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def open_sinks(
    sinks: Sequence[Sink],
    directory: Path,
    run: str,
    stage: str,
    config: Mapping[str, Any],
    notice: Callable[[str], None],
    update: int = 0,
) -> list[Writer]:
    """Writers for the named sinks; ConfigError where a package is missing or a service
    does not answer.

    `update`: that after which the stage goes on. No point of a later one is shown twice,
    if an earlier start wrote it already. From then on a writer that fails is left out,
    with a `notice`: no training ends for a plot.
    """
    problems = sink_problems(sinks, "metrics.sinks")
    if problems:
        raise ConfigError("metrics cannot be written", problems)
    makers: dict[str, Callable[..., Writer]] = {
        "tensorboard": _TensorBoard,
        "wandb": _WandB,
        "mlflow": _MLflow,
    }
    writers: list[Writer] = []
    for sink in sinks:
        try:
            writers.append(
                _Optional(
                    sink, makers[sink](directory, run, stage, config, update), notice
                )
            )
        except STOP_REQUESTS:
            raise
        except BaseException as error:  # of any library, some of which end programs
            remedy = f"set it up ({_SETUP[sink]}), or leave it out"
            problem = Problem(
                "metrics.sinks", sink, f"does not start ({_first_line(error)})", remedy
            )
            raise ConfigError("metrics cannot be written", [problem]) from error
    return writers


_SETUP = {
    "tensorboard": "it writes below the stage's directory",
    "wandb": "WANDB_API_KEY, or WANDB_MODE=offline where there is no network",
    "mlflow": "MLFLOW_TRACKING_URI; without it, mlruns/ in the stage's directory",
}


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


class _Optional:
    """A writer that may fail once, and is silent from then on."""

    def __init__(
        self, name: str, writer: Writer, notice: Callable[[str], None]
    ) -> None:
        self._name, self._notice = name, notice
        self._writer: Writer | None = writer

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._try(lambda writer: writer.write(step, values))

    def close(self) -> None:
        self._try(lambda writer: writer.close())

    def _try(self, action: Callable[[Writer], None]) -> None:
        if self._writer is None:
            return
        try:
            action(self._writer)
        except STOP_REQUESTS:
            raise
        except BaseException as error:  # as above
            self._writer = None
            self._notice(
                f"{self._name} failed ({_first_line(error)}); metrics.jsonl has what "
                "it lacks from here on"
            )


class _TensorBoard:
    """Its readers leave out what earlier files have from `purge_step` on."""

    def __init__(
        self,
        directory: Path,
        run: str,
        stage: str,
        config: Mapping[str, Any],
        update: int,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(directory / "tensorboard"), purge_step=update + 1
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A run that goes on knows its next step, and shows no point before it.

    W&B drops what is logged at a step below that of its run. So a stage that is begun
    anew gets a run of its own, whatever it is called: none of its points are lost, and
    those of the earlier one stay as they were.
    """

    def __init__(
        self,
        directory: Path,
        run: str,
        stage: str,
        config: Mapping[str, Any],
        update: int,
    ) -> None:
        import wandb

        known = _KnownRun(directory / "wandb-run-id")
        # Earlier releases called it by the names of run and stage.
        number = known.read(update) or (
            f"{run}-{stage}" if update else secrets.token_hex(8)
        )
        self._run = wandb.init(
            project=run,
            name=stage,
            id=number,
            resume="allow",
            dir=str(directory),
            config=dict(config),
        )
        known.write(number)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if step >= (self._run.step or 0):
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of the experiment `run`; a stage that is resumed goes on with the run that it
    began, one that is begun anew begins another.
    """

    def __init__(
        self,
        directory: Path,
        run: str,
        stage: str,
        config: Mapping[str, Any],
        update: int,
    ) -> None:
        import mlflow

        # MLflow's own default is a database in the working directory, which its small
        # package cannot even open; and since 3.x a directory needs to be asked for in
        # so many words.
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            mlflow.set_tracking_uri((directory / "mlruns").resolve().as_uri())
        mlflow.set_experiment(run)
        known = _KnownRun(directory / "mlflow-run-id")
        started = mlflow.start_run(run_id=known.read(update), run_name=stage)
        known.write(started.info.run_id)
        self._mlflow = mlflow
        history = mlflow.MlflowClient().get_metric_history(started.info.run_id, "loss")
        self._written = max((point.step for point in history), default=0)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if step > self._written:
            self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class _KnownRun:
    """The file in a stage's directory that says which run of a service its points are in."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, update: int) -> str | None:
        """The run that a stage goes on with after `update`; None where it begins one."""
        if update == 0 or not self._path.is_file():
            return None
        return self._path.read_text(encoding="utf-8").strip() or None

    def write(self, number: str) -> None:
        with atomic_file(self._path) as stream:
            stream.write(number.encode())
