"""A real SLURM of two nodes on this machine: munge, slurmctld and a slurmd a node, in a
folder of their own, on machines of their own (`tests.cluster.machines`).

    python -m tests.cluster.slurm          # start one, and give a shell on its head

Accounting and control groups are off: neither changes what a batch script meets.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from tests.cluster import machines
from tests.cluster.machines import HEAD, Machines

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
CPUS = 4  # slots of a node; what the machine has does not count
_CONF = """\
ClusterName=small
SlurmctldHost={head}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldParameters=idle_on_node_suspend
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
SchedulerParameters=batch_sched_delay=1,bf_interval=1,sched_interval=2
SchedulerType=sched/backfill
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MessageTimeout=5
MinJobAge=3600
JobRequeue=1
EnforcePartLimits=ALL
NodeName={nodes} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no SLURM can be started here, or nothing."""
    # Debian keeps daemons where only root's PATH leads.
    absent = [name for name in _PROGRAMS if _program(name) is None]
    if absent:
        return f"there is no {', '.join(absent)} (apt-get install slurm-wlm munge)"
    return machines.missing()


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Slurm(AbstractContextManager["Slurm"]):
    """A cluster for as long as the context is entered; then all of it ends, whatever
    happened, and its folder is removed.
    """

    def __init__(self, nodes: Sequence[str] = ("one", "two")) -> None:
        self.nodes = tuple(nodes)
        self._entered = ExitStack()
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Slurm:
        # Short, as the path of a socket has 107 characters; munged refuses a folder that
        # others could write to.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        with ExitStack() as entered:
            entered.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.machines = entered.enter_context(Machines(self.folder, self.nodes))
            self._start()
            self._entered = entered.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._entered.close()

    def _start(self) -> None:
        text = _CONF.format(
            head=HEAD, folder=self.folder, nodes=",".join(self.nodes), cpus=CPUS
        )
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        self._daemon(
            HEAD,
            *(
                "munged",
                "--foreground",
                "--force",
                f"--socket={self.folder}/munge.socket",
            ),
            *(f"--key-file={key}", f"--pid-file={self.folder}/munge.pid"),
            *(f"--log-file={self.folder}/munge.log", "--num-threads=2"),
            f"--seed-file={self.folder}/munge.seed",
        )
        wait_for((self.folder / "munge.socket").exists, "munged", self.words)
        self._daemon(HEAD, "slurmctld", "-D", "-f", f"{self.folder}/slurm.conf")
        for node in self.nodes:
            self.start_node(node)
        wait_for(self._is_idle, "idle nodes", self.words)

    def _daemon(self, machine: str, program: str, *arguments: str) -> None:
        command = [_program(program) or program, *arguments]
        with open(self.folder / f"{program}-{machine}.out", "ab") as out:
            self._daemons[f"{program} {machine}"] = subprocess.Popen(
                self.machines.inside(machine, command),
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def _is_idle(self) -> bool:
        done = self.run("sinfo", "--noheader", "--Node", "--format=%t", check=False)
        return done.stdout.split() == ["idle"] * len(self.nodes)

    def words(self) -> str:
        """What the daemons have said, for whoever reads of a failure."""
        files = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(
            f"{f.name}:\n{f.read_text(errors='replace')[-1500:]}" for f in files
        )

    # -- nodes -------------------------------------------------------------------------

    def start_node(self, node: str) -> None:
        conf = f"{self.folder}/slurm.conf"
        self._daemon(node, "slurmd", "-D", "-f", conf, "-N", node)

    def fail_node(self, node: str) -> None:
        """The node is gone, with all that ran on it: nobody says good-bye."""
        own = self.machines.on(node, "readlink /proc/self/ns/uts").strip()
        # The shell's own `sleep`, which is the machine, stays.
        script = (
            "for p in /proc/[0-9]*; do n=${p#/proc/}; "
            f'[ "$(readlink $p/ns/uts 2>/dev/null)" = "{own}" ] || continue; '
            '[ "$n" = $$ ] && continue; '
            'case "$(tr "\\0" " " <$p/cmdline 2>/dev/null)" in "sleep 1d"*) continue;; esac; '
            "kill -9 $n 2>/dev/null; done; true"
        )
        self.machines.on(node, script)

    # -- use ---------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        conf = {"SLURM_CONF": f"{self.folder}/slurm.conf"}
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        return {**kept, "PATH": f"{os.environ['PATH']}:/usr/sbin", **conf}

    def run(
        self,
        *command: str,
        cwd: Path | None = None,
        check: bool = True,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the head, where a user is logged in."""
        done = subprocess.run(
            self.machines.inside(HEAD, command),
            cwd=cwd,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says, by key."""
        done = self.run("scontrol", "--oneliner", "show", "job", number)
        return dict(w.split("=", 1) for w in done.stdout.split() if "=" in w)

    def state(self, number: str) -> str:
        return self.job(number)["JobState"]

    def wait(
        self, condition: Callable[[], bool], what: str, seconds: float = 90
    ) -> None:
        wait_for(condition, what, self.words, seconds)


def wait_for(
    condition: Callable[[], bool],
    what: str,
    words: Callable[[], str] = lambda: "",
    seconds: float = 30,
) -> None:
    """Look again and again; AssertionError, with `words()`, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} in {seconds} s\n{words()}"
        time.sleep(0.2)


if __name__ == "__main__":
    with Slurm() as slurm:
        print(slurm.run("sinfo").stdout)
        shell = slurm.machines.inside(HEAD, [os.environ.get("SHELL", "/bin/bash")])
        subprocess.run(shell, env=slurm.environment(), check=False)
