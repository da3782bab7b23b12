"""Every setting of a stage of conversations that is wrong is told, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from alia_ctx.config.load import load_run
from alia_ctx.errors import ConfigError
from tests.train.test_conversations import write_talk


def test_every_broken_setting_of_a_stage_is_told(tmp_path: Path) -> None:
    settings = {
        "update_instances": 0,
        "pack.held_out_instances": -1,
        "pack.sampling.talk": 0,
        "pack.max_instances.talk": 0,
        "learning_rate": -1,
    }
    with pytest.raises(ConfigError) as caught:
        load_run(
            write_talk(tmp_path),
            [f"stages.short.{name}={value}" for name, value in settings.items()],
        )
    for name in settings:
        assert f"stages.short.{name}" in str(caught.value)
