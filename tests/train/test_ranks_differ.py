"""What each rank opens for itself, and one of them does not see: all stop with one message
that names it, at once, and nothing is changed. Two gloo ranks, one set of processes.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import checkpoint, workflow
from alia_ctx.config.load import load_run
from alia_ctx.errors import AliaError, DataError
from alia_ctx.train.agreement import RanksDifferError, on_all_ranks
from tests.checkpoint.test_opening import failing, write_checkpoint
from tests.distributed import run_distributed
from tests.small_run import write_run
from tests.workflow.scenarios import SMALL, Run

# What is not as it was -> the rank, the place below the run's folder, how, the stage.
FAULTS: dict[str, tuple[int, str, str, str]] = {
    "plan gone": (1, "out/plans/short", "ENOENT", "short"),
    "plan stale": (1, "out/plans/short", "ESTALE", "short"),
    "plan unreadable on the first": (0, "out/plans/short", "EIO", "short"),
    "text unreadable": (1, "text.bin", "EIO", "short"),
    "held-out text gone": (1, "held_out.idx", "ENOENT", "short"),
    "origin gone": (1, "out/stages/short", "ENOENT", "long"),
    "origin stale": (1, "out/stages/short", "ESTALE", "long"),
    "origin unreadable on the first": (0, "out/stages/short", "EIO", "long"),
    "manifest of the origin": (1, "out/stages/short/checkpoints", "EACCES", "long"),
    "another plan": (1, "other plan", "", "short"),
    "another origin": (1, "other origin", "", "long"),
}
SETTINGS = [*SMALL, "cluster.ranks_per_node=2", "evaluation.every_updates=4"]


def train(folder: Path, output: Path, stage: str) -> str:
    overrides = [*SETTINGS, f"output={output}"]
    try:
        run = workflow.load_on_all_ranks(folder / "run.yaml", overrides, [stage])
        workflow.train(run, stage)
    except (AliaError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def scenarios(rank: int, folder_name: str) -> dict[str, Any]:
    folder = Path(folder_name)
    output = folder / "out"
    seen = {}
    for name, (where, place, fault, stage) in FAULTS.items():
        own = folder / place if rank == where and not fault else output
        fails = (
            failing(folder / place, fault)
            if rank == where and fault
            else contextlib.nullcontext()
        )
        before = Run(folder / "run.yaml", folder).files()
        with fails:
            said = train(folder, own, stage)
        seen[name] = said, Run(folder / "run.yaml", folder).files() == before
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run")
    path = write_run(folder)
    run_distributed(prepare, 1, str(path))
    return run_distributed(scenarios, 2, str(folder), timeout=100)


def prepare(rank: int, path: str) -> None:
    """Plans of both stages, `short` trained; and, under other names, what a rank would see
    whose file system shows something else: another plan, another origin.
    """
    folder = Path(path).parent
    run = load_run(path, SETTINGS)
    workflow.pack(run, "short")
    shutil.copytree(folder / "out", folder / "other origin")
    workflow.train(load_run(path, SMALL), "short")
    workflow.pack(run, "long")
    settings = [*SMALL, f"output={folder / 'other origin'}"]
    workflow.train(load_run(path, [*settings, "engine.loss_chunk_tokens=16"]), "short")
    _other_weights(folder / "other origin/stages/short/checkpoints")
    shutil.copytree(folder / "out/plans/long", folder / "other origin/plans/long")
    other = load_run(path, [*SETTINGS, f"output={folder / 'other plan'}", "seed=9"])
    workflow.pack(other, "short")


def _other_weights(root: Path) -> None:
    """The last checkpoint saved anew with a further file among its assets."""
    path = checkpoint.list_checkpoints(root)[-1]
    manifest = checkpoint.read_manifest(path)
    file = next((path / "state").glob("*.distcp"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    temporary = checkpoint.temporary_path(path)
    path.rename(temporary)
    (temporary / checkpoint.MANIFEST).unlink()
    checkpoint.commit(temporary, path, manifest)


@pytest.mark.parametrize("name", FAULTS)
def test_what_one_rank_does_not_see_stops_all_with_one_message(
    name: str, seen: list[dict[str, Any]]
) -> None:
    (first, unchanged, *_), (second, _) = seen[0][name], seen[1][name]
    assert first == second
    where = f"rank {FAULTS[name][0]} on {socket.gethostname()}: "
    assert first.partition(": ")[2].startswith(where), first
    assert "nothing was changed; see to that file system" in first
    assert unchanged


# -- without processes -----------------------------------------------------------------


class Gathered:
    """Rank 0 of three, of which the others bring `others`."""

    rank, world_size = 0, 3

    def __init__(self, *others: tuple[str, str | None, Any]) -> None:
        self.others = others

    def gather_objects(self, value: Any) -> list[Any]:
        return [value, *self.others]


def fail() -> str:
    raise DataError("no plan")


def test_what_all_see_is_used_and_what_none_sees_is_its_own_error() -> None:
    well = ("b", None, "x")
    assert on_all_ranks(Gathered(well, well), "it", lambda: "x", str) == "x"
    ill = ("b", "DataError: no plan", None)
    with pytest.raises(DataError, match=r"^no plan$"):
        on_all_ranks(Gathered(ill, ill), "it", fail)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([("b", None, "x"), ("c", "DataError: no: it", None)], "rank 2 on c: no: it"),
        ([("b", None, "y"), ("c", None, "x")], "rank 1 on b: it: is y there, x on "),
    ],
)
def test_the_first_that_sees_otherwise_is_named(others: list[Any], said: str) -> None:
    with pytest.raises(RanksDifferError, match=said):
        on_all_ranks(Gathered(*others), "it", lambda: "x", str)


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        on_all_ranks(Gathered(("b", None, 1), ("c", None, 1)), "it", lambda: 1 // 0)
    ill = ("b", "ZeroDivisionError: as tested", None)
    with pytest.raises(RanksDifferError, match="rank 1 on b: as tested"):
        on_all_ranks(Gathered(ill, ill), "it", lambda: 1)


class Share:
    """One rank of several, which sees only its own share."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size

    def gather_objects(self, value: Any) -> list[Any]:
        return [value] * self.world_size


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_the_shares_of_all_ranks_are_all_files(
    ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is read by one rank, and none is left out, tensors or assets."""
    from alia_ctx.checkpoint import opening

    path = write_checkpoint(tmp_path / "update-00000004")
    read: list[str] = []
    original = opening.file_checksum

    def file_checksum(file: Path) -> str:
        read.append(str(file.relative_to(path)))
        return original(file)

    monkeypatch.setattr(opening, "file_checksum", file_checksum)
    for rank in range(ranks):
        checkpoint.open_checkpoint(path, Share(rank, ranks))
    on_disk = {str(f.relative_to(path)) for f in path.rglob("*") if f.is_file()}
    assert sorted(read) == sorted(on_disk - {checkpoint.MANIFEST})
