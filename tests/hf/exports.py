"""Exports of a small trained stage, which the tests of what goes along share."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from alia_ctx import checkpoint
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.spec.rope import RopeSpec
from tests.hf_models import CONTEXT

LONGER = 4 * CONTEXT


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def snippets(page: Path) -> list[str]:
    """The programs in Python that a page of Markdown shows."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def write_words(directory: Path, size: int, **special: Any) -> Path:
    """A tokenizer of words word0 to word(size - 1) with the given special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    directory.mkdir(parents=True, exist_ok=True)
    words = {f"word{i}": i for i in range(size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="word0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def trained(
    ck: Path, context: int = LONGER, rope: RopeSpec | None = None, **config: Any
) -> Path:
    """Make the import at `ck` the checkpoint of a longer stage of a run with `config`."""
    manifest = checkpoint.read_manifest(ck)
    rope = rope or RopeSpec("linear", 10000.0, context / CONTEXT)
    entry = checkpoint.StageLedger(
        "long", context, rope, 9e-7, updates=5, tokens=1234567
    )
    later = dataclasses.replace(
        manifest,
        stage="long",
        update=5,
        rope=rope,
        context=context,
        ledger=(entry,),
        config=config,
        extra={},
    )
    (ck / "manifest.json").unlink()
    files = {}
    for path in sorted(ck.rglob("*")):
        if path.is_file():
            files[str(path.relative_to(ck))] = checkpoint.file_entry(path)
    later = dataclasses.replace(later, files=files)
    (ck / "manifest.json").write_text(json.dumps(later.to_json()))
    return ck


def export_longer(base: Path, **config: Any) -> Path:
    """Import `base`, pretend to train it at LONGER tokens, export that."""
    root = base.parent
    import_hf(base, root / "ck")
    export_hf(trained(root / "ck", **config), root / "out")
    return root / "out"
