"""The recipe's corpus on machines that lack something: what is missing is said, once with a
remedy and again while it is missing, and nothing stays missing that has come since.
"""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from alia_ctx.errors import DataError
from scripts.smollm2 import corpus, manuals
from scripts.smollm2.corpus import require_same_manuals, write_corpus
from scripts.smollm2.documents import read_documents, write_documents
from scripts.smollm2.installed import distributions, groups
from scripts.smollm2.manuals import MANUALS, write_manuals

PAGE = "<html><body><p>" + "palabras de un manual, una tras otra. " * 100 + "</body>"


def _lines(file: Path) -> list[str]:
    return [json.loads(line)["id"] for line in file.read_text().splitlines()]


def _folder(at: Path, **texts: str) -> Path:
    """A folder of manuals, with the text of either file in place of a good one."""
    at.mkdir()
    for name in manuals.FILES:
        stem = name.partition(".")[0]
        good = json.dumps({"id": stem, "text": "text"}) + "\n"
        (at / name).write_text(texts.get(stem, good))
    return at


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine whose apt-get gives the packages that are named, and whose dpkg-deb unpacks
    but those that are broken: programs of that name, first on the path.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(manuals, "_other_kinds", lambda at: iter([("page", "text")]))

    def have(*within_reach: str, broken: str = "none") -> None:
        there = f'case " {" ".join(within_reach)} " in *" $2 "*) '
        apt = there + ': > "${2}_1_all.deb";; *) exit 100;; esac'
        unpack = (
            f'case "$2" in {broken}_*) mkdir "$3"; exit 2;; esac; mkdir -p "$3/doc"'
        )
        unpack += f"; echo '{PAGE}' > \"$3/doc/index.html\""
        for name, text in (("apt-get", apt), ("dpkg-deb", unpack), ("man", "exit 0")):
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)

    return have


def test_without_any_manual_a_start_ends_and_a_later_one_fetches(
    tmp_path: Path, debian: Callable[..., None]
) -> None:
    debian()
    for _ in range(2):  # again the same, with what the first one left
        with pytest.raises(DataError, match=r"within reach: see .*--manuals"):
            write_corpus(tmp_path / "text", characters=2_000_000)
    debian(*MANUALS)
    write_corpus(tmp_path / "text", characters=2_000_000)
    found = {name.split("/")[0] for name in _lines(tmp_path / "text/manuals.jsonl")}
    assert found == set(MANUALS)


