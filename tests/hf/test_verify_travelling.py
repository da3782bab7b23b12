"""verify names every change of tokenizer, stop ids and limits, each alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.verify import verify
from tests import tokenizers as families
from tests.hf_models import edit_json, save_model


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`hf`, the export of the import `ck` of a model with a byte-level tokenizer."""
    root = tmp_path_factory.mktemp("pair")
    save_model(root / "base", "llama", "default", vocab_size=352)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (root / "base" / file).unlink(missing_ok=True)
    families.save(families.byte_level(), root / "tok")
    shutil.copytree(root / "tok", root / "base", dirs_exist_ok=True)
    import_hf(root / "base", root / "ck")
    export_hf(root / "ck", root / "hf")
    return root


def tokens(**flags: Any) -> Callable[[Path], None]:
    def change(hf: Path) -> None:
        document = json.loads((hf / "tokenizer.json").read_text())
        added = [{**token, **flags} for token in document["added_tokens"]]
        edit_json(hf / "tokenizer.json", added_tokens=added)

    return change


def edit(file: str, **values: Any) -> Callable[[Path], None]:
    return lambda hf: edit_json(hf / file, **values)


SS = {"type": "Replace", "pattern": {"String": "ß"}, "content": "ss"}
CUT = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
BOS = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
    ],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}
CHANGES = {
    "normalizer": edit("tokenizer.json", normalizer=SS),
    "pre_tokenizer": edit("tokenizer.json", pre_tokenizer=None),
    "post_processor": edit("tokenizer.json", post_processor=BOS),
    "decoder": edit("tokenizer.json", decoder=None),
    "added_tokens": tokens(lstrip=True, rstrip=True),
    "added_tokens is": tokens(special=False),
    "cuts": edit("tokenizer.json", truncation=CUT),
    "model_max_length": edit("tokenizer_config.json", model_max_length=16),
    "eos_token_id is 7 in config": edit("config.json", eos_token_id=7),
    "eos_token_id is 7 in gen": edit("generation_config.json", eos_token_id=7),
    "bos_token_id": edit("config.json", bos_token_id=7),
    "max_length": edit("generation_config.json", max_length=20),
    "has none": lambda hf: (hf / "tokenizer.json").unlink(),
}


def test_every_change_is_named(pair: Path) -> None:
    report = verify(pair / "hf", pair / "ck", logits=False)
    assert report.ok, str(report)
    for number, (named, change) in enumerate(CHANGES.items()):
        changed = pair / f"changed{number}"
        shutil.copytree(pair / "hf", changed)
        change(changed)
        report = verify(changed, pair / "ck", logits=False)
        assert not report.ok and named in " ".join(report.config_differences), named
