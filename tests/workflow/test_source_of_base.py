"""`hf_base` is the model that the base was imported from, by its weights: another of the
same sizes is refused, the same one elsewhere is not.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from alia_ctx import workflow
from alia_ctx.checkpoint import read_manifest
from alia_ctx.config.load import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import ConfigError
from alia_ctx.hf import source_weights
from alia_ctx.hf.convert import import_hf
from alia_ctx.workflow.importing import require_imported_from_base
from tests.distributed import run_distributed
from tests.hf_models import make_model
from tests.small_run import VOCABULARY, write_run

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
}
WEIGHTS = "model.safetensors"
NORM = "model.layers.1.post_attention_layernorm.weight"


def model_in(directory: Path, seed: int, **sizes: Any) -> Path:
    model = make_model("llama", **{**SIZES, **sizes})
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """hf-a and hf-b, the run and its base, imported from hf-a."""
    model_in(tmp_path / "hf-a", 1), model_in(tmp_path / "hf-b", 2)
    write_run(tmp_path)
    import_hf(tmp_path / "hf-a", tmp_path / "base")
    return tmp_path


def run_with(folder: Path, hf_base: str = "hf-a", **origins: str) -> RunConfig:
    path = folder / "run.yaml"
    document = yaml.safe_load(path.read_text())
    document.pop("model", None)
    document["hf_base"] = str(folder / hf_base)
    for name, origin in {"short": "base", **origins}.items():
        document["stages"][name]["init_from"] = str(folder / origin)
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return load_run(path)


def refusal(run: RunConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        require_imported_from_base(run)
    return str(caught.value)


def test_another_model_of_the_same_sizes_is_refused(folder: Path) -> None:
    require_imported_from_base(run_with(folder))
    run = run_with(folder, "hf-b")
    said = refusal(run)
    for part in ("hf_base", "hf-b", str(folder / "base"), str(folder / "hf-a")):
        assert part in said
    with pytest.raises(ConfigError, match="hf-a"):
        workflow.run_all(folder / "run.yaml", [], run)
    assert not (folder / "out").exists()
    with pytest.raises(Exception, match=r"is not what .*base was imported from"):
        workflow.check_all(run, folder / "run.yaml")


def spoil(place: Path, name: str = NORM) -> None:
    weights = load_file(place)
    weights[name][3] += 0.5
    save_file(weights, place, metadata={"format": "pt"})


def test_files_replaced_under_the_same_name_are_seen(folder: Path) -> None:
    """One value of a norm, in a file of the same size."""
    file = folder / "hf-a" / WEIGHTS
    size = file.stat().st_size
    spoil(file)
    os.utime(file, ns=(10**18, 10**18))  # whatever a copy makes of the time
    assert file.stat().st_size == size
    assert NORM in refusal(run_with(folder))


@pytest.mark.parametrize("kind", ["copied", "moved", "linked", "sharded", "bin"])
def test_the_same_weights_elsewhere_are_the_same(folder: Path, kind: str) -> None:
    there, here = folder / "hf-a", folder / "hf-c"
    if kind == "copied":
        shutil.copytree(there, here, copy_function=shutil.copy)
    elif kind == "moved":
        there.rename(here)
    elif kind == "linked":
        here.symlink_to(there)
    else:
        model = make_model("llama", **SIZES)
        model.load_state_dict(load_file(there / WEIGHTS))
        model.save_pretrained(here, max_shard_size="20KB")
        assert len(list(here.glob("*.safetensors"))) > 1
    if kind == "bin":
        for file in here.glob("*.safetensors*"):
            file.unlink()
        torch.save(load_file(there / WEIGHTS), here / "pytorch_model.bin")
    require_imported_from_base(run_with(folder, "hf-c"))
    if kind not in ("moved", "linked"):
        import_hf(folder / "hf-b", folder / "base", overwrite=True)
        assert "hf-b" in refusal(run_with(folder, "hf-c"))


def test_nothing_to_compare_is_no_obstacle(folder: Path) -> None:
    run = run_with(folder, "hf-b")
    (folder / "hf-b" / WEIGHTS).unlink()  # the small files alone
    require_imported_from_base(run)
    shutil.rmtree(folder / "hf-b")
    require_imported_from_base(run_with(folder, "hf-b"))
    shutil.rmtree(folder / "base")
    require_imported_from_base(run_with(folder))


def test_more_rows_and_another_dtype_are_of_the_same_weights(folder: Path) -> None:
    import_hf(
        *(folder / "hf-a", folder / "more"),
        dtype=torch.bfloat16,
        resize_embeddings=VOCABULARY + 8,
    )
    require_imported_from_base(run_with(folder, short="more"))
    assert "more" in refusal(run_with(folder, "hf-b", short="more"))


def test_a_tied_head_that_is_stored_too(tmp_path: Path) -> None:
    hf = model_in(tmp_path / "hf", 1, tie_word_embeddings=True)
    write_run(tmp_path)
    import_hf(hf, tmp_path / "base")
    weights = load_file(hf / WEIGHTS)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, hf / WEIGHTS, metadata={"format": "pt"})
    require_imported_from_base(run_with(tmp_path, "hf"))


def test_an_import_of_another_model_beside_that_of_the_base(folder: Path) -> None:
    import_hf(folder / "hf-b", folder / "base-b")
    require_imported_from_base(run_with(folder, "hf-a", long="base-b"))
    require_imported_from_base(run_with(folder, "hf-b", long="base-b"))
    model_in(folder / "hf-c", 3)
    said = refusal(run_with(folder, "hf-c", long="base-b"))
    assert str(folder / "hf-a") in said and str(folder / "hf-b") in said
    # Where the first is still to be imported, it will be of hf_base.
    require_imported_from_base(run_with(folder, "hf-c", short="new", long="base-b"))


def test_what_was_not_written_since_is_not_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with(folder)

    def never(place: object) -> str:
        raise AssertionError("read again")

    monkeypatch.setattr(source_weights, "_checksum", never)
    require_imported_from_base(run)


def _import_on_ranks(rank: int, folder: str) -> dict[str, Any]:
    from alia_ctx.hf.ranks import Ranks

    with Ranks.from_environment() as ranks:
        made = import_hf(Path(folder, "hf-a"), Path(folder, "two"), ranks=ranks)
    return dict(made.config["source_weights"])


def _train(rank: int, path: str) -> str:
    try:
        workflow.train(load_run(Path(path)), "short")
    except ConfigError as error:
        return str(error)
    return ""


def test_ranks_share_the_reading_and_training_is_refused(folder: Path) -> None:
    stated, other = run_distributed(_import_on_ranks, 2, str(folder))
    assert stated == other == read_manifest(folder / "base").config["source_weights"]
    assert set(stated["tensors"]) == set(load_file(folder / "hf-a" / WEIGHTS))
    run_with(folder, "hf-b")
    (said,) = run_distributed(_train, 1, str(folder / "run.yaml"))
    assert "hf_base" in said and str(folder / "hf-a") in said
