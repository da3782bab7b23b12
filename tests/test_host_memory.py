"""What a process may take of the host's memory, in a job with a limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from alia_ctx.host_memory import available_memory, total_memory


@pytest.mark.parametrize(
    "group, files",
    [
        ("0::/job/step", ("memory.max", "memory.current", "inactive_file")),
        (
            "5:cpu:/\n4:memory,hugetlb:/job/step\n0::/",
            (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            ),
        ),
    ],
    ids=["v2", "v1"],
)
def test_a_jobs_limit_counts(
    group: str, files: tuple[str, str, str], tmp_path: Path
) -> None:
    limit, usage, droppable = files
    groups, mount = tmp_path / "cgroup", tmp_path / "fs"
    groups.write_text(group + "\n")
    root = mount / "memory" if "memory" in group else mount

    def write(path: str, most: Any, used: int, file: int) -> None:
        place = root / path
        place.mkdir(parents=True, exist_ok=True)
        (place / limit).write_text(f"{most}\n")
        (place / usage).write_text(f"{used}\n")
        (place / "memory.stat").write_text(f"anon 5\n{droppable} {file}\n")

    whole = available_memory(tmp_path / "nowhere", mount)
    assert 0 < whole <= 1 << 60
    write("job/step", "max", 70, 0)
    assert available_memory(groups, mount) > 1000, "there is no limit"
    assert total_memory(groups, mount) == psutil.virtual_memory().total
    write("job", 100, 70, 20)
    assert available_memory(groups, mount) == 50, "that of the group above"
    assert total_memory(groups, mount) == 100
    write("job/step", 30, 25, 1)
    assert available_memory(groups, mount) == 6
    assert total_memory(groups, mount) == 30
    write("job/step", 30, 99, 1)
    assert available_memory(groups, mount) == 0
