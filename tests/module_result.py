"""The result of a module that runs in a process of its own, whose imports and devices
cannot be those of the tests: its last line is JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from tests.paths import ROOT


def result_of(
    module: str,
    *arguments: str,
    timeout: float,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """What `python -m MODULE ARGUMENTS` says last; it must end well."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        said = error.stderr or b""  # bytes, whatever was asked
        words = said.decode(errors="replace") if isinstance(said, bytes) else said
        raise AssertionError(f"no end after {timeout} s:\n{words[-3000:]}") from None
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
