"""Special tokens spelled in text: pieces, ids or a refusal, and BOS and EOS only once."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from alia_ctx.data.documents import SourceSpec
from alia_ctx.data.tokens import TokenStore, tokenize_source
from alia_ctx.data.tokens.encoder import EncodedText, TextEncoder
from tests import tokenizers as families
from tests.text_data import varied_texts, write_jsonl

TEXTS = [
    "see </s> and <|im_end|> here",
    "<s>hello</s>",
    "<s> hello </s>",
    "</s>",
    "<pad><pad><s></s>",
    "<unk> or not <UNK>",
    "a<|im_start|>b<|im_end|>",
    "nothing special here, not even </ s> or <s",
]
CONTROL = [
    1,
    2,
    3,
    4,
    5,
]  # every special token but <unk>, which unknown letters are too


def encode(
    directory: Path,
    special_tokens: str,
    texts: list[str] = TEXTS,
    *,
    delimit: bool = False,
) -> list[EncodedText]:
    encoder = TextEncoder(
        directory,
        append_eos=delimit,
        prepend_bos=delimit,
        special_tokens=special_tokens,  # type: ignore[arg-type]
    )
    return pickle.loads(pickle.dumps(encoder)).encode(texts)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_split_never_gives_a_control_id(tmp_path: Path, family: str) -> None:
    directory = families.save(families.FAMILIES[family](), tmp_path / "t")
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    theirs = tokenizer(TEXTS, add_special_tokens=False, split_special_tokens=True)
    for text, ours, ids in zip(
        TEXTS, encode(directory, "split"), theirs["input_ids"], strict=True
    ):
        assert not {*ours.tokens.tolist()} & {*CONTROL}, text
        assert not ours.refused and ours.tokens.size
        if not {*ids} & {*CONTROL}:  # where transformers splits, so do we
            assert ours.tokens.tolist() == ids or "<unk>" in text, text


@pytest.mark.parametrize("family", ["unigram", "merging"])
def test_split_spells_the_text_out(tmp_path: Path, family: str) -> None:
    """Where the model itself has `</s>` as a piece or a merge, its letters come."""
    directory = families.save(families.FAMILIES[family](), tmp_path / "t")
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    assert (
        tokenizer("</s>", add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ][-1]
        == 2
    ), "the library alone would do"
    (encoded,) = encode(directory, "split", ["see </s> here"])
    pieces = tokenizer.convert_ids_to_tokens(encoded.tokens.tolist())
    assert "".join(pieces).replace("▁", " ").strip() == "see </s> here"


@pytest.mark.parametrize("family", families.FAMILIES)
def test_keep_is_autotokenizers_own_reading(tmp_path: Path, family: str) -> None:
    directory = families.save(families.FAMILIES[family](), tmp_path / "t")
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    ids = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    assert [text.tokens.tolist() for text in encode(directory, "keep")] == ids


@pytest.mark.parametrize("splits", [False, True])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_keep_counts_and_delimits_what_became_an_id(
    tmp_path: Path, family: str, splits: bool
) -> None:
    """However the text spells it: lower-casing models make `</s>` of `</S>` too."""
    directory = families.save(
        families.FAMILIES[family](), tmp_path / "t", split_special_tokens=splits
    )
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    texts = [
        *TEXTS,
        *map(str.upper, TEXTS),
        "<S>",
        "</S>",
        "<S>see</S>",
        "see <|IM_END|>",
    ]
    texts += ["</S>the rain<S>", "é</sé<s> <|Im_End|>", "<s>the rain", "the rain</s>"]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    names = {number: families.SPECIAL[number] for number in CONTROL}
    for text, theirs, ours in zip(
        texts, ids, encode(directory, "keep", texts, delimit=True), strict=True
    ):
        before, after = [1] * (theirs[0] != 1), [2] * (theirs[-1] != 2)
        assert ours.tokens.tolist() == [*before, *theirs, *after], text
        counts = Counter(names[number] for number in theirs if number in names)
        told = {k: v for k, v in ours.spelled.items() if k != "<unk>"}
        if splits:  # then what is only text is counted too
            assert counts <= Counter(told), text
        else:
            assert counts == told, text


def test_counts_by_token(tmp_path: Path) -> None:
    directory = families.save(families.byte_level(), tmp_path / "t")
    for mode in ("split", "keep", "refuse"):
        counts = [dict(text.spelled) for text in encode(directory, mode)]
        assert counts == [
            {"</s>": 1, "<|im_end|>": 1},
            {"<s>": 1, "</s>": 1},
            {"<s>": 1, "</s>": 1},
            {"</s>": 1},
            {"<pad>": 2, "<s>": 1, "</s>": 1},
            {"<unk>": 1},
            {"<|im_start|>": 1, "<|im_end|>": 1},
            {},
        ]
    refused = [text.refused for text in encode(directory, "refuse")]
    assert refused == [bool(count) for count in counts]


@pytest.mark.parametrize("family", ["byte level", "byte level with template"])
def test_bos_and_eos_are_never_doubled(tmp_path: Path, family: str) -> None:
    directory = families.save(
        families.FAMILIES[family](), tmp_path / "t", add_bos_token=True
    )
    for mode in ("split", "keep"):
        for text, encoded in zip(
            TEXTS, encode(directory, mode, delimit=True), strict=True
        ):
            ids = encoded.tokens.tolist()
            assert ids[0] == 1 and ids[-1] == 2
            assert (1, 1) not in pairwise(ids), text
            assert (2, 2) not in pairwise(ids), text
            if mode == "split":
                assert ids.count(1) == ids.count(2) == 1, text


def test_all_kinds_of_special_tokens_are_found(tmp_path: Path) -> None:
    added = (
        AddedToken("<mask>", special=True, lstrip=True),
        AddedToken("<tool", special=True),
        AddedToken("<tool>", special=True, single_word=True),
        AddedToken("Caps", special=True, normalized=True),
        AddedToken("plain", special=False),
    )
    directory = families.save(families.byte_level(), tmp_path / "t", added=added)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["additional_special_tokens"] = ["[only here]"]
    config["sep_token"] = "[sep]"
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    text = "a <mask> <tool <tool> Caps [only here] [sep] plain"
    (split,) = encode(directory, "split", [text])
    special = ["<mask>", "<tool", "<tool>", "Caps", "[only here]", "[sep]"]
    assert split.spelled == dict.fromkeys(special, 1)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    ids = tokenizer.convert_tokens_to_ids(special)
    assert not {*split.tokens.tolist()} & {*ids}
    assert tokenizer.convert_tokens_to_ids("plain") in split.tokens
    (kept,) = encode(directory, "keep", [text])
    assert {*ids} <= {*kept.tokens.tolist()}


def test_tokens_that_only_the_normalised_text_spells(tmp_path: Path) -> None:
    added = (AddedToken("[END]", special=True, normalized=True),)
    directory = families.save(families.word_piece(), tmp_path / "t", added=added)
    split, refused = (
        encode(directory, mode, ["the [end] of rain"])[0]
        for mode in ("split", "refuse")
    )
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    number = tokenizer.convert_tokens_to_ids("[END]")
    assert number in encode(directory, "keep", ["the [end] of rain"])[0].tokens
    assert split.spelled == {"[END]": 1} and number not in split.tokens
    assert refused.refused


@pytest.mark.parametrize("mode", ["split", "keep", "refuse"])
def test_a_store_counts_what_was_spelled(tmp_path: Path, mode: str) -> None:
    directory = families.save(families.byte_level(), tmp_path / "t")
    texts = [*varied_texts(20), *TEXTS]
    spec = SourceSpec(inputs=[str(write_jsonl(tmp_path / "a.jsonl", texts))])
    report = tokenize_source(
        spec, "a", directory, tmp_path / "out", special_tokens=mode, shard_bytes=900
    )
    assert report.counts.special_tokens == {
        "</s>": 5,
        "<s>": 3,
        "<|im_end|>": 2,
        "<pad>": 2,
        "<unk>": 1,
        "<|im_start|>": 1,
    }
    remarks = "\n".join(report.remarks())
    assert "'</s>' 5, '<s>' 3" in remarks
    assert report.counts.special_token == (7 if mode == "refuse" else 0)
    assert TokenStore(report.prefix).n_documents == (21 if mode == "refuse" else 28)
    if mode == "refuse":
        assert "7 special_token" in remarks and "(</s>, <|im_end|>)" in remarks


def test_the_setting_is_part_of_the_stores_identity(tmp_path: Path) -> None:
    directory = families.save(families.byte_level(), tmp_path / "t")
    spec = SourceSpec(inputs=[str(write_jsonl(tmp_path / "a.jsonl", TEXTS))])
    tokenize_source(spec, "a", directory, tmp_path / "out")
    with pytest.raises(Exception, match="special_tokens: split there, keep asked"):
        tokenize_source(spec, "a", directory, tmp_path / "out", special_tokens="keep")


TOOL = {"content": "<|tool|>", "special": False, "__type": "AddedToken"}
CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"


@pytest.mark.parametrize(
    ("added_in", "file", "key", "listed"),
    [
        ("tokenizer.json", CONFIG, "additional_special_tokens", ["<|tool|>"]),
        ("tokenizer.json", CONFIG, "additional_special_tokens", [TOOL]),
        ("tokenizer.json", CONFIG, "extra_special_tokens", ["<|tool|>"]),
        ("tokenizer.json", CONFIG, "extra_special_tokens", {"tool": "<|tool|>"}),
        ("tokenizer.json", MAP, "additional_special_tokens", ["<|tool|>"]),
        ("added_tokens.json", CONFIG, "extra_special_tokens", [TOOL]),
        ("added_tokens.json", MAP, "additional_special_tokens", ["<|tool|>"]),
    ],
)
def test_what_the_directory_lists_is_special_though_it_is_not_marked(
    tmp_path: Path, added_in: str, file: str, key: str, listed: list[object]
) -> None:
    backend = families.byte_level()
    number = backend.get_vocab_size()
    in_json = added_in == "tokenizer.json"
    added = (
        (AddedToken("<|tool|>", special=False, normalized=False),) if in_json else ()
    )
    directory = families.save(backend, tmp_path / "t", added=added)
    if not in_json:
        (directory / added_in).write_text(json.dumps({"<|tool|>": number}))
    path = directory / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, key: listed}))
    theirs = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    texts = ["see <|tool|> here", "see nothing here"]
    assert number in theirs.all_special_ids
    for mode in ("split", "keep", "refuse"):
        spelling, plain = encode(directory, mode, texts)
        assert spelling.spelled == {"<|tool|>": 1}, mode
        assert (number in spelling.tokens) is (mode == "keep")
        assert spelling.refused is (mode == "refuse")
        assert not plain.spelled and not plain.refused and plain.tokens.size
        if mode == "split":
            assert theirs.decode(spelling.tokens) == texts[0]


def test_symbols_of_a_sentencepiece_model_stay_text_once_transformers_saved_it(
    tmp_path: Path,
) -> None:
    """It saves them as `extra_special_tokens`; line breaks are in every document."""
    added = (AddedToken("\n\n", special=False, normalized=False),)
    directory = families.save(
        families.byte_level(),
        tmp_path / "t",
        added=added,
        extra_special_tokens=["\n\n"],
    )
    theirs = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    texts = ["one\n\ntwo"]
    for mode in ("split", "refuse"):
        [encoded] = encode(directory, mode, texts)
        assert encoded.tokens.tolist() == theirs(texts)["input_ids"][0]
        assert not encoded.refused and not encoded.spelled


def test_a_name_of_the_models_own_is_special(tmp_path: Path) -> None:
    added = (AddedToken("<image>", special=False, normalized=False),)
    directory = families.save(
        families.byte_level(), tmp_path / "t", added=added, image_token="<image>"
    )
    [encoded] = encode(directory, "refuse", ["an <image> of it"])
    assert encoded.refused and encoded.spelled == {"<image>": 1}


def test_a_token_that_only_the_configuration_calls_special(tmp_path: Path) -> None:
    tokenizer = families.byte_level()
    tokenizer.add_tokens([AddedToken("<end>", special=False)])
    directory = families.save(tokenizer, tmp_path / "t", eos_token="<end>")
    text = "rain <end> rain"
    (split,), (kept,) = (encode(directory, mode, [text]) for mode in ("split", "keep"))
    number = tokenizer.token_to_id("<end>")
    assert split.spelled == kept.spelled == {"<end>": 1}
    assert number in kept.tokens and number not in split.tokens


def with_unknown(tmp_path: Path, family: str, unknown: str) -> Path:
    """A tokenizer whose unknown token is also one that delimits documents."""
    tokenizer = families.FAMILIES[family]()
    document = json.loads(tokenizer.to_str())
    if document["model"]["type"] == "Unigram":
        document["model"]["unk_id"] = families.SPECIAL.index(unknown)
    else:
        document["model"]["unk_token"] = unknown
    directory = families.save(tokenizer, tmp_path / f"{family} {unknown}")
    (directory / "tokenizer.json").write_text(json.dumps(document))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["unk_token"] = unknown
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("unknown", ["<s>", "</s>"])
@pytest.mark.parametrize(
    "family", ["word level", "word piece", "unigram", "byte level"]
)
def test_an_unknown_token_that_delimits_is_no_text(
    tmp_path: Path, family: str, unknown: str
) -> None:
    directory = with_unknown(tmp_path, family, unknown)
    number = families.SPECIAL.index(unknown)
    texts = ["日本", f"the {unknown} rain", f"{unknown}", "日 the rain 本", "the rain"]
    for mode in ("split", "refuse"):
        for text, encoded in zip(
            texts, encode(directory, mode, texts, delimit=True), strict=True
        ):
            ids = encoded.tokens.tolist()
            assert encoded.refused or ids.count(number) == 1, (mode, text)
            assert encoded.refused or (ids[0], ids[-1]) == (1, 2), (mode, text)
    assert not encode(directory, "split", ["the rain"])[0].refused
    for encoded in encode(directory, "keep", ["日 the rain 本"], delimit=True):
        assert (encoded.tokens[0], encoded.tokens[-1]) == (1, 2)
        if family == "word level":  # what is unknown is no delimiter that stands there
            assert encoded.tokens.size == 6


def test_keep_heeds_what_the_directory_says_of_splitting(tmp_path: Path) -> None:
    directory = families.save(
        families.byte_level(), tmp_path / "t", split_special_tokens=True
    )
    auto = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    ids = auto(TEXTS, add_special_tokens=False)["input_ids"]
    assert not {*CONTROL} & {number for text in ids for number in text}
    assert [text.tokens.tolist() for text in encode(directory, "keep")] == ids
    assert sum(encode(directory, "keep")[0].spelled.values()) == 2


@pytest.mark.parametrize("strip", [{}, {"lstrip": True}, {"rstrip": True}])
@pytest.mark.parametrize("normalized", [False, True])
def test_tokens_that_must_stand_alone(
    tmp_path: Path, normalized: bool, strip: dict[str, bool]
) -> None:
    token = AddedToken(
        "tool", special=True, single_word=True, normalized=normalized, **strip
    )
    directory = families.save(families.byte_level(), tmp_path / "t", added=(token,))
    texts = ["a tool here", "toolbox", "my_tool", "(tool)", "tool", "a  tool\n b"]
    auto = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    number = auto.convert_tokens_to_ids("tool")
    theirs = [number in ids for ids in auto(texts)["input_ids"]]
    assert theirs == [True, False, False, True, True, True]
    refused = [text.refused for text in encode(directory, "refuse", texts)]
    assert refused == theirs
    for text in encode(directory, "split", texts):
        assert number not in text.tokens and not text.refused
