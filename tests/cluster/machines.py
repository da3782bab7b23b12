"""Machines made of name spaces: a head and nodes with host names, networks and process
ids of their own, all of which end with one process.

The head and every node reach each other over a bridge (`eth0`), as over the management
network of a cluster; the first two nodes have a cable of their own besides (`data0`),
which a test may cut or slow down. Needs root, `unshare`, `nsenter`, `ip` and `tc`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

HEAD = "head"
_PROGRAMS = ("unshare", "nsenter", "ip", "tc", "mount")
# Process 1 of the head: reaps whatever loses its parent, and takes all along when it ends.
_INIT = """
import signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True: time.sleep(3600)
"""


def missing() -> str:
    """Why there can be no such machines here, or nothing."""
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"there is no {', '.join(absent)}"
    if os.geteuid() != 0:
        return "name spaces with networks take root"
    attempt = ["unshare", "-n", "-u", "-m", "-p", "--fork", "ip", "link", "add", "v0"]
    attempt += ["type", "veth", "peer", "name", "v1"]
    done = subprocess.run(attempt, capture_output=True, text=True, check=False)
    return done.stderr.strip()


class Machines(AbstractContextManager["Machines"]):
    """A head and `nodes`, for as long as the context is entered.

    Args:
        folder: where logs of what is started go; all machines see the file system.
        nodes: their host names.
    """

    def __init__(self, folder: Path, nodes: Sequence[str] = ("one", "two")) -> None:
        self.folder, self.nodes = folder, tuple(nodes)
        self._pids: dict[str, int] = {}
        self._init: subprocess.Popen[bytes] | None = None

    # -- up and down -------------------------------------------------------------------

    def __enter__(self) -> Machines:
        self.folder.mkdir(parents=True, exist_ok=True)
        # `unshare` dies with us, and --kill-child takes process 1 along with it.
        spaces = ["unshare", "-n", "-u", "-m", "-p", "--fork", "--kill-child"]
        command = [*spaces, "--mount-proc", sys.executable, "-S", "-c", _INIT]
        self._init = subprocess.Popen(command, start_new_session=True)
        try:
            self._pids[HEAD] = self._child_of(self._init.pid)
            self._wire()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._init is None:
            return
        # With process 1 the kernel ends all others of its space; `unshare` reaps it then.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pids.get(HEAD, self._init.pid), signal.SIGKILL)
        try:
            self._init.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._init.kill()
            self._init.wait()
        self._init = None

    def _child_of(self, pid: int) -> int:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            text = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if text and Path(f"/proc/{text[0]}/cmdline").read_bytes().count(b"-S"):
                return int(text[0])
            time.sleep(0.02)
        raise TimeoutError("the head did not start")

    def _wire(self) -> None:
        hosts = [f"127.0.0.1 localhost\n10.77.0.1 {HEAD}\n"]
        for index, node in enumerate(self.nodes):
            hosts.append(
                f"10.77.0.{10 + index} {node}\n10.78.0.{10 + index} {node}-d\n"
            )
        (self.folder / "hosts").write_text("".join(hosts))
        self._on_head(
            f"mount --bind {self.folder}/hosts /etc/hosts; hostname {HEAD}; "
            "ip link set lo up; ip link add br0 type bridge; "
            "ip address add 10.77.0.1/24 dev br0; ip link set br0 up"
        )
        for index, node in enumerate(self.nodes):
            self._add(node, index)
        for index, node in enumerate(self.nodes[:2] if len(self.nodes) > 1 else ()):
            self.on(
                node,
                f"ip address add 10.78.0.{10 + index}/24 dev data0; ip link set data0 up",
            )

    def _add(self, node: str, index: int) -> None:
        start = [
            "unshare",
            "-n",
            "-u",
            "-m",
            "sh",
            "-c",
            f"hostname {node}; exec sleep 1d",
        ]
        holder = subprocess.Popen(self.inside(HEAD, start))
        pid = self._holder(holder.pid)
        self._pids[node] = pid
        self._on_head(
            f"ip link add port{index} type veth peer name eth0 netns {self._own(pid)}; "
            f"ip link set port{index} master br0 up"
        )
        if index == 1:
            first = self._own(self._pids[self.nodes[0]])
            self._on_head(
                f"ip link add name data0 netns {first} type veth "
                f"peer name data0 netns {self._own(pid)}"
            )
        self.on(
            node,
            f"ip link set lo up; ip address add 10.77.0.{10 + index}/24 dev eth0; "
            "ip link set eth0 up",
        )

    def _holder(self, nsenter: int) -> int:
        """The process of a node, which `nsenter` has forked."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for child in (
                Path(f"/proc/{nsenter}/task/{nsenter}/children").read_text().split()
            ):
                if (
                    b"sleep"
                    in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[:1]
                ):
                    return int(child)
            time.sleep(0.02)
        raise TimeoutError("a node did not start")

    @staticmethod
    def _own(pid: int) -> str:
        """The process id inside the head's name space, as `ip` there has to know it."""
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return line.split()[-1]
        raise AssertionError(f"process {pid} has no name space")

    # -- use ---------------------------------------------------------------------------

    @property
    def head(self) -> int:
        """The process with which all machines end."""
        return self._pids[HEAD]

    def inside(self, machine: str, command: Sequence[str]) -> list[str]:
        """A command line that runs `command` on a machine."""
        enter = ["nsenter", "-t", str(self._pids[HEAD]), "-p"]
        enter += [f"--{s}=/proc/{self._pids[machine]}/ns/{n}" for s, n in _SPACES]
        return [*enter, "--", *command]

    def on(self, machine: str, script: str) -> str:
        """Run a line of shell on a machine, and return what it prints."""
        command = self.inside(machine, ["sh", "-ec", script])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout

    def _on_head(self, script: str) -> None:
        self.on(HEAD, script)

    def cut(self, node: str = "two") -> None:
        """Take the cable between the first two nodes out: nobody is told."""
        self.on(node, "ip link set data0 down")

    def mend(self, node: str = "two") -> None:
        self.on(node, "ip link set data0 up")

    def slow_down(self, node: str, rate: str, delay: str) -> str:
        """Have what a node sends over the cable be slow, and late where this kernel can do
        that; returns how it was done.
        """
        for how in (
            f"netem delay {delay} rate {rate}",
            f"tbf rate {rate} burst 16kb latency 5s",
        ):
            try:
                self.on(node, f"tc qdisc add dev data0 root {how}")
            except AssertionError as error:  # not every kernel has netem
                last = error
            else:
                return how
        raise last

    def speed_up(self, node: str) -> None:
        self.on(node, "tc qdisc del dev data0 root")


_SPACES = (("net", "net"), ("uts", "uts"), ("mount", "mnt"))
