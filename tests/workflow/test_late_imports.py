"""Steps are imported when they are asked for: what needs no torch does not wait for it."""

from __future__ import annotations

import subprocess
import sys

from alia_ctx import workflow

WITHOUT_TORCH = (
    "import sys\n"
    "from alia_ctx import cli\n"
    "from alia_ctx.cli import run_commands\n"
    "from alia_ctx import workflow\n"
    "for name in ('check_all', 'plan_stages', 'pack', 'tokenize', 'base_to_import'):\n"
    "    getattr(workflow, name)\n"
    "import alia_ctx.workflow.beginning, alia_ctx.workflow.watching\n"
    "sys.exit('torch' in sys.modules)\n"
)


def test_every_name_leads_somewhere() -> None:
    assert set(workflow._MODULES) == set(workflow.__all__)
    for name in workflow.__all__:
        assert getattr(workflow, name) is not None


def test_checking_planning_and_watching_need_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], timeout=120)
    assert done.returncode == 0
