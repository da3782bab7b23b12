"""What `doctor` finds, and what it would find on machines that are not here."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from alia_ctx import workflow
from alia_ctx.cluster import disk, links, software
from alia_ctx.cluster.findings import Finding, good, merged, weak
from alia_ctx.cluster.gpus import gpu_health, read_health
from alia_ctx.config.load import load_plan, load_run
from alia_ctx.train.faults import number_on_host
from alia_ctx.workflow import doctor
from tests.distributed import run_distributed
from tests.paths import ROOT
from tests.small_run import alia, write_run


class SlowRank:
    """Rank 1 multiplies twelve times as often."""

    def __call__(self, rank: int) -> None:
        original = links._least

        def least(action: Any, repeats: int) -> float:
            again = 12 if rank == 1 and action.__name__ == "multiply" else 1
            return original(lambda: [action() for _ in range(again)], repeats)

        links._least = least


def found(rank: int, path: str, place: str, sabotage: Any = None) -> list[Finding]:
    if sabotage is not None:
        sabotage(rank)
    run, _ = load_plan(
        path, ["cluster.ranks_per_node=2", "cluster.host_memory_gib=0.5"]
    )
    return workflow.examine(run, Path(place))


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_two_ranks_look_together_and_name_the_slow_one(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    first, second = run_distributed(
        found, 2, str(path), str(tmp_path / "out"), SlowRank()
    )
    assert first == second, "all ranks hear the same"
    named = by_name(first)
    expected = {"ranks", "clocks", "shared", "locks", "disk speed", "room"}
    expected |= {"all-reduce", "point to point", "straggler", "torch", "attention"}
    assert expected <= set(named)
    assert not [f for f in first if f.verdict == "broken"]
    slow = named["straggler"]
    assert slow.verdict == "weak"
    assert re.search(r"slower: rank 1 on \S+ \(cpu\) \d+\.", slow.words), slow
    assert named["locks"] == good("locks", "flock keeps other processes out")
    assert not list(tmp_path.glob(".alia-ctx-*")), "nothing is left behind"


# -- without ranks -----------------------------------------------------------------------


def test_what_was_tested_on_hosts_is_what_is_pinned() -> None:
    text = (ROOT / "constraints.txt").read_text()
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", text, re.MULTILINE))
    tested = software.TESTED["cpu"]
    assert {name: pinned[name] for name in tested} == tested


def test_what_was_tested_on_gpus_is_what_their_page_says() -> None:
    """In the table of what was measured, and in the file that installs it."""
    text = (ROOT / "docs" / "gpu-software.md").read_text()
    table = dict(
        re.findall(r"^\| ([\w-]+) \| ([\w.]+)(?:\+\w+)? \|", text, re.MULTILINE)
    )
    file = (ROOT / "launch" / "constraints-gpu.txt").read_text()
    installed = dict(re.findall(r"^([\w-]+)==([\w.]+)", file, re.MULTILINE))
    tested = software.TESTED["cuda"]
    assert {name: installed[name] for name in tested} == tested
    for name, release in tested.items():
        assert f"{release}.".startswith(f"{table[name]}."), name
    assert tested.keys() == software.TESTED["cpu"].keys()


@pytest.mark.parametrize(
    ("installed", "device", "verdict", "said"),
    [
        ("2.13.0", "cpu", "good", "2.13.0, tested on hosts"),
        ("2.13.0+cu130", "cpu", "good", "2.13.0+cu130, tested on hosts"),
        ("2.11.0+cu130", "cuda", "good", "2.11.0+cu130, tested on GPUs"),
        ("2.13.0", "cuda", "weak", "2.13.0, tested on hosts; on GPUs 2.11.0 was; "
         "install 2.11.0 to train on GPUs (make setup-gpu; docs/gpu-software.md), or run "
         "`pytest tests/gpu`"),
        ("2.11.0+cu130", "cpu", "weak", "2.11.0+cu130, tested on GPUs; on hosts 2.13.0 "
         "was; keep it for GPUs; install 2.13.0 to train on hosts, or run `make test`"),
        ("2.14.0", "cpu", "weak", "2.14.0; on hosts 2.13.0 was; install 2.13.0 to"),
        ("2.14.0", "cuda", "weak", "2.14.0; on GPUs 2.11.0 was; install 2.11.0 to"),
        (None, "cuda", "broken", "is not installed; pip install torch==2.11.0"),
    ],
)  # fmt: skip
def test_a_release_is_held_against_that_of_its_device(
    installed: str | None,
    device: str,
    verdict: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(software, "installed_version", lambda name: installed)
    finding = software.version("torch", device)
    assert finding.verdict == verdict
    assert f"{finding.words}; {finding.remedy}".startswith(said)


@pytest.mark.parametrize(
    ("device", "gpus", "wanted"),
    [("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", True, "cpu"),
     ("cuda", False, "cuda")],
)  # fmt: skip
def test_the_set_is_that_of_the_device_in_use(
    device: Any, gpus: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(
        software, "version", lambda _, kind: asked.append(kind) or good("torch", "")
    )
    findings = software.software(software.Needs(device=device))
    for _ in range(1 + len(software.TESTED[wanted])):
        next(findings)
    assert {*asked} == {wanted}


@pytest.mark.parametrize(
    ("device", "gpus", "driver", "built", "visible", "verdict", "words"),
    [
        ("auto", True, True, "13.0", None, "good", "CUDA 13.0"),
        ("cuda", True, True, "13.0", None, "good", "CUDA 13.0"),
        ("cpu", True, True, "13.0", None, "broken", "engine.device=cpu"),
        ("cpu", False, True, "13.0", "", "good", "no GPU in use"),
        ("cpu", False, False, None, None, "good", "no GPU in use"),
        ("auto", False, False, "13.0", None, "weak", "go to a GPU node"),
        ("auto", False, True, "13.0", None, "broken", "compare"),
        ("auto", False, True, None, None, "broken", "built without CUDA"),
        ("auto", False, True, "13.0", "-1", "weak", "unset it"),
        ("cuda", False, False, "13.0", None, "broken", "(--gres), or set engine.dev"),
        ("cuda", False, True, None, None, "broken", "install torch from its wheels"),
        ("cuda", False, True, "13.0", "", "broken", "unset it, or set engine.device"),
        ("cuda", False, True, "13.0", "NoDevFiles", "broken", "ask for GPUs"),
    ],
)
def test_gpus_are_held_against_what_the_run_wants(
    device: Any,
    gpus: bool,
    driver: bool,
    built: str | None,
    visible: str | None,
    verdict: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27))
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(software, "_DRIVER", tmp_path / ("" if driver else "none"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    finding = software.cuda(device)
    assert finding.verdict == verdict and words in str(finding)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_run_for_gpus_where_there_is_none_is_broken_by_that_alone(
    tmp_path: Path,
) -> None:
    done = alia("doctor", str(write_run(tmp_path)), "engine.device=cuda")
    assert done.returncode == 2, done.stderr
    [line] = [n for n in done.stdout.splitlines() if n.startswith("broken")]
    assert line.startswith("broken cuda: engine.device=cuda, and")
    assert "engine.device=auto" in line and "first host" not in done.stdout


@dataclass
class Properties:
    """As torch tells them; numbers of the PCI bus in decimal."""

    pci_domain_id: int
    pci_bus_id: int
    pci_device_id: int


def test_the_driver_is_asked_for_the_gpu_that_the_process_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its place on the bus, as `nvidia-smi --query-gpu=pci.bus_id` prints it."""
    program, said = tmp_path / "nvidia-smi", tmp_path / "said"
    program.write_text(f'#!/bin/sh\necho "$1" >{said}\necho "{WELL}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    found = Properties(1, 0xA3, 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    assert {f.verdict for f in gpu_health(0)} == {"good"}
    assert said.read_text() == "--id=00000001:a3:00.0\n"
    said.unlink()
    [finding] = gpu_health(1)
    assert finding.verdict == "broken" and "wants GPU 1, and sees 1" in finding.words
    assert not said.exists()


@pytest.mark.parametrize(
    ("index", "visible", "number"),
    [
        (1, None, "1"),
        (1, "2,3", "3"),
        (0, " 5 ", "5"),
        (1, "GPU-8a1b, GPU-77c0", "GPU-77c0"),
        (0, "MIG-40d1", "MIG-40d1"),
        (3, "0,1", "3"),
    ],
)
def test_a_gpu_is_named_by_its_number_on_the_host(
    index: int, visible: str | None, number: str
) -> None:
    assert number_on_host(index, visible) == number


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
gpfs_projects /gpfs/projects gpfs rw 0 0
tmpfs /gpfs/projects/ab\\040c tmpfs rw 0 0
server:/x /gpfs/projects2 nfs4 rw 0 0
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/home/a", "ext4"),
        ("/gpfs/projects/run", "gpfs"),
        ("/gpfs/projects", "gpfs"),
        ("/gpfs/projects/ab c/run", "tmpfs"),
        ("/gpfs/projects2/run", "nfs4"),
        ("/gpfs/projects3", "ext4"),
    ],
)
def test_the_file_system_is_that_of_the_longest_mount_point(
    place: str, kind: str
) -> None:
    assert disk.file_system(Path(place), MOUNTS)[0] == kind


