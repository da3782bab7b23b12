"""Import, Megatron, export, verify: bit for bit, and nothing half-written whatever is wrong."""

from __future__ import annotations

import errno
import functools
import json
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from alia_ctx import checkpoint
from alia_ctx.checkpoint import dcp_files, dcp_store
from alia_ctx.errors import AliaError, CheckpointError
from alia_ctx.hf import convert as convert_module
from alia_ctx.hf import safetensors_writer, weight_files
from alia_ctx.hf import verify as verify_module
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.ranks import Ranks
from alia_ctx.hf.verify import verify
from alia_ctx.spec.rope import RopeSpec
from tests.distributed import run_distributed
from tests.hf_models import (
    CONTEXT,
    FAMILIES,
    ROPES,
    edit_json,
    logits,
    make_model,
    same_weights,
    save_model,
    tokens,
    write_tokenizer,
)

SHARD = "model-00002-of-00004.safetensors"


def load_model(directory: Path, dtype: Any = "auto") -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager"
    ).eval()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_model(tmp_path / "hf")
    return tmp_path / "hf"


def files_below(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


# -- there and back --------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_import_then_export_is_bit_exact(tmp_path: Path, family: str) -> None:
    model = save_model(tmp_path / "hf", family)
    manifest = import_hf(tmp_path / "hf", tmp_path / "ck")
    export_hf(tmp_path / "ck", tmp_path / "out", shard_bytes=100_000)
    assert same_weights(load_model(tmp_path / "out"), model)
    before, after = (
        json.loads((tmp_path / d / "config.json").read_text()) for d in ("hf", "out")
    )
    assert {k for k, v in before.items() if after[k] != v} == set()
    assert (manifest.context, manifest.has_optimizer, manifest.extra["dtype"]) == (
        CONTEXT,
        False,
        "bfloat16",
    )
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    checkpoint.verify_files(tmp_path / "ck", checkpoint.read_manifest(tmp_path / "ck"))
    assert not list(tmp_path.glob("*.incomplete"))


def test_what_travels_along(tmp_path: Path, source: Path) -> None:
    import_hf(source, tmp_path / "ck")
    export_hf(tmp_path / "ck", tmp_path / "out")
    assert files_below(tmp_path / "out") == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
        "README.md",
        "alia_ctx_export.json",
    }
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (
        source / "tokenizer.json"
    ).read_bytes()
    # A tokenizer that stops at the base model's 16 tokens would cut every long input.
    assert (
        json.loads((tmp_path / "out/tokenizer_config.json").read_text())[
            "model_max_length"
        ]
        == CONTEXT
    )


