"""What a checkpoint states of its weights is the same on whatever layout it was written."""

from __future__ import annotations

from pathlib import Path

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from alia_ctx.train.stage_identity import checkpoint_statement
from tests import engine as small
from tests.distributed import run_distributed

LAYOUTS = {
    "pp": Layout(pp=2),
    "cp": Layout(cp=2),
    "dp": Layout(),
    "tp": Layout(tp=2),  # which pads the vocabulary
}
MODEL = {**small.MODEL, "vocab_size": 251}


def saved_again(rank: int, folder: str) -> dict[str, str]:
    """Train two updates under tensor parallelism and save, load that on each layout and
    save it, and after one more update: what each states of its weights, by name.
    """
    root = Path(folder)
    manifest = Manifest("s", 2, ModelSpec(**MODEL), small.ROPE, small.CONTEXT)
    with small.distributed():
        engine = small.make_engine(LAYOUTS["tp"], precision="bf16", vocab_size=251)
        small.train(engine, range(2))
        small.save_checkpoint(engine, root / "first", manifest)
        for name, layout in LAYOUTS.items():
            engine = small.make_engine(layout, precision="bf16", vocab_size=251)
            engine.load(root / "first" / checkpoint.STATE, with_optimizer=True)
            small.save_checkpoint(engine, root / name, manifest)
        small.train(engine, [2])
        small.save_checkpoint(engine, root / "later", manifest)
    names = ("first", *LAYOUTS, "later")
    return {
        name: checkpoint_statement(checkpoint.read_manifest(root / name))["weights"]
        for name in names
    }


def test_layouts_write_the_same_weights_in_other_files(tmp_path: Path) -> None:
    stated, _ = run_distributed(saved_again, 2, str(tmp_path), timeout=300)
    later = stated.pop("later")
    assert len(set(stated.values())) == 1, stated
    assert later not in stated.values()
    sizes = {
        name: (tmp_path / name / "state/__0_0.distcp").stat().st_size
        for name in LAYOUTS
    }
    assert len(set(sizes.values())) > 1, "the files must differ to show anything"
