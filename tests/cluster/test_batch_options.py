"""Options of sbatch as `launch` finds them: however a person writes one, it is the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from alia_ctx import workflow
from alia_ctx.cluster import Slurm
from alia_ctx.spec.launch import LaunchSpec
from tests.cluster.launched import SLURM, cluster, commands
from tests.small_run import write_run

DEFAULTS = ("ACCOUNT", "QOS", "PARTITION", "RESERVATION", "CLUSTERS")
# What SLURM 22.05 takes from each header, as `sbatch -vv` lists it.
HEADERS = {
    "#SBATCH --account=mine": {"ACCOUNT"},
    "#SBATCH --account mine": {"ACCOUNT"},
    "#SBATCH\t--accou=mine": {"ACCOUNT"},
    "#SBATCH -A mine": {"ACCOUNT"},
    "#SBATCH -Amine -qfast": {"ACCOUNT", "QOS"},
    "#SBATCH --hold -A mine # --qos=fast": {"ACCOUNT"},
    "#SBATCH -Hppart --res=r": {"PARTITION", "RESERVATION"},
    "#SBATCH --partition 'a b' --cluster x": {"PARTITION", "CLUSTERS"},
    "#SBATCH -M x": {"CLUSTERS"},
    '#SBATCH --comment="--account=x" --nodes=1': set(),
    '#SBATCH --comment "-A is mine" --nodes=1': set(),
    "#SBATCH --acctg-freq=task=1 --priority=5 -n 4": set(),
    "#SBATCH --comment=x#SBATCH --qos=a": set(),
    "##SBATCH --account=mine": set(),
    "# words\n\n#SBATCH --qos=a\necho\n#SBATCH -A mine": {"QOS"},
    "#SBATCH --comment='open --qos=fast": set(),
}


@pytest.mark.parametrize("header", HEADERS)
def test_what_a_batch_file_says_is_not_said_by_a_variable(
    header: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    commands(tmp_path, sbatch=f"env >{tmp_path}/said; echo 7")
    for name in DEFAULTS:
        monkeypatch.setenv(f"SBATCH_{name}", "other")
    script = tmp_path / "x.sbatch"
    script.write_text(f"#!/bin/bash\n{header}\n")
    Slurm().submit(script)
    lines = (tmp_path / "said").read_text().splitlines()
    told = {n.partition("=")[0] for n in lines if n.startswith("SBATCH_")}
    assert told == {
        f"SBATCH_{name}" for name in DEFAULTS if name not in HEADERS[header]
    }


@pytest.mark.parametrize(
    ("options", "unsaid"),
    [
        ([], ["account", "qos"]),
        (["--account mine"], ["qos"]),
        (["--accou=mine", "--qo fast"], []),
        (["--hold -A mine", "--nice -qfast"], []),
        (["-A mine", "-q fast"], []),
        (["--account=mine --qos=fast"], []),
        (["--acctg-freq=task=1", "--quiet"], ["account", "qos"]),
        (['--comment="--account=x --qos=y"'], ["account", "qos"]),
    ],
)
def test_an_option_that_says_whom_it_is_charged_to_counts(
    options: list[str], unsaid: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in DEFAULTS:
        monkeypatch.delenv(f"SBATCH_{name}", raising=False)
    assert LaunchSpec(options=options).not_charged() == unsaid


def test_an_empty_variable_charges_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "")
    monkeypatch.setenv("SBATCH_QOS", "fast")
    assert LaunchSpec().not_charged() == ["account"]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--hold -a 0-3", "makes several jobs of one"),
        ("--hold -J x", "is known again"),
        ("--hold -HJx", "is known again"),
        ("--j=x", "is known again"),
        ("--hold --array=0-3", "makes several jobs of one"),
        ("--hold -M x", "do not ask for it"),
        ("--hold -W", "has sbatch wait"),
        ("--hold -h", "submits nothing"),
        ("--hold -V", "submits nothing"),
        ("--mem=0 --wrap 'a b'", "puts another script"),
    ],
)
def test_what_undoes_a_launch_is_found_in_any_spelling(option: str, words: str) -> None:
    [problem] = LaunchSpec(options=[option]).problems()
    assert problem.key == "launch.options" and words in problem.rule


@pytest.mark.parametrize(
    "option",
    [
        *("--nodelist=a,h,J", "--exclude node-J", "--comment '-J is no name'"),
        *("--wait-all-nodes=1", "--hold -x node1 -w node2", "--mem 0 -C h100"),
        *("--hold -ta", "--jobs", "--cluster-constraint=x", "--exclusive=user"),
    ],
)
def test_what_only_looks_like_it_is_taken(option: str) -> None:
    assert not LaunchSpec(options=[option]).problems()


def test_an_account_among_the_options_is_the_one_that_sbatch_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    commands(
        tmp_path,
        sbatch=f"env | grep ^SBATCH_ >>{tmp_path}/said; echo x >>{tmp_path}/n; "
        f"wc -l <{tmp_path}/n",
        squeue="true",
    )
    monkeypatch.setenv("SBATCH_ACCOUNT", "other")
    monkeypatch.setenv("SBATCH_PARTITION", "mine")
    launch = {**SLURM, "account": None, "options": ["--account mine"]}
    over = cluster(tmp_path, launch)
    made = workflow.launch(write_run(tmp_path), cluster=over, submit=True)
    assert len(made.numbers) == 4
    assert {*(tmp_path / "said").read_text().split()} == {"SBATCH_PARTITION=mine"}