def test_one_that_was_out_of_reach_is_fetched_by_the_next_start(
    tmp_path: Path, debian: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    debian(MANUALS[0], MANUALS[1], broken=MANUALS[1])
    assert write_manuals(tmp_path) == [MANUALS[0]]
    said = capfd.readouterr().err
    assert f"{MANUALS[1]} cannot be unpacked" in said
    assert f"{MANUALS[2]} is out of reach" in said
    debian(MANUALS[1])
    assert write_manuals(tmp_path) == [MANUALS[0], MANUALS[1]]
    names = [name.split("/")[0] for name in _lines(tmp_path / "manuals.jsonl")]
    assert names == [MANUALS[0], MANUALS[1]]


def test_a_corpus_says_at_every_start_what_it_is_without(
    tmp_path: Path, debian: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    debian(*MANUALS[1:])
    write_corpus(tmp_path / "text", characters=2_000_000)
    capfd.readouterr()
    write_corpus(tmp_path / "text", characters=2_000_000)
    said = " ".join(capfd.readouterr().err.split())
    assert f"written without {MANUALS[0]}, out of reach then" in said


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "has none"),
        ("\n\n", "has none"),
        ("\xff\xfe", "line 1: is no document"),
        ('{"id": "a", "text": "b"}\n{"text": "b"}\n', "line 2: .*KeyError: 'id'"),
        ('{"id": "a", "text": null}\n', "line 1: .*not both text"),
        ('["a"]\n', "line 1: is no document"),
        ('{"id": "a"', "line 1: is no document"),
        ("[" * 100_000, "line 1: .*nested"),
    ],
)
@pytest.mark.parametrize("file", ["manuals", "held-out-short"])
def test_manuals_of_another_form_are_refused_in_a_line(
    text: str, told: str, file: str, tmp_path: Path
) -> None:
    folder = _folder(tmp_path / "manuals")
    (folder / f"{file}.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=rf"{file}\.jsonl.*{told}.*--manuals"):
        write_corpus(tmp_path / "text", characters=1000, manuals=folder)


def test_manuals_that_are_not_there_are_refused_before_anything(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no manuals\.jsonl; name a folder"):
        require_same_manuals(tmp_path / "text", tmp_path / "nowhere")


def test_other_manuals_than_the_text_has_are_refused(tmp_path: Path) -> None:
    folder, text = _folder(tmp_path / "manuals"), tmp_path / "text"
    write_corpus(text, characters=2_000_000, manuals=folder)
    require_same_manuals(text, folder)
    require_same_manuals(text, None)
    other = _folder(tmp_path / "others")
    for asked in (other, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"is written already .*leave it out, or"):
            write_corpus(text, characters=2_000_000, manuals=asked)
    (text / "made_from.json").unlink()
    with pytest.raises(DataError, match="not stated"):
        require_same_manuals(text, folder)
    (text / "made_from.json").write_text("[]")
    with pytest.raises(DataError, match=r"made_from\.json: is damaged .*remove"):
        require_same_manuals(text, None)


def test_no_source_is_written_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with no packages at all."""
    paths = {**sysconfig.get_paths(), "purelib": str(tmp_path), "stdlib": str(tmp_path)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    with pytest.raises(DataError, match=r"short\.jsonl .*too few Python packages"):
        write_corpus(
            tmp_path / "text", characters=1000, manuals=_folder(tmp_path / "manuals")
        )


def test_text_that_no_file_can_hold_is_written(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    write_documents(file, iter([("bad\udcff.py", "half \ud83d of one")]), "none")
    assert list(read_documents(file, "")) == [("bad?.py", "half ? of one")]


# --- what is held out ----------------------------------------------------------------

PROSE = "A sentence that describes what it is. " * 60
CODE = "value = 'a line of code that says nothing in particular'\n" * 500


def _install(root: Path, name: str, *imports: str) -> None:
    info = root / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Name: {name}\n\n{PROSE}")
    (info / "RECORD").write_text("".join(f"{i}/{name}.py,,\n" for i in imports))
    for i in imports:
        (root / i).mkdir(exist_ok=True)
        (root / i / f"{name}.py").write_text(CODE)
        (root / i / "guide.md").write_text(PROSE)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "packages"
    _install(root, "pillow", "PIL")
    _install(root, "torch", "torch", "functorch")
    _install(root, "protobuf", "google")
    _install(root, "google_auth", "google")
    for number in range(30):
        _install(root, f"other{number}", f"module{number}")
    paths = {**sysconfig.get_paths(), "purelib": str(root), "stdlib": str(root)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    return root


def test_a_distribution_is_held_out_with_all_that_it_brings(installed: Path) -> None:
    def names(held_out: bool) -> set[str]:
        found = corpus._repositories(held_out, 10**9)
        return {name.split("/")[0] for name, _ in found}

    held_out, trained = names(True), names(False)
    assert held_out and trained and not held_out & trained
    described = {name.split("/")[0] for name, _ in corpus._short_documents(10**9)}
    brings = {d.name: d.imports for d in distributions(installed)}
    assert {len(brings[name] & held_out) for name in described} == {0}
    assert {len(brings[name] & trained) for name in brings.keys() - described} == {0}


def test_distributions_that_share_a_name_are_one_group(installed: Path) -> None:
    found = groups(distributions(installed))
    assert found["torch"] == found["functorch"] == found["dist:torch"]
    assert found["google"] == found["dist:protobuf"] == found["dist:google-auth"]
    assert found["PIL"] == found["dist:pillow"] != found["torch"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda at: (at / "METADATA").unlink(),
        lambda at: [(at / n).unlink() for n in ("METADATA", "RECORD")],
        lambda at: (at / "RECORD").write_bytes(b"\xff\0,\n" * 3),
        lambda at: at.with_name("broken-1.0.dist-info").mkdir(),
        lambda at: at.with_name("nameless.dist-info").mkdir(),
        lambda at: [(at / "METADATA").unlink(), (at / "METADATA").mkdir()],
    ],
)
def test_broken_metadata_ends_nothing(
    damage: Callable[[Path], object], installed: Path
) -> None:
    damage(installed / "pillow-1.0.dist-info")
    documents = list(corpus._short_documents(10**9))
    assert any(name.startswith("other") for name, _ in documents)
    assert list(corpus._repositories(True, 10**9))
