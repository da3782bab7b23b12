"""What a GPU's driver says of its health: memory errors, clocks, heat.

Asked of `nvidia-smi`, whose query fields and bits of `clocks_throttle_reasons` are those
of NVIDIA's manual (`nvidia-smi --help-query-gpu`) and of nvml.h.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from alia_ctx.cluster.findings import Finding, broken, good, weak

FIELDS = (
    *("name", "driver_version", "clocks.sm", "clocks.max.sm"),
    *("clocks_throttle_reasons.active", "ecc.mode.current"),
    *("ecc.errors.uncorrected.volatile.total", "temperature.gpu"),
)
# What slows a GPU down although it has work. Idle (1), chosen clocks (2) and the like are
# no fault.
_SLOWED = {
    0x04: "software power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
_HOT = 85  # degrees C
_ASK_SECONDS = 60


def gpu_health(index: int) -> Iterator[Finding]:
    """The health of the GPU that is number `index` to this process, by its driver; nothing
    without a GPU.
    """
    import torch

    if not torch.cuda.is_available():
        return
    if index >= torch.cuda.device_count():
        words = f"this rank wants GPU {index}, and sees {torch.cuda.device_count()}"
        yield broken("gpu", words, "start a rank for each GPU (--gres, cluster.*)")
        return
    if shutil.which("nvidia-smi") is None:
        yield weak(
            "gpu", "there is no `nvidia-smi` to ask", "install the driver's tools"
        )
        return
    try:
        which = bus_address(torch.cuda.get_device_properties(index))
    except RuntimeError as error:  # one that fell off its bus
        words = f"GPU {index} does not answer ({str(error).splitlines()[0]})"
        yield broken("gpu", words, "leave this node out and tell its administrators")
        return
    command = ["nvidia-smi", f"--id={which}", f"--query-gpu={','.join(FIELDS)}"]
    command += ["--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        words = f"nvidia-smi does not answer within {_ASK_SECONDS} s"
        yield broken("gpu", words, "leave this node out and tell its administrators")
        return
    if done.returncode:
        words = " ".join((done.stdout + done.stderr).split())[:200]
        yield weak("gpu", f"nvidia-smi: {words}", "see the driver's release")
        return
    yield from read_health(done.stdout)


def bus_address(properties: Any) -> str:
    """Where a GPU is on the PCI bus, as `nvidia-smi --id` takes it: its numbers are those of
    the host, in another order and without CUDA_VISIBLE_DEVICES; a part of a GPU (MIG) is
    known by the whole.
    """
    domain, bus = properties.pci_domain_id, properties.pci_bus_id
    return f"{domain:08x}:{bus:02x}:{properties.pci_device_id:02x}.0"


def read_health(line: str) -> Iterator[Finding]:
    """Findings from one line of nvidia-smi's answer to `FIELDS`."""
    values = [value.strip() for value in line.strip().split(",")]
    if len(values) != len(FIELDS):
        yield weak(
            "gpu", f"cannot be read: {line.strip()!r}", "see the driver's release"
        )
        return
    name, driver, clock, most, throttled, ecc, errors, heat = values
    yield good("gpu", f"{name}, driver {driver}")
    if ecc == "Enabled" and errors.isdigit():
        if int(errors):
            remedy = "leave this node out and tell its administrators"
            yield broken(
                "gpu memory", f"{errors} uncorrected errors since boot", remedy
            )
        else:
            yield good("gpu memory", "ECC on, no uncorrected errors since boot")
    elif ecc == "Disabled":
        yield weak("gpu memory", "ECC is off: errors go unseen", "`nvidia-smi -e 1`")
    bits = int(throttled, 16) if throttled.startswith("0x") else 0
    reasons = [words for bit, words in _SLOWED.items() if bits & bit]
    clocks = f"{clock} of {most} MHz"
    if reasons:
        remedy = "look at cooling and power of this node, or leave it out"
        yield weak("gpu clocks", f"{clocks}: {', '.join(reasons)}", remedy)
    else:
        yield good("gpu clocks", clocks)
    if heat.isdigit() and int(heat) >= _HOT:
        yield weak("gpu heat", f"{heat} degrees", "look at the cooling of this node")