def test_pytorch_bin_shards_and_old_buffers(tmp_path: Path) -> None:
    model = make_model("llama")
    model.config.save_pretrained(tmp_path / "hf")
    weights = {
        **model.state_dict(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    names = sorted(weights)
    shards = {"pytorch_model-1.bin": names[:9], "pytorch_model-2.bin": names[9:]}
    for file, part in shards.items():
        torch.save({name: weights[name] for name in part}, tmp_path / "hf" / file)
    index = {
        "weight_map": {name: file for file, part in shards.items() for name in part}
    }
    (tmp_path / "hf/pytorch_model.bin.index.json").write_text(json.dumps(index))
    import_hf(tmp_path / "hf", tmp_path / "ck")
    export_hf(tmp_path / "ck", tmp_path / "out")
    assert same_weights(load_model(tmp_path / "out"), model)


def test_dtype_on_request(tmp_path: Path, source: Path) -> None:
    import_hf(source, tmp_path / "ck", dtype=torch.float32)
    report = verify(source, tmp_path / "ck")
    assert report.ok and "torch.float32 -> torch.bfloat16" in str(report)
    export_hf(tmp_path / "ck", tmp_path / "half", dtype=torch.float16)
    export_hf(tmp_path / "ck", tmp_path / "out", dtype=torch.bfloat16)
    exact = load_file(tmp_path / "out/model.safetensors")
    halves = load_file(tmp_path / "half/model.safetensors")
    for shard in source.glob("*.safetensors"):
        for name, weight in load_file(shard).items():
            assert torch.equal(exact[name], weight) and torch.equal(
                halves[name], weight.half()
            )
    assert (
        json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"]
        == "float16"
    )


# Files, checkpoint and export in turn; None keeps the dtype.
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ROUNDED = [
    (FP32, None, BF16, "the checkpoint were rounded.*float32 -> torch.bfloat16"),
    (FP32, None, FP16, "the checkpoint were rounded.*float32 -> torch.float16"),
    (BF16, None, FP16, "the checkpoint were rounded.*bfloat16 -> torch.float16"),
    (FP16, BF16, FP16, "the checkpoint were rounded|float16"),
    (FP32, BF16, None, None),
]


@pytest.mark.parametrize("files, held, written, said", ROUNDED)
def test_verify_compares_with_what_was_rounded(
    tmp_path: Path,
    files: torch.dtype,
    held: torch.dtype | None,
    written: torch.dtype | None,
    said: str | None,
) -> None:
    save_model(tmp_path / "hf", dtype=files)
    import_hf(tmp_path / "hf", tmp_path / "ck", dtype=held)
    export_hf(tmp_path / "ck", tmp_path / "out", dtype=written)
    report = verify(tmp_path / "out", tmp_path / "ck")
    assert report.ok, str(report)
    if said is None:
        assert "rounded" not in str(report)
    else:
        assert re.search(said, str(report)), str(report)
    assert verify(tmp_path / "hf", tmp_path / "ck").ok  # what import rounded, too
    shard = tmp_path / "out/model.safetensors"
    weights = load_file(shard)
    name = "model.layers.3.mlp.up_proj.weight"
    weights[name][7, 5] *= 1 + 2**-7  # one unit in bf16's last place
    save_file(weights, shard, metadata={"format": "pt"})
    report = verify(tmp_path / "out", tmp_path / "ck")
    assert report.weight_differences[0].startswith(f"{name}[7, 5] is ")


def test_a_single_file_beside_an_index_wins_as_in_transformers(
    tmp_path: Path, source: Path
) -> None:
    newer = make_model("llama")
    with torch.no_grad():
        newer.model.norm.weight.mul_(2)
    newer.save_pretrained(tmp_path / "newer")
    shutil.copy(tmp_path / "newer/model.safetensors", source)
    import_hf(source, tmp_path / "ck")
    export_hf(tmp_path / "ck", tmp_path / "out")
    assert same_weights(load_model(tmp_path / "out"), load_model(source))
    assert same_weights(load_model(tmp_path / "out"), newer)
    assert verify(source, tmp_path / "ck").ok


@pytest.mark.parametrize("stale", ["model.safetensors", "pytorch_model.bin"])
def test_verify_reads_what_transformers_reads(
    tmp_path: Path, source: Path, stale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were our choice of files wrong, verify would not share the fault."""
    other = make_model("llama", hidden_act="silu")
    with torch.no_grad():
        other.model.embed_tokens.weight[11, 3] += 1
    if stale == "model.safetensors":
        other.save_pretrained(tmp_path / "other")
        shutil.copy(tmp_path / "other" / stale, source)
    else:
        torch.save(other.state_dict(), source / stale)
    real = weight_files.locate_weights

    def shards_first(hf_dir: Path) -> Any:
        whole = hf_dir / "model.safetensors"
        if not whole.exists():
            return real(hf_dir)
        whole.rename(hf_dir / "hidden")
        try:
            return real(hf_dir)
        finally:
            (hf_dir / "hidden").rename(whole)

    monkeypatch.setattr(convert_module, "locate_weights", shards_first)
    import_hf(source, tmp_path / "ck")
    report = verify(source, tmp_path / "ck")
    differs = stale == "model.safetensors"
    assert report.ok != differs, str(report)
    if differs:
        assert "model.embed_tokens.weight[11, 3]" in report.weight_differences[0]


def test_a_model_beyond_memory_is_verified_from_its_files_and_says_so(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_hf(source, tmp_path / "ck")
    monkeypatch.setattr(verify_module, "fits_in_memory", lambda nbytes: False)
    report = verify(source, tmp_path / "ck")
    assert report.ok and "not by transformers" in str(report)


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path, source: Path) -> None:
    (source / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="merge it"):
        import_hf(source, tmp_path / "ck")


def test_a_stored_copy_of_a_tied_head_is_dropped(tmp_path: Path) -> None:
    save_model(tmp_path / "hf", "qwen2", shards="5GB")
    file = tmp_path / "hf/model.safetensors"
    weights = load_file(file)
    save_file(
        {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()},
        file,
    )
    import_hf(tmp_path / "hf", tmp_path / "ck")
    assert verify(tmp_path / "hf", tmp_path / "ck").ok
    save_file(
        {**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + 1}, file
    )
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs"):
        import_hf(tmp_path / "hf", tmp_path / "ck2")


def test_a_later_stage_exports_its_rope_and_ledger(
    tmp_path: Path, source: Path
) -> None:
    manifest = import_hf(source, tmp_path / "ck")
    rope = RopeSpec(
        "llama3", 10000.0, 8.0, CONTEXT, low_freq_factor=1.0, high_freq_factor=4.0
    )
    entry = checkpoint.StageLedger(
        "32k", 8 * CONTEXT, rope, 9e-7, updates=5, rows=20, tokens=1234567
    )
    document = json.loads((tmp_path / "ck/manifest.json").read_text())
    later = checkpoint.Manifest(
        **{
            **manifest.__dict__,
            "stage": "32k",
            "rope": rope,
            "context": 8 * CONTEXT,
            "ledger": (entry,),
            "parent": "import",
            "files": document["files"],
        }
    )
    (tmp_path / "ck/manifest.json").write_text(json.dumps(later.to_json()))
    export_hf(tmp_path / "ck", tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (
        config["max_position_embeddings"] == 8 * CONTEXT
        and config["rope_scaling"]["factor"] == 8.0
    )
    card = (tmp_path / "out/README.md").read_text()
    assert (
        "| 32k | 1,024 | llama3, theta 10000, factor 8, original_max_position_embeddings 128"
        in card
    )
    assert "1,234,567" in card
    report = verify(source, tmp_path / "ck")
    assert (
        not report.weight_differences
        and len(report.config_differences) == 2
        and not report.ok
    )
    assert (
        report.logits is not None
        and report.logits.first is not None
        and report.logits.long > 1e-2
    )


# -- verify ----------------------------------------------------------------------------


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_agree_for_every_family_and_rope(
    tmp_path: Path, family: str, rope: str
) -> None:
    save_model(tmp_path / "hf", family, rope)
    import_hf(tmp_path / "hf", tmp_path / "ck")
    report = verify(tmp_path / "hf", tmp_path / "ck")
    assert report.ok, str(report)
    assert report.logits is not None and report.logits.positions[-1] == CONTEXT - 1
    # fp32 sums in another order; measured 1e-6, the issue asks for 1e-4.
    assert max(report.logits.short, report.logits.long) < 2e-5


def test_verify_names_the_first_different_weight(tmp_path: Path, source: Path) -> None:
    import_hf(source, tmp_path / "ck")
    name = "model.layers.1.self_attn.k_proj.weight"
    file = next(f for f in sorted(source.glob("*.safetensors")) if name in load_file(f))
    weights = load_file(file)
    weights[name][5, 7] += 0.5
    save_file(weights, file, metadata={"format": "pt"})
    report = verify(source, tmp_path / "ck")
    assert len(report.weight_differences) == 1 and not report.ok
    assert report.weight_differences[0].startswith(f"{name}[5, 7] is ")
    assert report.logits is not None and "layer 1" in str(report.logits.first)


def test_verify_notices_a_wrong_base(tmp_path: Path, source: Path) -> None:
    import_hf(source, tmp_path / "ck")
    parameters = {"rope_type": "default", "rope_theta": 10000.0}
    edit_json(source / "config.json", rope_parameters=parameters)
    report = verify(source, tmp_path / "ck")
    assert not report.weight_differences and not report.ok
    assert "10000.0" in report.config_differences[0] and "layer 0" in str(
        report.logits and report.logits.first
    )


def test_another_model_cannot_be_compared(tmp_path: Path, source: Path) -> None:
    import_hf(source, tmp_path / "ck")
    save_model(tmp_path / "other", num_hidden_layers=3)
    with pytest.raises(
        CheckpointError,
        match=r"not one model: num_hidden_layers is 3 .* 4 in the checkpoint",
    ):
        verify(tmp_path / "other", tmp_path / "ck")
    # How a writer that keeps fp32 states 1e-5.
    edit_json(source / "config.json", rms_norm_eps=9.999999747378752e-06)
    assert verify(source, tmp_path / "ck").ok
    edit_json(source / "config.json", rms_norm_eps=1e-3)
    report = verify(source, tmp_path / "ck")
    assert report.config_differences == (
        "rms_norm_eps is 0.001 in config.json, 1e-05 in the checkpoint",
    )
    assert not report.ok and report.logits is not None and report.logits.short > 1e-4


# -- what can be wrong -----------------------------------------------------------------


def _truncate(file: Path, by: int = 100) -> None:
    os.truncate(file, file.stat().st_size - by)


def _flip(file: Path, position: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ 4]))


def _edit_shard(
    directory: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    weights = load_file(directory / SHARD)
    change(weights)
    save_file(weights, directory / SHARD, metadata={"format": "pt"})


def _first(weights: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(weights) if weights[name].dim() == 2)


def _poison(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[_first(weights)][3, 4] = value

    return change


def _transpose(weights: dict[str, torch.Tensor]) -> None:
    name = _first(weights)
    weights[name] = weights[name].reshape(-1, 2)


def _mix_dtypes(weights: dict[str, torch.Tensor]) -> None:
    name = _first(weights)
    weights[name] = weights[name].float()


def _integers(weights: dict[str, torch.Tensor]) -> None:
    name = _first(weights)
    weights[name] = weights[name].to(torch.int8)


def _forget_in_index(directory: Path) -> None:
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.norm.weight"]
    edit_json(directory / "model.safetensors.index.json", **index)


def _promise_in_index(directory: Path) -> None:
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.layers.9.mlp.up_proj.weight"] = SHARD
    edit_json(directory / "model.safetensors.index.json", **index)


def _swap_head(directory: Path) -> None:
    edit_json(directory / "config.json", tie_word_embeddings=True)


CORRUPTIONS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated shard": (
        lambda d: _truncate(d / SHARD),
        f"{SHARD}: .* the file is truncated",
    ),
    "shard cut in its header": (
        lambda d: os.truncate(d / SHARD, 20),
        f"{SHARD}: 20 bytes cannot hold a header",
    ),
    "bit flip in a header": (
        lambda d: _flip(d / SHARD, 9),
        f"{SHARD}: .*(header is damaged|does not list it)",
    ),
    "missing shard": (lambda d: (d / SHARD).unlink(), f"{SHARD}: missing"),
    "missing index entry": (
        _forget_in_index,
        "model.norm.weight, but .*index.json does not list it",
    ),
    "index without tensor": (
        _promise_in_index,
        "lists model.layers.9.mlp.up_proj.weight",
    ),
    "no index": (
        lambda d: (d / "model.safetensors.index.json").unlink(),
        "no model.safetensors.index.json",
    ),
    "missing tensors": (
        lambda d: edit_json(d / "config.json", num_hidden_layers=5),
        "model.layers.4.* is missing",
    ),
    "surplus tensors": (
        lambda d: edit_json(d / "config.json", num_hidden_layers=3),
        "model.layers.3.* is surplus",
    ),
    "wrong shape": (
        lambda d: _edit_shard(d, _transpose),
        r"has shape \[\d+, 2\], config.json makes it",
    ),
    "NaN": (
        lambda d: _edit_shard(d, _poison(float("nan"))),
        f"{SHARD}: model.* NaN or infinite .* in row 3",
    ),
    "infinity": (
        lambda d: _edit_shard(d, _poison(float("-inf"))),
        f"{SHARD}: model.* NaN or infinite .* in row 3",
    ),
    "two dtypes in a tensor": (
        lambda d: _edit_shard(d, _mix_dtypes),
        "torch.float32.*ask for one dtype",
    ),
    "integer weights": (
        lambda d: _edit_shard(d, _integers),
        "is torch.int8, supported are",
    ),
    "foreign tokenizer": (
        lambda d: write_tokenizer(d, 200),
        "tokenizer.json: has token id 199.*vocab_size is 96",
    ),
    "untied head called tied": (_swap_head, "lm_head.weight differs"),
    "other sizes": (
        lambda d: edit_json(d / "config.json", hidden_size=32, head_dim=16),
        "config.json makes",
    ),
    "config cut short": (
        lambda d: _truncate(d / "config.json"),
        "config.json: not readable as JSON",
    ),
    "no config": (
        lambda d: (d / "config.json").unlink(),
        "config.json: there is no such file",
    ),
    "rope we lack": (
        lambda d: edit_json(
            d / "config.json", rope_parameters={"rope_type": "longrope"}
        ),
        "longrope",
    ),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupt_source_is_named_and_leaves_nothing(
    tmp_path: Path, source: Path, name: str
) -> None:
    corrupt, said = CORRUPTIONS[name]
    corrupt(source)
    with pytest.raises(CheckpointError, match=said):
        import_hf(source, tmp_path / "ck")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_a_truncated_bin_is_named(tmp_path: Path) -> None:
    model = make_model("llama")
    model.config.save_pretrained(tmp_path / "hf")
    torch.save(model.state_dict(), tmp_path / "hf/pytorch_model.bin")
    _truncate(tmp_path / "hf/pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"pytorch_model.bin: not a readable torch archive"
    ):
        import_hf(tmp_path / "hf", tmp_path / "ck")


def _nan_in_state(path: Path) -> None:
    with dcp_store.open_state(path / "state") as state:
        state.read_rows(
            "output_layer.weight", None, 0, torch.empty((1, 64), dtype=torch.bfloat16)
        )
        place = next(iter(state._places.values()))
    with place.file.open("r+b") as stream:
        stream.seek(place.offset)
        stream.write(np.array([0x7FC0], dtype=np.uint16).tobytes())


STATE_CORRUPTIONS: dict[str, tuple[Callable[[Path], Any], bool, str]] = {
    "bit flip": (
        lambda c: _flip(c / "state/__0_0.distcp", 50_000),
        True,
        "__0_0.distcp: checksum differs",
    ),
    "truncated": (
        lambda c: _truncate(c / "state/__0_0.distcp"),
        True,
        "__0_0.distcp: .* bytes instead of",
    ),
    "truncated, unchecked": (
        lambda c: os.truncate(c / "state/__0_0.distcp", 50_000),
        False,
        "__0_0.distcp",
    ),
    "missing file": (
        lambda c: (c / "state/__0_0.distcp").unlink(),
        True,
        "__0_0.distcp: missing",
    ),
    "missing file, unchecked": (
        lambda c: (c / "state/__0_0.distcp").unlink(),
        False,
        "__0_0.distcp",
    ),
    "metadata cut": (
        lambda c: _truncate(c / "state/.metadata"),
        False,
        ".metadata: not readable",
    ),
    "metadata missing": (
        lambda c: (c / "state/.metadata").unlink(),
        False,
        ".metadata: missing",
    ),
    "another model": (
        lambda c: edit_json(
            c / "manifest.json",
            model={
                **json.loads((c / "manifest.json").read_text())["model"],
                "num_hidden_layers": 5,
            },
        ),
        False,
        "model changed after the file was written",
    ),
    "no manifest": (lambda c: (c / "manifest.json").unlink(), True, "not a checkpoint"),
    "NaN": (_nan_in_state, False, "lm_head.weight has NaN or infinite values"),
    "foreign tokenizer": (
        lambda c: write_tokenizer(c / "assets", 97),
        False,
        "token id 96",
    ),
}


@pytest.mark.parametrize("name", STATE_CORRUPTIONS)
def test_a_corrupt_checkpoint_is_named_and_leaves_nothing(
    tmp_path: Path, source: Path, name: str
) -> None:
    corrupt, check, said = STATE_CORRUPTIONS[name]
    import_hf(source, tmp_path / "ck")
    corrupt(tmp_path / "ck")
    with pytest.raises(CheckpointError, match=said):
        export_hf(tmp_path / "ck", tmp_path / "out", check=check)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ck", "hf"]


def test_overflow_in_a_narrower_dtype_is_an_error(tmp_path: Path) -> None:
    model = save_model(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[1, 2] = 1e30
    model.save_pretrained(tmp_path / "hf", max_shard_size="80KB")
    with pytest.raises(
        CheckpointError,
        match=r"layers.2.mlp.up_proj.weight .* torch.float16, first in row 1",
    ):
        import_hf(tmp_path / "hf", tmp_path / "ck", dtype=torch.float16)
    import_hf(tmp_path / "hf", tmp_path / "ck")
    with pytest.raises(CheckpointError, match="float16"):
        export_hf(tmp_path / "ck", tmp_path / "out", dtype=torch.float16)


# -- killed in the middle --------------------------------------------------------------


def _run_and_die(convert: Any, source: Path, target: Path) -> None:
    def die_half_way(done: int, total: int) -> None:
        if done > total // 2:
            os.kill(os.getpid(), signal.SIGKILL)

    convert(source, target, progress=die_half_way)


def _killed(convert: Any, source: Path, target: Path) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=_run_and_die, args=(convert, source, target)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def test_kill_9_leaves_nothing_that_loads_and_the_next_run_succeeds(
    tmp_path: Path, source: Path
) -> None:
    _killed(import_hf, source, tmp_path / "ck")
    assert not (tmp_path / "ck").exists() and (tmp_path / "ck.incomplete").exists()
    with pytest.raises(AliaError):
        checkpoint.read_manifest(tmp_path / "ck.incomplete")
    import_hf(source, tmp_path / "ck")
    _killed(export_hf, tmp_path / "ck", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises((OSError, ValueError)):
        load_model(tmp_path / "out.incomplete")
    export_hf(tmp_path / "ck", tmp_path / "out")
    assert verify(tmp_path / "out", tmp_path / "ck").ok
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ck", "hf", "out"]


# -- pieces smaller than a tensor ------------------------------------------------------


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 5,000 bytes in blocks of 1,000: what tensors above 32 MiB go through."""
    monkeypatch.setattr(dcp_files, "_BLOCK_BYTES", 1_000)
    monkeypatch.setattr(safetensors_writer, "_BLOCK_BYTES", 1_000)
    write_part = functools.partial(dcp_store.write_part, chunk_bytes=5_000)
    monkeypatch.setattr(dcp_store, "write_part", write_part)


@pytest.mark.usefixtures("small_pieces")
def test_small_pieces_are_the_same_model(tmp_path: Path, source: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    import_hf(source, tmp_path / "ck")
    with dcp_store.open_state(tmp_path / "ck/state") as state:
        chunks = state._described["decoder.layers.mlp.linear_fc1.weight"].chunks
    assert len(chunks) == 4 * 5  # 4 layers of 192 rows of 128 bytes, 39 rows a chunk
    export_hf(tmp_path / "ck", tmp_path / "out")
    assert verify(source, tmp_path / "ck").ok
    assert same_weights(load_model(tmp_path / "out"), load_model(source))
    # PyTorch's own reader agrees that these are plain records of whole global tensors.
    dcp_to_torch_save(tmp_path / "ck/state", tmp_path / "plain.pt")
    plain = torch.load(tmp_path / "plain.pt", weights_only=False)
    assert plain["decoder.layers.mlp.linear_fc1.weight"].shape == (4, 192, 64)
    assert torch.equal(plain["output_layer.weight"], load_model(source).lm_head.weight)


@pytest.mark.parametrize("chunks", ["small", "whole"])
def test_errors_while_a_record_is_written(
    tmp_path: Path,
    source: Path,
    chunks: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: Any, data: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if chunks == "small":
        request.getfixturevalue("small_pieces")
    with monkeypatch.context() as patch:
        patch.setattr(dcp_files.RecordFile, "_put", full)
        said = r"ck: cannot be written .No space left"
        with pytest.raises(CheckpointError, match=said):
            import_hf(source, tmp_path / "ck")
    _edit_shard(source, _poison(float("nan")))
    with pytest.raises(CheckpointError, match=r"NaN or infinite .* in row 3"):
        import_hf(source, tmp_path / "ck")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


# -- several ranks ---------------------------------------------------------------------


def _convert_on_ranks(rank: int, folder: str) -> str:
    root = Path(folder)
    with Ranks.from_environment() as ranks:
        import_hf(root / "hf", root / "ck", ranks=ranks)
        export_hf(root / "ck", root / "out", shard_bytes=100_000, ranks=ranks)
        try:
            import_hf(root / "bad", root / "bad-ck", ranks=ranks)
        except CheckpointError as error:
            return str(error)
    return "no error"


def test_ranks_share_the_work(tmp_path: Path, source: Path) -> None:
    shutil.copytree(source, tmp_path / "bad")
    last = sorted((tmp_path / "bad").glob("*.safetensors"))[-1]
    weights = load_file(last)
    weights["lm_head.weight"][90, 0] = float("nan")  # in the share of the last rank
    save_file(weights, last, metadata={"format": "pt"})
    errors = run_distributed(_convert_on_ranks, 2, str(tmp_path))
    assert errors[0].startswith("rank 1 failed") and all(
        "lm_head.weight has NaN" in error for error in errors
    )
    assert not (tmp_path / "bad-ck").exists() and not list(
        tmp_path.glob("*.incomplete")
    )
    assert {"state/__0_0.distcp", "state/__1_0.distcp"} < files_below(tmp_path / "ck")
    sizes = [
        (tmp_path / f"ck/state/__{rank}_0.distcp").stat().st_size for rank in (0, 1)
    ]
    assert max(sizes) < 1.5 * min(sizes)
    assert same_weights(load_model(tmp_path / "out"), load_model(source))
    assert verify(source, tmp_path / "ck").ok


# -- through Megatron ------------------------------------------------------------------

# Every RoPE type and every family; bf16 weights load into an fp32 model, which widens them exactly.
# 97 words are padded to 98 rows by tp=2.
THROUGH: list[tuple[str, str, torch.dtype, dict[str, int]]] = [
    ("llama", "default", torch.float32, {"vocab_size": 97}),
    ("llama", "dynamic", torch.float32, {}),
    ("mistral", "linear", torch.float32, {}),
    ("qwen2", "yarn", torch.float32, {}),
    ("qwen3", "llama3", torch.bfloat16, {}),
]


def _load_and_save(rank: int, folder: str) -> list[np.ndarray | None]:
    import torch.distributed as dist

    from alia_ctx.config.run import EngineConfig
    from alia_ctx.data.packing import PackedRow
    from alia_ctx.mcore.engine import MegatronEngine
    from alia_ctx.mcore.runtime import Distributed
    from alia_ctx.spec.layout import Layout

    losses: list[np.ndarray | None] = []
    dist.destroy_process_group()
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=(Path(folder) / "port").read_text()
    )
    config = EngineConfig(device="cpu", precision="fp32", attention="reference")
    with Distributed(config):
        for family, rope, *_ in THROUGH:
            path = Path(folder) / f"{family}-{rope}"
            manifest = checkpoint.read_manifest(path / "ck")
            engine = MegatronEngine(
                manifest.model, manifest.rope, CONTEXT, Layout(tp=2, pp=2), config, None
            )
            engine.load(path / "ck/state", with_optimizer=False)
            rows = engine.row_losses(
                [PackedRow.from_documents([tokens().numpy()], CONTEXT)]
            )
            losses.append(rows[0].as_row() if engine.reports_losses else None)
            if rank == 0:
                (path / "trained/state").mkdir(parents=True)
                shutil.copytree(path / "ck/assets", path / "trained/assets")
            dist.barrier()
            engine.begin_save(path / "trained", with_optimizer=False).finish()
        dist.barrier()
    dist.init_process_group(
        "gloo", init_method=(Path(folder) / "end").as_uri(), rank=rank, world_size=4
    )
    return losses


def test_through_tp2_pp2_and_back(tmp_path: Path) -> None:
    models = {}
    for family, rope, dtype, changes in THROUGH:
        path = tmp_path / f"{family}-{rope}"
        models[path] = save_model(path / "hf", family, rope, dtype=dtype, **changes)
        import_hf(path / "hf", path / "ck")
    (tmp_path / "port").write_text(str(_free_port()))
    found = run_distributed(_load_and_save, 4, str(tmp_path), timeout=300)
    losses = next(of_rank for of_rank in found if of_rank[0] is not None)
    for (path, model), ours in zip(models.items(), losses, strict=True):
        expected = logits(model)
        theirs = torch.nn.functional.cross_entropy(
            expected[:-1], tokens()[1:], reduction="none"
        ).numpy()
        # fp32 through another kernel and another order of sums; the issue asks for 1e-4.
        assert np.abs(ours[:-1] - theirs).max() < 1e-4, path.name
        manifest = checkpoint.read_manifest(path / "ck")
        document = {**manifest.to_json(), "files": {}}
        (path / "trained/manifest.json").write_text(json.dumps(document))
        export_hf(path / "trained", path / "out")
        # The model of the loss is fp32, so what it saves is; every value is that of the import.
        back = load_model(path / "out")
        assert back.dtype == torch.float32 and same_weights(back, model.float()), (
            path.name
        )
        assert torch.equal(logits(back), expected), path.name
        assert verify(path / "out", path / "trained").ok


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_exported_model_generates(tmp_path: Path, source: Path) -> None:
    from transformers import AutoTokenizer

    import_hf(source, tmp_path / "ck")
    export_hf(tmp_path / "ck", tmp_path / "out")
    prompt = AutoTokenizer.from_pretrained(tmp_path / "out")(
        "word5 word7 word9", return_tensors="pt"
    ).input_ids
    assert prompt.tolist() == [[5, 7, 9]]
    written, original = (
        load_model(directory).generate(
            prompt, max_new_tokens=8, do_sample=False, eos_token_id=None
        )
        for directory in (tmp_path / "out", source)
    )
    assert written.shape == (1, 11) and torch.equal(written, original)