def test_too_little_room_is_broken(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    gib = free.f_bavail * free.f_frsize / 2**30
    assert disk.room(tmp_path, gib / 2).verdict == "good"
    assert disk.room(tmp_path, gib * 2).verdict == "broken"


def test_room_is_asked_for_what_is_still_to_be_written(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    run = load_run(path)
    whole = {name: doctor._to_be_written(run, name) for name in run.stages}
    assert min(whole.values()) > 0
    kept = tmp_path / "out/stages/long/checkpoints/update-00000003"
    kept.mkdir(parents=True)
    (kept / "__0_0.distcp").write_bytes(bytes(1 << 15))
    left = doctor._to_be_written(run, "long")
    assert left == pytest.approx(whole["long"] - 2**-15, abs=1e-9)
    shutil.rmtree(tmp_path / "out/stages/long")
    workflow.pack(run, "short")
    workflow.train(run, "short")
    assert doctor._to_be_written(run, "short") == 0
    assert doctor._to_be_written(run, "long") == whole["long"]


# Lines as `nvidia-smi --query-gpu=... --format=csv,noheader,nounits` prints them.
WELL = (
    "NVIDIA H100 80GB HBM3, 550.54.15, 1980, 1980, 0x0000000000000000, Enabled, 0, 41"
)
IDLE = "NVIDIA H100 80GB HBM3, 550.54.15, 345, 1980, 0x0000000000000001, Enabled, 0, 28"


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        (WELL, {}),
        (IDLE, {}),
        (WELL.replace("Enabled, 0", "Enabled, 3"), {"gpu memory": "broken"}),
        (WELL.replace("Enabled, 0", "Disabled, [N/A]"), {"gpu memory": "weak"}),
        (WELL.replace("Enabled, 0", "[N/A], [N/A]"), {}),
        (WELL.replace("00000,", "00048,"), {"gpu clocks": "weak"}),
        (WELL[:-2] + "91", {"gpu heat": "weak"}),
        ("No devices were found", {"gpu": "weak"}),
    ],
)
def test_what_the_driver_says_of_a_gpu(line: str, bad: dict[str, str]) -> None:
    findings = list(read_health(line + "\n"))
    assert {f.name: f.verdict for f in findings if f.verdict != "good"} == bad


def test_what_all_ranks_have_alike_is_one_line() -> None:
    alike, other = good("torch", "2.13.0"), weak("torch", "2.12.0", "update")
    lines = merged([("rank 0", [alike]), ("rank 1", [other]), ("rank 2", [alike])])
    assert [str(line) for line in lines] == [
        "good   torch: 2.13.0 [rank 0, rank 2]",
        "weak   torch: 2.12.0; update [rank 1]",
    ]
    assert [
        line.where for line in merged([("rank 0", [alike]), ("rank 1", [alike])])
    ] == [""]
