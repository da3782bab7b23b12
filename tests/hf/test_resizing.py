"""More rows of the embedding at import: the mean of the others, recorded, and no other
weight touched.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alia_ctx.errors import AliaError, CheckpointError, ConfigError
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.resizing import resize
from alia_ctx.hf.verify import verify
from tests.hf_models import ALIA, save_model, write_tokenizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "rows, multiple, result", [(97, None, 97), (97, 64, 128), (None, 40, 120)]
)
def test_new_rows_are_the_mean(
    tmp_path: Path,
    family: str,
    dtype: torch.dtype,
    rows: int | None,
    multiple: int | None,
    result: int,
) -> None:
    model = save_model(tmp_path / "hf", family, dtype=dtype)
    manifest = import_hf(
        tmp_path / "hf",
        tmp_path / "ck",
        resize_embeddings=rows,
        pad_to_multiple_of=multiple,
    )
    assert manifest.model.vocab_size == result
    assert manifest.extra["resized_embeddings"] == {
        "from": 96,
        "to": result,
        "initialisation": "mean",
    }
    export_hf(tmp_path / "ck", tmp_path / "out")
    ours = load_file(tmp_path / "out/model.safetensors")
    theirs = model.state_dict()
    tables = {"model.embed_tokens.weight", "lm_head.weight"} & set(ours)
    assert len(tables) == (1 if family == "qwen2" else 2)
    for name, weight in ours.items():
        if name not in tables:
            assert torch.equal(weight, theirs[name])
            continue
        assert torch.equal(weight[:96], theirs[name])
        mean = theirs[name].double().mean(dim=0)
        expected = mean.to(dtype).expand(result - 96, -1)
        # Two orders of one sum in fp64, then a rounding to the weights' dtype.
        torch.testing.assert_close(weight[96:], expected)
    assert (
        json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == result
    )
    report = verify(tmp_path / "hf", tmp_path / "ck")
    assert report.ok and f"{result - 96} rows" in str(report), str(report)
    assert verify(tmp_path / "out", tmp_path / "ck").ok
    origin = json.loads((tmp_path / "ck/assets/alia_ctx_import.json").read_text())
    assert origin == manifest.extra
    assert f"from 96 to {result}" in (tmp_path / "out/README.md").read_text()


def test_a_tokenizer_with_one_id_more_is_explained(tmp_path: Path) -> None:
    save_model(tmp_path / "hf")
    (tmp_path / "hf/added_tokens.json").write_text('{"<pad2>": 96}')
    with pytest.raises(
        CheckpointError, match=r"added_tokens.json: .*--resize-embeddings 97"
    ):
        import_hf(tmp_path / "hf", tmp_path / "ck")
    manifest = import_hf(tmp_path / "hf", tmp_path / "ck", resize_embeddings=97)
    assert manifest.model.vocab_size == 97
    write_tokenizer(tmp_path / "hf", 200)
    with pytest.raises(CheckpointError, match="token id 199"):
        import_hf(tmp_path / "hf", tmp_path / "ck2", resize_embeddings=97)


@pytest.mark.parametrize(
    "options", [{"resize_embeddings": 95}, {"pad_to_multiple_of": 0}]
)
def test_rows_are_only_added(tmp_path: Path, options: dict[str, int]) -> None:
    save_model(tmp_path / "hf")
    with pytest.raises(AliaError, match="cannot be resized"):
        import_hf(tmp_path / "hf", tmp_path / "ck", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_a_number_that_changes_nothing_is_no_resizing(tmp_path: Path) -> None:
    save_model(tmp_path / "hf")
    manifest = import_hf(tmp_path / "hf", tmp_path / "ck", resize_embeddings=96)
    assert "resized_embeddings" not in manifest.extra


@pytest.mark.parametrize("asked", [(2**31 + 1, None), (None, 10**30), (10**30, 64)])
def test_more_rows_than_there_are_ids_are_refused(
    asked: tuple[int | None, int | None],
) -> None:
    with pytest.raises(ConfigError, match=r"token ids end at 2147483647"):
        resize(ALIA, *asked)
    assert resize(ALIA, 2**31, 64).vocab_size == 2**31
