"""The demo corpus and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.demo import corpus, installed_text
from alia_ctx.demo.corpus import CorpusReport, build_demo_corpus
from alia_ctx.demo.installed_text import CorpusText
from alia_ctx.demo.tokenizer import SPECIAL_TOKENS, train_tokenizer
from alia_ctx.errors import DataError

pytestmark = pytest.mark.long

MEGABYTES = 3.0


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> CorpusReport:
    return build_demo_corpus(tmp_path_factory.mktemp("corpus"), megabytes=MEGABYTES)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def everything(report: CorpusReport) -> list[dict[str, Any]]:
    return [
        record
        for file in (*report.files.values(), report.heldout)
        for record in read(file)
    ]


def test_the_size_is_the_one_asked_for(built: CorpusReport) -> None:
    total = sum(len(record["text"].encode()) for record in everything(built))
    assert total == built.utf8_bytes
    assert total == pytest.approx(MEGABYTES * 1e6, rel=0.06)


def test_every_document_names_its_origin_once(built: CorpusReport) -> None:
    records = everything(built)
    assert len({record["id"] for record in records}) == len(records)
    for record in records:
        assert record["package"] and record["version"] and record["licence"]
    summary = json.loads((built.out_dir / "sources.json").read_text())
    assert set(summary["packages"]) == {record["package"] for record in records}
    assert sum(entry["documents"] for entry in summary["packages"].values()) == len(
        records
    )
    assert summary["documents"] == {
        name: built.documents[name] for name in summary["documents"]
    }


def test_documents_are_long_and_none_dominates(built: CorpusReport) -> None:
    lengths = [len(record["text"]) for record in everything(built)]
    assert max(lengths) <= installed_text.LONGEST + 1
    assert sum(length for length in lengths if length > 20_000) > 0.85 * sum(lengths)
    assert all(
        len(record["text"]) >= installed_text.LONG for record in read(built.heldout)
    )


def test_the_languages_of_its_first_users_are_there(built: CorpusReport) -> None:
    records = [
        record for record in everything(built) if record["kind"] == "translations"
    ]
    languages = {record["id"].rsplit("/", 1)[1] for record in records}
    assert {"ca", "es", "eu", "gl", "pt", "fr", "it"} <= languages
    text = {
        language: "".join(r["text"] for r in records if r["id"].endswith(language))
        for language in languages
    }
    assert (
        "contrasenya" in text["ca"]
        and "contraseña" in text["es"]
        and "pasahitza" in text["eu"].lower()
    )
    assert "contrasinal" in text["gl"]


def test_held_out_documents_are_in_no_training_file(built: CorpusReport) -> None:
    held = read(built.heldout)
    assert {record["kind"] for record in held} == set(corpus.KINDS)
    trained = {
        line
        for file in built.files.values()
        for r in read(file)
        for line in r["text"].splitlines()
    }
    for record in held:
        lines = [line for line in record["text"].splitlines() if len(line) >= 20]
        shared = sum(len(line) for line in lines if line in trained)
        assert shared <= 0.5 * sum(map(len, lines)), record["id"]


def test_a_second_build_is_the_same_to_the_byte(
    built: CorpusReport, tmp_path: Path
) -> None:
    again = build_demo_corpus(tmp_path, megabytes=MEGABYTES)
    for kind, file in built.files.items():
        assert file.read_bytes() == again.files[kind].read_bytes()
    assert built.heldout.read_bytes() == again.heldout.read_bytes()


def test_it_overwrites_only_when_told(
    built: CorpusReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = built.files["docs"].read_bytes()
    with pytest.raises(DataError, match=r"already holds docs.jsonl.*--overwrite"):
        build_demo_corpus(built.out_dir, megabytes=MEGABYTES)
    assert built.files["docs"].read_bytes() == before


# --- rules, on made-up candidates -----------------------------------------------------


def made(kind: str, number: int, text: str | None = None) -> CorpusText:
    lines = (
        f"document {number} of kind {kind}, its line number {line}"
        for line in range(700)
    )
    return CorpusText(
        f"{kind}-{number}", kind, text or "\n".join(lines), "package", "1", "MIT"
    )


@pytest.fixture
def candidates(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[CorpusText]]:
    texts: dict[str, list[CorpusText]] = {
        kind: [made(kind, n) for n in range(60)] for kind in corpus.KINDS
    }

    def of(kind: str) -> Iterator[CorpusText]:
        yield from texts[kind]

    monkeypatch.setattr(corpus, "translations", lambda: of("translations"))
    monkeypatch.setattr(corpus, "documentation", lambda used: of("docs"))
    monkeypatch.setattr(corpus, "sources", lambda used: of("sources"))
    return texts


def test_copies_and_near_copies_are_dropped(
    candidates: dict[str, list[CorpusText]], tmp_path: Path
) -> None:
    original = candidates["docs"][0].text
    candidates["docs"].insert(1, made("docs", 1000, original))
    candidates["sources"].insert(
        0, made("sources", 1001, original[:20_000] + "\n" + made("x", 1).text[:10_000])
    )
    report = build_demo_corpus(tmp_path, megabytes=2)
    ids = {record["id"] for record in everything(report)}
    assert report.dropped == 2
    assert not {"docs-1000", "sources-1001"} & ids


def test_progress_counts_up_within_each_kind(
    candidates: dict[str, list[CorpusText]], tmp_path: Path
) -> None:
    calls: list[tuple[str, int, int]] = []
    build_demo_corpus(tmp_path, megabytes=1, progress=lambda *call: calls.append(call))
    assert list(dict.fromkeys(kind for kind, _, _ in calls)) == [
        "translations",
        "docs",
        "sources",
    ]
    for kind in corpus.KINDS:
        done = [d for k, d, _ in calls if k == kind]
        assert done == sorted(set(done))


def test_more_than_there_is_is_an_error_with_the_amount(
    candidates: dict[str, list[CorpusText]], tmp_path: Path
) -> None:
    with pytest.raises(
        DataError, match=r"carry .* MB of suitable text, 50 MB were asked for"
    ):
        build_demo_corpus(tmp_path, megabytes=50)
    assert not list(tmp_path.iterdir())


def test_no_translations_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(installed_text, "TRANSLATED_PACKAGES", ("no_such_package",))
    with pytest.raises(DataError, match=r"alia-ctx\[demo\]"):
        build_demo_corpus(tmp_path, megabytes=1)


def test_a_size_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="positive"):
        build_demo_corpus(tmp_path, megabytes=0)


def test_licence_headers_go_and_other_comments_stay() -> None:
    header = "# Copyright 2020 The Authors.\n# Licensed under the Apache License\n\n"
    assert installed_text._without_header(header + "import os\n") == "import os\n"
    assert installed_text._without_header(
        "# about this module\nimport os\n"
    ).startswith("# about")


def test_documentation_keeps_source_order_and_names() -> None:
    source = (
        '"""' + "Module text. " * 10 + '\nmore"""\n'
        "class A:\n"
        '    """' + "About the class. " * 10 + '\nmore"""\n'
        "    def f(self):\n"
        '        """' + "About the method. " * 10 + '\nmore"""\n'
        'add_doc(f, """' + "Attached text. " * 10 + '\nmore""")\n'
    )
    text = installed_text._documentation(source)
    places = [
        text.index(part)
        for part in (
            "Module text",
            "A\n\nAbout the class",
            "A.f\n\nAbout the method",
            "Attached",
        )
    ]
    assert places == sorted(places)
    assert installed_text._documentation("def broken(:") == ""


# --- tokenizer ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer_dir(
    built: CorpusReport, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return train_tokenizer(
        list(built.files.values()), tmp_path_factory.mktemp("tokenizer"), 2048
    )


def test_transformers_loads_it_with_alias_special_tokens(tokenizer_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    assert len(tokenizer) == 2048
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4, 5]
    ids = (
        tokenizer.unk_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    assert ids == (0, 1, 2, 3)


@pytest.mark.parametrize(
    "text",
    [
        "Què és això? L'àvia i l'oncle.",
        "¿Qué? Ñandú",
        "日本 🦊\t\n  def f(x):\n\n",
        " a  b ",
    ],
)
def test_any_text_survives_the_round_trip(tokenizer_dir: Path, text: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert 0 not in ids


def test_training_twice_gives_the_same_bytes(
    built: CorpusReport, tokenizer_dir: Path, tmp_path: Path
) -> None:
    again = train_tokenizer(list(built.files.values()), tmp_path, 2048)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (again / name).read_bytes() == (tokenizer_dir / name).read_bytes()


def test_the_tokenizers_mistakes_are_named(tokenizer_dir: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.jsonl"
    good.write_text('{"text": "only a few words"}\n')
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"body": "no text"}\n')
    with pytest.raises(DataError, match="256 bytes"):
        train_tokenizer([good], tmp_path / "t", 200)
    with pytest.raises(DataError, match="gives only"):
        train_tokenizer([good], tmp_path / "t", 4096)
    with pytest.raises(DataError, match=r"bad\.jsonl:2"):
        train_tokenizer([bad], tmp_path / "t", 300)
    with pytest.raises(DataError, match="cannot read"):
        train_tokenizer([tmp_path / "none.jsonl"], tmp_path / "t", 300)
    with pytest.raises(DataError, match="already holds a tokenizer"):
        train_tokenizer([good], tokenizer_dir, 300)
    assert not (tmp_path / "t").exists()
