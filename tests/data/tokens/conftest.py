"""A tokenizer and a source that the tests of tokenising share."""

from __future__ import annotations

from pathlib import Path

import pytest

from alia_ctx.data.documents import SourceSpec
from tests.data.tokens.stores import TEXTS
from tests.text_data import save_tokenizer, write_jsonl


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer") / "hf")


@pytest.fixture
def spec(tmp_path: Path) -> SourceSpec:
    return SourceSpec(
        inputs=[str(write_jsonl(tmp_path / "a.jsonl", TEXTS))], id_key="name"
    )
