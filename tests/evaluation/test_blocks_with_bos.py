"""Blocks of documents that begin with BOS, against transformers on blocks cut by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alia_ctx.config.run import EngineConfig
from alia_ctx.evaluation.tables import tables
from alia_ctx.evaluation.verdicts import Chain, Measured, claims, verdicts
from alia_ctx.evaluation.verdicts.measured import far_gains
from alia_ctx.workflow.measuring import Measurement
from alia_ctx.workflow.transformers_scorer import TransformersScorer

NATIVE, LENGTH, BOS = 16, 50, 1


class Text:
    """Documents of random tokens, each after `first`."""

    where, fingerprint, sources = "text", "0", ()

    def __init__(self, *first: int) -> None:
        random = np.random.default_rng(5)
        self.texts = [np.r_[token, random.integers(5, 60, 59)] for token in first]
        self.lengths = np.array([len(text) for text in self.texts])

    def sources_of(self, documents: list[int]) -> list[int]:
        return [0] * len(documents)

    def document(self, number: int, start: int, stop: int) -> np.ndarray:
        return self.texts[number][start:stop]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "initializer_range": 0.3}
    place = tmp_path_factory.mktemp("bos") / "model"
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes, **heads)).save_pretrained(
        place
    )
    return place


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@torch.no_grad()
def losses(model: Any, tokens: np.ndarray) -> np.ndarray:
    """-log p of tokens[1:], by transformers."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    logits = model(ids[None]).logits[0, :-1].double()
    return -logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0].numpy()


def measurement(text: Text) -> Measurement:
    return Measurement(
        text=text,  # type: ignore[arg-type]
        length=LENGTH,
        documents=9,
        edges=(0, NATIVE, LENGTH),
        native=NATIVE,
        vocab_size=64,
        prefix=(BOS,),
    )


def measured(folder: Path, text: Text) -> dict[str, Any]:
    on = measurement(text)
    scorer = TransformersScorer(folder, EngineConfig(device="cpu", precision="fp32"))
    base = on.on_text(scorer, NATIVE, ["positions"])["positions"]
    whole = on.on_text(scorer, LENGTH, ["positions", "blocks"])
    return {"settings": on.settings("blocks"), "base": base, **whole}


@pytest.mark.parametrize("first", [(BOS, BOS, BOS), (BOS, 7, 9)])
def test_of_a_model_that_is_shown_less_than_the_document_both_sides_are_equal(
    folder: Path, first: tuple[int, ...]
) -> None:
    """A gain counts the tokens that both sides predict, and none is of far context past
    what the model was shown.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text, shown = Text(*first), 25
    overlap = 1 if set(first) == {BOS} else 0
    on = measurement(text)
    scorer = TransformersScorer(folder, EngineConfig(device="cpu", precision="fp32"))
    content = on.on_text(scorer, shown, ["blocks"])["blocks"]

    def in_blocks(tokens: np.ndarray, size: int) -> np.ndarray:
        made = np.full(LENGTH, np.nan)
        for start in range(0, LENGTH - overlap, size - overlap):
            block = tokens[start : start + size].copy()
            if overlap:
                block[0] = BOS
            if len(block) > 1:
                found = losses(model, block)
                skip = int(bool(start and overlap))
                made[start + skip : start + len(found)] = found[skip:]
        return made

    assert content["shown"] == shown
    places = [(band["first"], band["last"]) for band in content["bands"]]
    assert places == [(0, NATIVE), (NATIVE, shown), (shown, LENGTH)]
    for band in content["bands"]:
        gains = []
        for tokens in (document[:LENGTH] for document in text.texts):
            gain = in_blocks(tokens, NATIVE) - in_blocks(tokens, shown)
            gains.append(np.nanmean(gain[band["first"] : band["last"]]))
        assert band["gain"] == pytest.approx(np.mean(gains), abs=1e-5)
        error = np.std(gains, ddof=1) / np.sqrt(len(gains))
        assert band["standard_error"] == pytest.approx(error, abs=1e-5)
    line = Measured("m", "m", shown, {"blocks": content})
    assert [(g.first, g.last) for g in far_gains(line)] == [(NATIVE, shown)]
    said = " ".join(verdicts([line], NATIVE))
    assert f"shown {shown} tokens" in said and f"{shown}-{LENGTH - 1}" not in said
    (table,) = tables([line])
    past = next(iter(list(table.columns)[-1].cells))
    assert past.startswith("(") and past.endswith(")")
    assert len(claims([line], Chain("base", NATIVE, {"m": LENGTH}))) == 1


def totals(content: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(sums, counts) of the two bands, over documents."""
    names = ("sums", "counts")
    made = [np.sum([d[n] for d in content["documents"]], axis=0) for n in names]
    return made[0], made[1]


def test_each_block_begins_as_a_document_does(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = Text(BOS, BOS, BOS)
    found = measured(folder, text)
    assert found["settings"]["blocks_begin_with"] == BOS
    near, far, gains = [], [], []
    for tokens in (document[:LENGTH] for document in text.texts):
        words, blocks = tokens[1:], []
        for start in range(0, len(words), NATIVE - 1):  # BOS and as many words as fit
            block = np.r_[BOS, words[start : start + NATIVE - 1]]
            assert len(block) <= NATIVE
            blocks.append(losses(model, block))
            if start:  # a word after BOS alone: nobody saw what is before it
                blocks[-1][0] = np.nan
        by_block, at_once = np.concatenate(blocks), losses(model, tokens)
        assert len(by_block) == len(at_once) == LENGTH - 1  # the same tokens
        near.append(by_block[: NATIVE - 1])
        far.append(by_block[NATIVE:])
        gains.append(np.nanmean((by_block - at_once)[NATIVE:]))
    sums, counts = totals(found["base"])
    cuts = 3  # after 16, 31 and 46 tokens: one of the near band, two of the far one
    assert counts.sum() == 3 * (LENGTH - 1 - cuts)
    expected = [np.nanmean(np.concatenate(each)) for each in (near, far)]
    assert (sums / counts).tolist() == pytest.approx(expected, abs=1e-5)
    band = found["blocks"]["bands"][1]
    assert band["gain"] == pytest.approx(np.mean(gains), abs=1e-5)
    assert abs(band["gain"]) > 1e-3, "there is something to compare"


def test_documents_without_bos_are_cut_as_they_are(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = Text(BOS, 7)  # one of them happens to begin with it
    found = measured(folder, text)
    assert "blocks_begin_with" not in found["settings"]
    cut = [
        losses(model, document[:LENGTH][start : start + NATIVE])
        for document in text.texts
        for start in range(NATIVE, LENGTH, NATIVE)
    ]
    sums, counts = totals(found["base"])
    assert counts[1] == sum(map(len, cut))
    assert sums[1] == pytest.approx(np.concatenate(cut).sum(), rel=1e-6)
