"""A second run begins with what the first one's export states; a base of others with the
tokens that it was trained on, whatever length its config.json publishes.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alia_ctx import checkpoint
from alia_ctx.config.base import _import_problems
from alia_ctx.errors import CheckpointError
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.targets import _sum
from alia_ctx.hf.verify import verify
from alia_ctx.spec.rope import RopeSpec
from alia_ctx.workflow.evaluated_models import of_directory
from tests.hf.exports import read, trained
from tests.hf_models import CONTEXT, edit_json, save_model

TRAINED = 192
ROPES = {
    "default": RopeSpec("default", 10000.0),
    "linear": RopeSpec("linear", 10000.0, 1.5),
    "dynamic": RopeSpec("dynamic", 10000.0, 8.0, CONTEXT),
    "yarn": RopeSpec("yarn", 10000.0, 40.0, CONTEXT),
    "llama3": RopeSpec(
        "llama3", 10000.0, 8.0, CONTEXT, low_freq_factor=1.0, high_freq_factor=4.0
    ),
}
SOURCES: list[Any] = [
    [
        {
            "name": "novels",
            "tokens": 1234567,
            "documents": 12,
            "of_conversations": False,
            "licence": "cc-by-4.0",
            "dataset": "someone/novels",
        }
    ]
]


def exported(root: Path, rope: RopeSpec, family: str = "llama") -> Path:
    """The export `out` of a stage that was trained at TRAINED tokens of SOURCES."""
    save_model(root / "base", family)
    import_hf(root / "base", root / "ck")
    trained(root / "ck", TRAINED, rope)
    manifest = checkpoint.read_manifest(root / "ck")
    manifest = dataclasses.replace(manifest, extra={"sources": SOURCES})
    (root / "ck" / "manifest.json").write_text(json.dumps(manifest.to_json()))
    export_hf(root / "ck", root / "out")
    return root / "out"


@pytest.mark.parametrize("name", ROPES)
def test_an_import_of_an_export_goes_on_with_its_training(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rope = ROPES[name]
    out = exported(tmp_path, rope)
    before = checkpoint.read_manifest(tmp_path / "ck")
    again = import_hf(out, tmp_path / "again")
    assert (again.stage, again.update, again.context) == ("import", 0, TRAINED)
    assert (again.rope, again.ledger) == (rope, before.ledger)
    assert again == checkpoint.read_manifest(tmp_path / "again")
    assert again.extra["sources"] == SOURCES
    assert verify(out, tmp_path / "again").ok

    capsys.readouterr()
    export_hf(tmp_path / "again", tmp_path / "second")
    card = (tmp_path / "second" / "README.md").read_text()
    assert "| long | 192 | " in card and "No training with alia-ctx" not in card
    row = "| long | novels ([someone/novels](https://huggingface.co/datasets/someone/novels))"
    assert f"{row} | cc-by-4.0 | 1,234,567 | 12 documents |" in card
    assert "192 tokens of context" in card
    # its tokenizer came with the weights, as that of every import
    assert "does not say which tokenizer" not in card + capsys.readouterr().err
    assert of_directory(tmp_path / "second").context == TRAINED
    assert verify(tmp_path / "second", tmp_path / "again").ok

    third = import_hf(tmp_path / "second", tmp_path / "third")
    assert (third.context, third.ledger) == (TRAINED, before.ledger)


def told_of_base(base: Path, checkpoint_dir: Path) -> list[str]:
    """What `check` says of a stage that starts from `checkpoint_dir` beside `hf_base`."""
    draft: Any = SimpleNamespace(
        hf_base=str(base),
        deferred=lambda _: False,
        asked=lambda: {"sft": SimpleNamespace(init_from=str(checkpoint_dir))},
    )
    return [problem.rule for problem in _import_problems(draft)]


def test_an_import_is_held_to_the_training_of_its_base(tmp_path: Path) -> None:
    out = exported(tmp_path, ROPES["yarn"])
    manifest = import_hf(out, tmp_path / "again")
    assert told_of_base(out, tmp_path / "again") == []
    # An import of an earlier release took what is published.
    for context, told in ((40 * CONTEXT, False), (96, True)):
        other = dataclasses.replace(manifest, context=context)
        document = {**other.to_json(), "files": {}}
        del document["statement"]
        document["format_version"] = 1  # which states no checksums
        (tmp_path / "again" / "manifest.json").write_text(json.dumps(document))
        said = told_of_base(out, tmp_path / "again")
        assert bool(said) == told
        assert not told or "context 192, not 96" in said[0]


def test_an_import_says_what_differs_from_its_directory_alone(tmp_path: Path) -> None:
    """Limits of the directory that was imported are its own, with a ledger or without."""
    out = exported(tmp_path, ROPES["yarn"])
    edit_json(out / "generation_config.json", max_length=16)
    import_hf(out, tmp_path / "again")
    assert verify(out, tmp_path / "again").ok


def test_a_statement_is_believed_of_the_model_that_it_is_of(tmp_path: Path) -> None:
    out = exported(tmp_path, ROPES["yarn"])
    edit_json(out / "config.json", an_owner="edited it")
    edited = import_hf(out, tmp_path / "edited")
    assert (edited.context, edited.ledger) == (40 * CONTEXT, ())
    assert "sources" not in edited.extra


@pytest.mark.parametrize("how", ["values", "shards", "added"])
def test_a_ledger_is_that_of_the_weights_that_were_exported(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = exported(tmp_path, ROPES["yarn"])
    file = out / "model.safetensors"
    tensors = load_file(file)
    if how == "values":
        name = min(tensors)
        tensors[name] = tensors[name] + 1
        save_file(tensors, file, metadata={"format": "pt"})
    elif how == "shards":  # as another program saves the same
        file.unlink()
        names, files = sorted(tensors), ("a.safetensors", "b.safetensors")
        places = {name: files[number % 2] for number, name in enumerate(names)}
        for shard in files:
            part = {n: tensors[n] for n in names if places[n] == shard}
            save_file(part, out / shard, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": places}
        (out / "model.safetensors.index.json").write_text(json.dumps(index))
    else:  # what is beside the weights is not of them
        save_file({"lora": torch.zeros(2)}, out / "adapter_model.safetensors")
    capsys.readouterr()
    imported = import_hf(out, tmp_path / "again")
    said = " ".join(capsys.readouterr().err.split())
    before = checkpoint.read_manifest(tmp_path / "ck").ledger
    taken = how == "added"
    assert imported.ledger == (before if taken else ())
    assert ("sources" in imported.extra) == taken
    assert imported.context == TRAINED
    assert ("not as the export wrote it" in said) != taken
    assert told_of_base(out, tmp_path / "again") == []


def reseal(out: Path, **made_from: Any) -> None:
    statement = read(out / "alia_ctx_export.json")
    del statement["checksum"]
    statement["made_from"] |= made_from
    for name in [key for key, value in made_from.items() if value is None]:
        del statement["made_from"][name]
    sealed = {**statement, "checksum": _sum(statement)}
    (out / "alia_ctx_export.json").write_text(json.dumps(sealed))


def test_statements_of_other_releases(tmp_path: Path) -> None:
    """The first ones had no ledger; of one that cannot be read nothing is dropped in silence."""
    out = exported(tmp_path, ROPES["yarn"])
    reseal(out, ledger=None, sources=None)
    earlier = import_hf(out, tmp_path / "earlier")
    assert (earlier.context, earlier.ledger) == (TRAINED, ())
    for number, other in enumerate(
        (
            {"ledger": [{"stage": "long"}], "sources": [None]},
            {"ledger": [], "sources": [[{"a name": "novels"}]]},
            {"ledger": [], "sources": [None]},
        )
    ):
        reseal(out, **other)
        told = r"alia_ctx_export\.json: its ledger is of another release"
        with pytest.raises(CheckpointError, match=told):
            import_hf(out, tmp_path / f"later-{number}")
        assert not (tmp_path / f"later-{number}").exists()


PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    # vicuna-16k: the length before scaling, and beside it the one that is read
    "unscaled": (
        {
            "rope_scaling": {"type": "linear", "factor": 4.0},
            "max_sequence_length": 4 * CONTEXT,
        },
        4 * CONTEXT,
    ),
    "scaled": (
        {
            "rope_scaling": {"type": "linear", "factor": 4.0},
            "max_sequence_length": CONTEXT,
        },
        CONTEXT,
    ),
    # Qwen2.5's README: yarn added to a file whose length stays the original one
    "added yarn": (
        {
            "rope_scaling": {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": CONTEXT,
            }
        },
        4 * CONTEXT,
    ),
    "yarn alone": ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, 2 * CONTEXT),
    "llama3": (
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": CONTEXT,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            }
        },
        8 * CONTEXT,
    ),
    # with which nothing needs to have been trained beyond the length
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, CONTEXT),
    "none": ({}, CONTEXT),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_import_has_the_tokens_of_training(name: str, tmp_path: Path) -> None:
    changes, length = PUBLISHED[name]
    save_model(tmp_path / "base", "qwen2")
    edit_json(tmp_path / "base" / "config.json", rope_parameters=None, rope_theta=1e4)
    edit_json(tmp_path / "base" / "config.json", **changes)
    manifest = import_hf(tmp_path / "base", tmp_path / "ck")
    assert (manifest.context, manifest.ledger) == (length, ())
    report = verify(tmp_path / "base", tmp_path / "ck")
    assert report.ok, str(report)
    export_hf(tmp_path / "ck", tmp_path / "out")
    assert verify(tmp_path / "out", tmp_path / "ck").ok
    assert of_directory(tmp_path / "out").context == length
    if name != "dynamic":  # it reads further than it was trained
        assert of_directory(tmp_path / "base").context == length


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        ({"type": "linear", "factor": 4.0}, "512 or 128"),
        (
            {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "128 or 256",
        ),
        (None, None),
    ],
)
def test_a_length_that_nothing_decides_is_said(
    tmp_path: Path,
    scaling: dict[str, Any] | None,
    words: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_model(tmp_path / "base")
    changes = {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": scaling}
    edit_json(tmp_path / "base" / "config.json", **changes)
    import_hf(tmp_path / "base", tmp_path / "ck")
    said = " ".join(capsys.readouterr().err.split())
    assert ("nothing says whether it was trained on" in said) == (words is not None)
    assert words is None or f"trained on {words} tokens" in said


def test_a_factor_beyond_all_lengths_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    scaling = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 1e20}
    edit_json(tmp_path / "base" / "config.json", rope_parameters=scaling)
    with pytest.raises(CheckpointError, match=r"config\.json: [^\n]*\n  factor=1e\+20"):
        import_hf(tmp_path / "base", tmp_path / "ck")
