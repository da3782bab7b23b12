"""What a conversion may replace: what a conversion wrote, whole and unchanged, and nothing
else. Links lead neither in nor out.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.errors import CheckpointError
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.targets import read_statement
from tests.hf_models import edit_json, save_model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model `hf`, its import `ck`, and the export `out` of that."""
    root = tmp_path_factory.mktemp("made")
    save_model(root / "hf")
    import_hf(root / "hf", root / "ck")
    export_hf(root / "ck", root / "out")
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "here")
    return tmp_path / "here"


def contents(directory: Path) -> dict[str, bytes | str]:
    """Every file and link below a directory."""
    return {
        str(path.relative_to(directory)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        for path in directory.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def from_anywhere(written: dict[str, Any]) -> dict[str, Any]:
    """What was written, but for where an import found its files, and of what time."""
    if (manifest := written.get("manifest.json")) is None:
        return written
    stated = json.loads(manifest)
    for key in ("directory", "files"):
        del stated["config"]["source_weights"][key]
    del stated["statement"]["config"]  # its checksum
    return {**written, "manifest.json": stated}


CONVERSIONS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "import": (import_hf, "hf", "ck"),
    "export": (export_hf, "ck", "out"),
}
both = pytest.mark.parametrize("conversion", CONVERSIONS)


def refused(here: Path, conversion: str, said: str, **options: Any) -> None:
    """The conversion is refused, and nothing in the directory has changed."""
    convert, source, target = CONVERSIONS[conversion]
    before = contents(here)
    with pytest.raises(CheckpointError, match=said):
        convert(here / source, here / target, **options)
    assert contents(here) == before


@both
def test_nothing_is_overwritten_unasked(here: Path, conversion: str) -> None:
    refused(here, conversion, "exists; remove it")


@both
def test_what_was_written_is_replaced_when_asked(here: Path, conversion: str) -> None:
    convert, source, target = CONVERSIONS[conversion]
    before = contents(here / target)
    convert(here / source, here / target, overwrite=True)
    assert from_anywhere(contents(here / target)) == from_anywhere(before)
    assert sorted(p.name for p in here.iterdir()) == ["ck", "hf", "out"]


def a_directory_of_models(target: Path) -> None:
    """What `--overwrite models/` would have removed."""
    shutil.rmtree(target)
    save_model(target / "mine")


def a_model_of_another_tool(target: Path) -> None:
    shutil.rmtree(target)
    save_model(target)


def one_more_file(target: Path) -> None:
    (target / "notes.txt").write_text("mine")


def one_more_folder(target: Path) -> None:
    (target / "figures").mkdir()


def an_edited_card(target: Path) -> None:
    name = "README.md" if (target / "README.md").exists() else "assets/config.json"
    (target / name).write_text("completed by its author")


def other_weights(target: Path) -> None:
    weights = next(
        f for f in target.rglob("*") if f.suffix in (".safetensors", ".distcp")
    )
    with weights.open("r+b") as stream:
        stream.seek(-5, os.SEEK_END)
        stream.write(b"x")


def a_link_inside(target: Path) -> None:
    (target / "more").symlink_to(target.parent)


def an_edited_statement(target: Path) -> None:
    name = "alia_ctx_export.json"
    if (target / name).exists():
        files = json.loads((target / name).read_text())["files"]
        (target / "mine.txt").write_text("mine")
        edit_json(target / name, files={**files, "mine.txt": {"bytes": 4}})
    else:
        (target / "manifest.json").write_text("{}")


@both
@pytest.mark.parametrize(
    "change",
    [
        a_directory_of_models,
        a_model_of_another_tool,
        one_more_file,
        one_more_folder,
        an_edited_card,
        other_weights,
        a_link_inside,
        an_edited_statement,
    ],
)
def test_nothing_else_is_overwritten(
    here: Path, conversion: str, change: Callable[[Path], None]
) -> None:
    change(here / CONVERSIONS[conversion][2])
    refused(here, conversion, "only what a conversion wrote", overwrite=True)


def test_a_trained_checkpoint_is_no_import(here: Path) -> None:
    edit_json(here / "ck/manifest.json", stage="32k")
    refused(here, "import", "checkpoint of stage 32k|manifest", overwrite=True)


@both
@pytest.mark.parametrize("shape", ["directory", "link", "file", "whole"])
def test_a_neighbour_that_is_not_ours_stays(
    here: Path, conversion: str, shape: str
) -> None:
    """A whole conversion that somebody gave the name among them."""
    target = here / CONVERSIONS[conversion][2]
    neighbour = target.with_name(target.name + ".incomplete")
    if shape == "whole":
        shutil.copytree(target, neighbour)
    elif shape == "directory":
        (neighbour / "state").mkdir(parents=True)
        (neighbour / "state/thesis.tex").write_text("years")
    elif shape == "link":
        neighbour.symlink_to(here / "hf")
    else:
        neighbour.write_text("mine")
    refused(here, conversion, "is in the way", overwrite=True)


@both
@pytest.mark.parametrize("how", [os.rename, shutil.copytree])
def test_a_backup_under_any_name_stays(
    here: Path, conversion: str, how: Callable[[Path, Path], Any]
) -> None:
    convert, source, target = CONVERSIONS[conversion]
    backup = here / f"{target}.replaced"
    how(here / target, backup)
    before = contents(backup)
    for _ in range(2):
        convert(here / source, here / target, overwrite=True)
    assert contents(backup) == before
    assert sorted(p.name for p in here.iterdir()) == sorted(
        {"ck", "hf", "out", backup.name}
    )


@both
@pytest.mark.parametrize("moment", ["publish", "_flush", "os.rename"])
def test_what_a_kill_before_the_rename_left_is_removed(
    here: Path, conversion: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole directory under the temporary name, which we know to be ours, also where all
    that is here was copied since.
    """
    convert, source, target = CONVERSIONS[conversion]

    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "publish":  # under both its names
            patch.setattr("alia_ctx.checkpoint.publish", die)
        where = "" if "." in moment else "alia_ctx.checkpoint.directory."
        patch.setattr(f"{where}{moment}", die)
        patch.setattr("alia_ctx.checkpoint.discard", lambda path: None)
        with pytest.raises(Killed):
            convert(here / source, here / target, overwrite=True)
    assert (here / f"{target}.incomplete").is_dir()
    shutil.copytree(here, here.with_name("copy"))
    for place in (here, here.with_name("copy")):
        convert(place / source, place / target, overwrite=True)
        assert sorted(p.name for p in place.iterdir()) == ["ck", "hf", "out"]
        assert "alia_ctx_incomplete" not in contents(place / target)


@both
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("leads", ["to a directory", "nowhere", "to an empty one"])
def test_a_target_that_is_a_link_is_refused(
    here: Path, conversion: str, overwrite: bool, leads: str
) -> None:
    target = here / CONVERSIONS[conversion][2]
    target.rename(here / "real")
    (here / "empty").mkdir()
    names = {"to a directory": "real", "nowhere": "gone", "to an empty one": "empty"}
    target.symlink_to(here / names[leads])
    refused(here, conversion, "is a link to", overwrite=overwrite)


@both
def test_neither_inside_nor_around_its_source(here: Path, conversion: str) -> None:
    convert, source, _ = CONVERSIONS[conversion]
    before = contents(here)
    for target in (here / source / "inside", here / source, here):
        with pytest.raises(CheckpointError, match="lies in the directory"):
            convert(here / source, target, overwrite=True)
    assert contents(here) == before


@both
def test_an_empty_directory_may_stand_there(here: Path, conversion: str) -> None:
    convert, source, target = CONVERSIONS[conversion]
    shutil.rmtree(here / target)
    (here / target).mkdir()
    convert(here / source, here / target)
    assert any((here / target).iterdir())


def test_an_export_states_what_it_was_made_from(here: Path) -> None:
    statement = read_statement(here / "out")
    assert statement["made_from"]["stage"] == "import"
    assert statement["settings"]["dtype"] == "bfloat16"
    names = {str(p.relative_to(here / "out")) for p in (here / "out").rglob("*")}
    assert set(statement["files"]) == names - {"alia_ctx_export.json"}
    edit_json(here / "out/alia_ctx_export.json", settings={"dtype": "float32"})
    with pytest.raises(CheckpointError, match="was changed"):
        read_statement(here / "out")


# -- links -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["LICENSE", "tokenizer.json", "config.json", "NOTICE.txt", "README.md"]
)
@pytest.mark.parametrize("leads", ["outside", "nowhere", "to itself"])
def test_links_out_of_a_model_are_refused(here: Path, name: str, leads: str) -> None:
    secret = here / "secret"
    file = here / "hf" / name
    if leads == "outside":
        shutil.copy(file, secret) if file.exists() else secret.write_text("private")
    file.unlink(missing_ok=True)
    file.symlink_to(file if leads == "to itself" else secret)
    shutil.rmtree(here / "ck")
    before = contents(here)
    with pytest.raises(CheckpointError, match=name):
        import_hf(here / "hf", here / "ck")
    assert contents(here) == before


def test_links_in_folders_are_refused(here: Path) -> None:
    (here / "secret").mkdir()
    (here / "secret/key.jinja").write_text("private")
    (here / "hf/additional_chat_templates").symlink_to(here / "secret")
    with pytest.raises(CheckpointError, match="additional_chat_templates: is a link"):
        import_hf(here / "hf", here / "ck2")
    (here / "hf/additional_chat_templates").unlink()
    (here / "hf/additional_chat_templates").mkdir()
    link = here / "hf/additional_chat_templates/key.jinja"
    link.symlink_to(here / "secret/key.jinja")
    with pytest.raises(CheckpointError, match=r"key.jinja: is a link"):
        import_hf(here / "hf", here / "ck2")


@pytest.mark.parametrize("place", ["ck/assets", "tokenizer"])
def test_links_out_of_what_is_exported_are_refused(here: Path, place: str) -> None:
    shutil.copytree(here / "hf", here / "tokenizer")
    file = here / place / "tokenizer.json"
    file.rename(here / "elsewhere.json")
    file.symlink_to(here / "elsewhere.json")
    given = here / "tokenizer" if place == "tokenizer" else None
    with pytest.raises(CheckpointError, match=r"tokenizer.json: is a link"):
        export_hf(here / "ck", here / "out2", tokenizer_dir=given)
    assert not (here / "out2").exists()


def test_the_cache_of_the_hub_is_all_links_and_imports(here: Path) -> None:
    cache = here / "models--org--name"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots/0123"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((here / "hf").iterdir())):
        shutil.copy(file, cache / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    manifest = import_hf(snapshot, here / "ck2")
    assert manifest.extra["source"] == "org/name"
    export_hf(here / "ck2", here / "out2")
    assert not any(path.is_symlink() for path in (here / "out2").rglob("*"))
    assert "base_model: org/name" in (here / "out2/README.md").read_text()
