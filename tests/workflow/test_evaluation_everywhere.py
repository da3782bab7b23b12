"""The same numbers from the engine on every layout and from transformers, which shares no
code with it: losses, key tokens, answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alia_ctx import workflow
from alia_ctx.evaluation.retrieval import RetrievalScores, SampleRows
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.spec.layout import Layout
from alia_ctx.workflow.held_out_text import haystack_texts
from tests.distributed import run_distributed
from tests.evaluated_model import (
    CONTEXT,
    NATIVE,
    RETRIEVAL,
    make_model,
    samples,
    write_model,
    write_text,
    write_tokenizer,
)

LAYOUTS = {
    "dp2": Layout(),
    "cp2": Layout(cp=2),
    "tp2": Layout(tp=2),
    "pp2": Layout(pp=2),
}
EVERYTHING = ("positions", "blocks", "longppl", "retrieval", "passkey", "leak")
DOCUMENTS = 4
# fp32 in another order of sums: losses of order 7 agree to their seventh digit.
TOLERANCE = 1e-5


def asked(text: Path, layout: Layout | None, *evaluators: str) -> workflow.Asked:
    return workflow.Asked(
        evaluators=evaluators,
        texts=(str(text),),
        contexts=(CONTEXT,),
        documents=DOCUMENTS,
        retrieval=RETRIEVAL,
        layout=layout,
    )


def on_two_ranks(rank: int, folder: str) -> dict[str, Any]:
    """Contents of all evaluators by layout; and of the leak probe under a broken mask."""
    from alia_ctx.mcore.engine import MegatronEngine

    root, found = Path(folder), {}
    for name, layout in LAYOUTS.items():
        task = workflow.models_task(
            [root / "checkpoint"],
            asked(root / "text", layout, *EVERYTHING),
            root / name,
        )
        evaluated = workflow.measure_models(task)
        found[name] = {r.evaluator: r.content for r in evaluated.results}
    for name in ("dp2", "cp2"):
        task = workflow.models_task(
            [root / "sharp"],
            asked(root / "text", LAYOUTS[name], "longppl"),
            root / f"sharp {name}",
        )
        found[f"sharp {name}"] = workflow.measure_models(task).results[0].content
    found["by itself"] = _chosen_layout(root)

    original = MegatronEngine.__init__

    def without_mask(engine: Any, *args: Any, **options: Any) -> None:
        original(engine, *args, **options)
        geometry = engine.passes._geometry
        engine.passes._geometry = lambda offsets, **row: geometry(
            offsets[[0, -1]], **row
        )

    MegatronEngine.__init__ = without_mask  # type: ignore[method-assign]
    for name in ("dp2", "cp2"):
        task = workflow.models_task(
            [root / "checkpoint"],
            asked(root / "text", LAYOUTS[name], "leak"),
            root / f"broken {name}",
        )
        found[f"broken {name}"] = workflow.measure_models(task).results[0].content
    return found


def _chosen_layout(root: Path) -> Any:
    task = workflow.models_task(
        [root / "checkpoint"], asked(root / "text", None, "leak"), root / "chosen"
    )
    return workflow.measure_models(task).results[0].content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face model, imported, and exported again."""
    from transformers import AutoTokenizer

    root = tmp_path_factory.mktemp("evaluated")
    tokenizer = write_tokenizer(root, write_text(root / "text"))
    rows = samples(AutoTokenizer.from_pretrained(tokenizer), haystack(root))
    write_model(root / "model", make_model(rows), tokenizer)
    write_model(root / "sharp", make_model(rows, sharp=True), tokenizer)
    import_hf(root / "model", root / "checkpoint")
    export_hf(root / "checkpoint", root / "exported")
    return root


