"""A store is believed as long as its files are those that were written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alia_ctx.data.chat import write_chat_store
from alia_ctx.data.documents import ChatSpec, SourceSpec
from alia_ctx.data.tokens import require_written, tokenize_source, write_store
from alia_ctx.errors import DataError
from tests.data.chat.tokenizers import save_chat_tokenizer

TALK = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
FILES = {"chat": ("bin", "idx", "weights", "said"), "text": ("bin", "idx")}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_tokenizer("byte level", tmp_path_factory.mktemp("t") / "t")


@pytest.fixture
def write(tokenizer: Path, tmp_path: Path) -> Callable[..., None]:
    """Writes the store of a kind in the test's folder, or leaves it."""

    def written(kind: str, *, overwrite: bool = False) -> None:
        file = tmp_path / f"{kind}.jsonl"
        file.write_text(json.dumps({"messages": TALK, "text": "Some text."}))
        if kind == "chat":
            spec = SourceSpec(inputs=[str(file)], chat=ChatSpec())
            write_chat_store(spec, kind, tokenizer, tmp_path, overwrite=overwrite)
        else:
            spec = SourceSpec(inputs=[str(file)])
            tokenize_source(spec, kind, tokenizer, tmp_path, overwrite=overwrite)

    return written


@pytest.mark.parametrize(
    ("kind", "suffix"), [(kind, suffix) for kind in FILES for suffix in FILES[kind]]
)
def test_a_file_that_was_changed_is_named(
    kind: str, suffix: str, write: Callable[..., None], tmp_path: Path
) -> None:
    write(kind)
    require_written(tmp_path / kind)
    file = tmp_path / f"{kind}.{suffix}"
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    for look in (lambda: require_written(tmp_path / kind), lambda: write(kind)):
        # What is no index at all is said otherwise.
        with pytest.raises(DataError, match=rf"{kind}\.{suffix}: .*(--over|build)"):
            look()
    write(kind, overwrite=True)
    assert file.read_bytes() == before
    require_written(tmp_path / kind)


@pytest.mark.parametrize("suffix", ["weights", "said"])
def test_a_file_that_is_gone_is_named(
    suffix: str, write: Callable[..., None], tmp_path: Path
) -> None:
    write("chat")
    (tmp_path / f"chat.{suffix}").unlink()
    with pytest.raises(DataError, match=rf"chat\.{suffix}: is gone"):
        require_written(tmp_path / "chat")
    write("chat", overwrite=True)
    require_written(tmp_path / "chat")


def test_stores_of_others_are_believed(tmp_path: Path) -> None:
    write_store(tmp_path / "a", [[1, 2, 3]], 10)
    require_written(tmp_path / "a")
