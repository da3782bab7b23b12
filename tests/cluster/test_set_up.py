"""Whatever `launch.setup` does to its shell, what follows is as without, but for what it
exports; and paths that hold what a shell or SLURM would read as something else.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from alia_ctx import workflow
from alia_ctx.errors import ConfigError
from tests.cluster.launched import SLURM, cluster, options
from tests.paths import ROOT
from tests.small_run import write_run

SET_UP = [
    ["set -e"],
    ["set -euo pipefail", "set -fC"],
    ["trap 'echo trapped' EXIT", "trap '' USR1", "trap 'exit 9' ERR"],
    ["cd /"],
    ["shopt -s expand_aliases nullglob", "alias srun=false echo=false cd=false"],
    ["srun() { false; }", "wait() { false; }", "exec() { false; }", "cd() { false; }"],
    ["IFS=,", "status=3", "asked=1", "verb=nothing", "readonly config=x stage=y"],
    ["set -- a b c"],
    ["exec 3>/dev/null", "export PATH=$PATH:/x"],
    ["unset ALIA_STEP ALIA_LOGS"],
]
PROBE = (
    r"""printf '%s\n' "$-" "$PWD" "$ALIA_STEP" "$FROM_SET_UP" "$OURS" "$*" """
    """"$(trap -p)" "$(alias)" "$(type -t srun wait cd)" "$(shopt nullglob)" """
    """"$(printf '%q' "$IFS")" "${status-}${asked-}${config-}" """
)


@pytest.mark.parametrize("lines", SET_UP, ids=lambda lines: lines[0])
def test_what_is_set_up_is_what_it_exports_and_nothing_else(
    lines: list[str], tmp_path: Path
) -> None:
    path, shown = write_run(tmp_path), []
    for setup in ([], lines):
        launch = {**SLURM, "setup": ["export FROM_SET_UP=1", *setup]}
        launch |= {"environment": {"OURS": "a b"}}
        files = workflow.launch(path, cluster=cluster(tmp_path, launch)).files
        text = files[1][1].read_text()
        probe = tmp_path / "with blank"
        probe.write_text(text[: text.index("set -uo pipefail")] + PROBE)
        done = subprocess.run(
            ["bash", "with blank"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        shown.append(done.stdout.replace(str(files[1][0].config), "CONFIG"))
    assert shown[0] == shown[1] and "\ntrain\n1\na b\nCONFIG short\n" in shown[1]


@pytest.mark.parametrize("line", ["set -e", "set -u", "trap 'exit 9' ERR", "cd /"])
def test_on_one_machine_too_ranks_are_started_again(line: str, tmp_path: Path) -> None:
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(
        f'#!/bin/bash\necho "$PWD $*" >>{log}\n'
        f'[[ "$*" == *train*short && $(grep -c train.*short$ {log}) -lt 3 ]] && exit 75\n'
        "exit 0\n"
    )
    python.chmod(0o755)
    over = cluster(tmp_path, {"setup": [line]}, nodes=1)
    launched = workflow.launch(
        write_run(tmp_path), [f"launch.python={python}"], cluster=over
    )
    done = subprocess.run(
        [str(launched.files[0][1])], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines()
    trained = [n.split()[-1] for n in lines if "train" in n]
    assert trained == ["short", "short", "short", "long"]
    assert {n.split()[0] for n in lines} == {str(Path.cwd())}


def test_a_set_up_that_fails_ends_the_job(tmp_path: Path) -> None:
    over = cluster(tmp_path, {**SLURM, "setup": ["set -e", "false", "touch /x"]})
    file = workflow.launch(write_run(tmp_path), cluster=over).files[1][1]
    done = subprocess.run([str(file)], capture_output=True, text=True)
    assert done.returncode == 1 and "slurm_stage" not in done.stderr


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("50%jobs", "50%%jobs"),
        ('a "b" c', r"a \"b\" c"),
        ("it's # one", "it's # one"),
        ("%j", "%%j"),
    ],
)
def test_names_are_written_as_sbatch_reads_them(
    name: str, written: str, tmp_path: Path
) -> None:
    output = f"output='{tmp_path}/{name}'" if "'" not in name else ""
    output = output or f'output="{tmp_path}/{name}"'
    over = cluster(tmp_path, SLURM)
    text = workflow.launch(write_run(tmp_path), [output], cluster=over).files[1][1]
    asked = text.read_text()
    logs = f"{tmp_path}/{written}/launch/logs/01-short-%j.out"
    assert f'#SBATCH --output="{logs}"' in asked
    comment = f"alia-ctx {tmp_path}/{name}/launch/01-short"
    assert options(asked)["comment"].replace("\\", "") == comment


@pytest.mark.parametrize("name", ["a\\\\b", "a\\nb"])
def test_a_name_that_sbatch_cannot_read_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="output"):
        workflow.launch(
            write_run(tmp_path),
            [f'output="{tmp_path}/{name}"'],
            cluster=cluster(tmp_path, SLURM),
        )
    assert not [p for p in tmp_path.iterdir() if "launch" in p.name]


# The script's own variables, each of which has a meaning for who submits it by hand, and
# those of the ranks.
OF_THE_SCRIPT = {
    *re.findall(r"ALIA_[A-Z_]+", (ROOT / "launch/slurm_stage.sbatch").read_text()),
    *("ALIA_OF_A_LATER_RELEASE", "MASTER_ADDR", "MASTER_PORT"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE"),
}


def told(file: Path, **environment: str) -> dict[str, str]:
    """The variables that what follows the set-up of a batch file is told."""
    text = file.read_text()
    probe = file.with_name("probe")
    probe.write_text(text[: text.index("set -uo pipefail")] + "env -0")
    done = subprocess.run(
        ["bash", str(probe)], env={**os.environ, **environment}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().split("\0")
    return dict(n.split("=", 1) for n in lines if "=" in n)


@pytest.mark.parametrize("name", ["00-data", "01-short", "03-evaluate"])
def test_a_job_is_told_what_its_file_says_and_nothing_of_the_submitters_shell(
    name: str, tmp_path: Path
) -> None:
    workflow.launch(write_run(tmp_path), cluster=cluster(tmp_path, SLURM))
    file = tmp_path / "out/launch" / f"{name}.sbatch"
    ours = {"ALIA_PYTHON", "ALIA_STEP", "ALIA_LOGS", "ALIA_PROGRESS", "ALIA_SET_UP"}
    ours |= {"ALIA_COMMANDS"} if name != "01-short" else set()
    ours |= {"ALIA_WAIT_SECONDS"} if name != "00-data" else set()
    others = {**dict.fromkeys(OF_THE_SCRIPT, "/old"), "OWN_ALIA_WORD": "/kept"}
    shown = told(file, **others)
    assert {n for n in shown if n.startswith("ALIA_")} == ours
    assert "/old" not in shown.values() and shown["OWN_ALIA_WORD"] == "/kept"


def test_what_the_configuration_sets_of_the_scripts_variables_holds(
    tmp_path: Path,
) -> None:
    set_up = ["export ALIA_CONTAINER=/of_set_up ALIA_MOST_REQUEUES=3 ALIA_STEP=data"]
    environment = {"ALIA_STATUS_PARENT": "/shared", "ALIA_COMMANDS": "report x"}
    launch = {**SLURM, "setup": set_up, "environment": environment}
    files = workflow.launch(
        write_run(tmp_path), cluster=cluster(tmp_path, launch)
    ).files
    shown = told(files[1][1], ALIA_MOST_REQUEUES="7", ALIA_STATUS_PARENT="/old")
    assert "ALIA_CONTAINER" not in shown and shown["ALIA_STEP"] == "train"
    assert shown["ALIA_MOST_REQUEUES"] == "3"
    assert shown["ALIA_STATUS_PARENT"] == "/shared"
    assert shown["ALIA_COMMANDS"] == "report x"