def tokenizer_of(root: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(root / "tokenizer")


def documents(root: Path) -> list[np.ndarray]:
    """Token ids of the documents that are measured, read here."""
    files = sorted((root / "text").iterdir())[:DOCUMENTS]
    tokenizer = tokenizer_of(root)
    return [
        np.array(tokenizer(f.read_text(), add_special_tokens=False).input_ids)[:CONTEXT]
        for f in files
    ]


class Shown:
    """Documents as the haystack is made of them."""

    def __init__(self, texts: list[np.ndarray]) -> None:
        self.texts = texts

    def beginnings(self, tokens: int) -> Iterator[np.ndarray]:
        return (text[:tokens] for text in self.texts)


def haystack(root: Path) -> Callable[[int], list[str]]:
    shown: Any = Shown(documents(root))
    return lambda length: haystack_texts(shown, tokenizer_of(root), length)


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return dict(run_distributed(on_two_ranks, 2, str(folder), timeout=600)[0])


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    directory = folder / "exported"
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@torch.no_grad()
def losses(model: Any, tokens: np.ndarray) -> np.ndarray:
    """-log p of tokens[1:], [T-1], by transformers in one forward."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    logits = model(ids[None]).logits[0, :-1].double()
    return -logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0].numpy()


def band_means(content: Mapping[str, Any]) -> list[tuple[float, int]]:
    sums = np.sum([d["sums"] for d in content["documents"]], axis=0)
    counts = np.sum([d["counts"] for d in content["documents"]], axis=0)
    return list(zip((sums / counts).tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize("name", LAYOUTS)
def test_losses_by_position(name: str, found: Any, folder: Path, model: Any) -> None:
    each = [losses(model, tokens) for tokens in documents(folder)]
    near = np.concatenate([loss[:NATIVE] for loss in each])
    far = np.concatenate([loss[NATIVE:] for loss in each])
    (ours_near, tokens_near), (ours_far, tokens_far) = band_means(
        found[name]["positions"]
    )
    assert (tokens_near, tokens_far) == (len(near), len(far))
    assert ours_near == pytest.approx(near.mean(), abs=TOLERANCE)
    assert ours_far == pytest.approx(far.mean(), abs=TOLERANCE)


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_far_context_brings(
    name: str, found: Any, folder: Path, model: Any
) -> None:
    gains = []
    for tokens in documents(folder):
        whole = losses(model, tokens)[NATIVE:]
        block = losses(model, tokens[NATIVE:])
        gains.append((block - whole).mean())  # both predict tokens[NATIVE + 1:]
    near, far = found[name]["blocks"]["bands"]
    assert near["gain"] == pytest.approx(0, abs=TOLERANCE)
    assert far["gain"] == pytest.approx(np.mean(gains), abs=TOLERANCE)
    error = np.std(gains, ddof=1) / math.sqrt(len(gains))
    assert far["standard_error"] == pytest.approx(error, abs=TOLERANCE)
    assert abs(far["gain"]) > 100 * TOLERANCE, "there is something to compare"


def long_ppl(model: Any, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Losses of key tokens, and of all: as the paper's code has it, on transformers' logits,
    with windows of the short context and a quarter of it.
    """
    stride, key, everything = NATIVE // 4, [], []
    for tokens in documents(root):
        whole = losses(model, tokens)
        everything.append(whole)
        for start in range(0, len(tokens) - NATIVE, stride):
            window = tokens[start : start + NATIVE + stride]
            short = losses(model, window)[NATIVE - 1 :]
            full = whole[start + NATIVE - 1 :][: len(short)]
            key.append(full[(short - full > 2.0) & (full < 2.0)])
    return np.concatenate(key), np.concatenate(everything)


@pytest.mark.parametrize("name", ["sharp dp2", "sharp cp2"])
def test_long_ppl(name: str, found: Any, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    directory = folder / "sharp"
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    keys, everything = long_ppl(loaded.eval(), folder)
    content = found[name]
    assert content["key_tokens"] == len(keys) > 0
    assert content["tokens"] == len(everything)
    # Losses of order 35 in fp32, and of key tokens of order 1 out of as large logits.
    assert content["long_ppl"] == pytest.approx(math.exp(keys.mean()), rel=1e-3)
    assert math.log(content["ppl"]) == pytest.approx(everything.mean(), rel=1e-5)
    assert content["threshold"] == {"difference": 2.0, "log_likelihood": -2.0}
    assert (content["contrast_model"], content["short_context"]) == ("sharp", NATIVE)


@pytest.mark.parametrize("name", LAYOUTS)
def test_perplexity(name: str, found: Any, folder: Path, model: Any) -> None:
    keys, everything = long_ppl(model, folder)
    content = found[name]["longppl"]
    assert (content["key_tokens"], content["tokens"]) == (len(keys), len(everything))
    assert math.log(content["ppl"]) == pytest.approx(everything.mean(), abs=TOLERANCE)


@pytest.fixture(scope="module")
def generated(folder: Path, model: Any) -> RetrievalScores:
    """The samples scored by what transformers generates greedily after the question."""
    rows: SampleRows = samples(tokenizer_of(folder), haystack(folder))
    scores = RetrievalScores()
    for number in range(len(rows.specs)):
        sample = rows.sample(number)
        start, stop = sample.answer
        prompt = torch.from_numpy(sample.tokens[:start])[None]
        with torch.no_grad():
            out = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=stop - start,
                min_new_tokens=stop - start,
                do_sample=False,
                pad_token_id=3,
            )
        answer = out[0, start:].numpy()
        expected = sample.tokens[start:stop]
        agree = np.cumprod(answer == expected).astype(bool)
        hits = np.zeros(len(sample.tokens), bool)
        hits[start - 1 : stop - 1] = agree
        scores.add(sample, hits)
    return scores


@pytest.mark.parametrize("name", LAYOUTS)
def test_generated_answers_give_the_same_score(
    name: str, found: Any, generated: RetrievalScores
) -> None:
    content = found[name]["retrieval"]
    ours = RetrievalScores.from_json(content)
    assert content["native_context"] == NATIVE
    total = 0
    for task in ours.tasks:
        for length in ours.lengths:
            score, theirs = ours.score(task, length), generated.score(task, length)
            assert (score.samples, score.right) == (theirs.samples, theirs.right)
            total += score.right
    assert 0 < total < ours.score().samples, "some are right, and not all"


def test_hits_are_equal_on_all_layouts(found: Any) -> None:
    for evaluator in ("retrieval", "passkey"):
        cells = [found[name][evaluator]["cells"] for name in LAYOUTS]
        assert all(each == cells[0] for each in cells)
    depths = {cell["depth"] for cell in found["dp2"]["passkey"]["cells"]}
    lengths = {cell["length"] for cell in found["dp2"]["passkey"]["cells"]}
    assert depths == set(range(10)) and lengths >= {NATIVE, CONTEXT}


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_document_sees_another(name: str, found: Any) -> None:
    leak = found[name]["leak"]
    assert (leak["moved"], leak["largest_difference"]) == (0, 0.0)
    assert leak["positions"] > 1000
    assert leak["layout"][name[:2]] == 2


@pytest.mark.parametrize("name", ["broken dp2", "broken cp2"])
def test_a_broken_mask_is_seen(name: str, found: Any) -> None:
    assert found[name]["moved"] > 100
    assert found[name]["largest_difference"] > 0


def test_a_layout_is_found(found: Any) -> None:
    assert found["by itself"]["layout"] == {"dp": 2, "tp": 1, "cp": 1, "pp": 1}
