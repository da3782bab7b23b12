"""Imported, loaded and saved by Megatron on tp=2 x pp=2, exported: bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from alia_ctx import checkpoint
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.verify import verify
from tests.distributed import run_distributed
from tests.engine import save_checkpoint
from tests.hf.conversions import load_model
from tests.hf_models import (
    CONTEXT,
    logits,
    same_weights,
    save_model,
    tokens,
)

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
    from alia_ctx.config.run import EngineConfig
    from alia_ctx.data.packing import PackedRow
    from alia_ctx.mcore.engine import MegatronEngine
    from alia_ctx.mcore.runtime import Distributed
    from alia_ctx.spec.layout import Layout

    losses: list[np.ndarray | None] = []
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
            manifest = checkpoint.read_manifest(path / "ck")
            save_checkpoint(engine, path / "trained", manifest, path / "ck/assets")
    return losses


def test_through_tp2_pp2_and_back(tmp_path: Path) -> None:
    models = {}
    for family, rope, dtype, changes in THROUGH:
        path = tmp_path / f"{family}-{rope}"
        models[path] = save_model(path / "hf", family, rope, dtype=dtype, **changes)
        import_hf(path / "hf", path / "ck")
    found = run_distributed(_load_and_save, 4, str(tmp_path), timeout=300)
    losses = next(of_rank for of_rank in found if of_rank[0] is not None)
    for (path, model), ours in zip(models.items(), losses, strict=True):
        expected = logits(model)
        theirs = torch.nn.functional.cross_entropy(
            expected[:-1], tokens()[1:], reduction="none"
        ).numpy()
        # fp32 through another kernel and another order of sums; the issue asks for 1e-4.
        assert np.abs(ours[:-1] - theirs).max() < 1e-4, path.name
        export_hf(path / "trained", path / "out")
        # The model of the loss is fp32, so what it saves is; every value is that of the import.
        back = load_model(path / "out")
        assert back.dtype == torch.float32 and same_weights(back, model.float()), (
            path.name
        )
        assert torch.equal(logits(back), expected), path.name
        assert verify(path / "out", path / "trained").ok


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
