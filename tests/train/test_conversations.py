"""Stages of conversations: the loss that transformers has, each conversation once an epoch
through kills and extensions, rates where they belong.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from alia_ctx import checkpoint, workflow
from alia_ctx.config.load import load_run
from alia_ctx.data.tokens import write_store
from alia_ctx.errors import ConfigError
from alia_ctx.hf.convert import import_hf
from alia_ctx.train.schedule import stage_schedule
from tests import hf_models
from tests.distributed import run_distributed
from tests.small_run import VOCABULARY, metrics, write_run
from tests.train.runs import last, start, train

# Both sum fp32 losses in another order, after a forward of four layers; 1e-5 is what the
# product promises.
LOSS_TOLERANCE = 1e-5
CONVERSATIONS = 300
SCHEDULE = {"type": "cosine", "warmup": 0.1, "min_learning_rate": 1e-4}


def write_conversations(prefix: Path, count: int) -> None:
    """Conversations of two turns, of which the answers are trained; easy to learn."""
    generator = np.random.default_rng(3)
    lengths = generator.integers(8, 60, count).tolist()
    begins = generator.integers(4, VOCABULARY, count).tolist()
    write_store(
        prefix,
        [
            4 + (begin + np.arange(length)) % (VOCABULARY - 4)
            for begin, length in zip(begins, lengths, strict=True)
        ],
        VOCABULARY,
        [np.arange(length) * 4 // length % 2 == 1 for length in lengths],
    )


def write_talk(folder: Path, **stage: Any) -> Path:
    """A run whose stage `short` is of conversations, in updates of 128."""
    path = write_run(folder)
    write_conversations(folder / "talk", CONVERSATIONS)
    config = yaml.safe_load(path.read_text())
    config["data"]["sources"] = {"talk": {"store": str(folder / "talk")}}
    short = {
        "init_from": "random",
        "context": 256,
        "rope": {"type": "default", "theta": 10000},
        "epochs": 3,
        "update_instances": 128,
        "learning_rate": 0.003,
        "schedule": SCHEDULE,
        "pack": {"policy": "best_fit", "long_docs": "drop", "min_rows": 4},
        **stage,
    }
    config["stages"] = {"short": short}
    config["checkpoint"] = {"every_updates": 2, "keep_last": 20}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


class KillAfter:
    """Kills rank 0 with SIGKILL in the nth update of the process."""

    def __init__(self, updates: int) -> None:
        self.updates = updates

    def __call__(self, rank: int) -> None:
        from alia_ctx.mcore.engine import MegatronEngine

        original, calls = MegatronEngine.train_update, [0]

        def deadly(engine: Any, *args: Any) -> Any:
            calls[0] += 1
            if calls[0] == self.updates and rank == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(engine, *args)

        MegatronEngine.train_update = deadly  # type: ignore[method-assign]


def trained(path: Path, lines: list[dict[str, Any]]) -> list[list[int]]:
    """The conversations of each line of the log, by the rows that it names."""
    plan = workflow.open_plan(load_run(path), "short")
    found = []
    for line in lines:
        rows = [plan.row(i) for i in range(*line["rows"])]
        found.append([int(n) for row in rows for n in row.doc_ids])
        assert line["documents"] == len(found[-1])
        assert line["predicted_tokens"] == sum(row.predicted for row in rows)
    return found


def kept(lines: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    keys = ("update", "rows", "tokens", "documents", "predicted_tokens")
    return [tuple(map(str, (line[k] for k in keys))) for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs on one rank, never stopped."""
    folder = tmp_path_factory.mktemp("alone")
    assert start(write_talk(folder)) == ""
    return folder


def test_each_conversation_once_an_epoch_and_rates_as_scheduled(alone: Path) -> None:
    path, lines = alone / "run.yaml", metrics(alone)
    updates = trained(path, lines)
    assert [len(u) for u in updates] == [128, 128, 44] * 3
    everything = Counter(range(CONVERSATIONS))
    for epoch in range(3):
        own = updates[3 * epoch : 3 * epoch + 3]
        assert Counter(n for update in own for n in update) == everything
    schedule = stage_schedule(load_run(path).stage("short"), 9)
    assert [line["learning_rate"] for line in lines] == [
        schedule.rate(update) for update in range(9)
    ]
    assert lines[0]["learning_rate"] == 0 and lines[1]["learning_rate"] == 0.003
    assert lines[-1]["loss"] < lines[0]["loss"]
    manifest = checkpoint.read_manifest(last(alone))
    assert manifest.extra["schedule"]["type"] == "cosine"
    assert manifest.extra["planned"] == {"updates": 9, "epochs": 3}
    assert manifest.ledger[-1].rows == lines[-1]["rows"][1]


def test_killed_resumed_on_two_ranks_and_extended(tmp_path: Path, alone: Path) -> None:
    """dp1 for one epoch, then dp2 through a kill -9 to the end of three: the updates of a
    run that was never stopped.
    """
    path = write_talk(tmp_path)
    two = "cluster.ranks_per_node=2"
    assert start(path, "stages.short.epochs=1") == ""
    first = metrics(tmp_path)
    assert [line["update"] for line in first] == [1, 2, 3]
    message = start(path, two, ranks=2)
    assert "has no plan of 3 epochs" in message and "pack CONFIG" in message
    workflow.pack(load_run(path), "short")
    with pytest.raises(AssertionError, match="ended with status -9"):
        start(path, two, ranks=2, sabotage=KillAfter(4))
    assert start(path, two, ranks=2) == ""
    lines, whole = metrics(tmp_path), metrics(alone)
    assert lines[:3] == first, "what was done stays as it was"
    assert kept(lines) == kept(whole)
    assert trained(path, lines) == trained(alone / "run.yaml", whole)
    # From the extension on the rates are those of the longer stage, and it says so.
    for ours, theirs in zip(lines[3:], whole[3:], strict=True):
        assert ours["learning_rate"] == theirs["learning_rate"]
    changes = checkpoint.read_manifest(last(tmp_path)).extra["changes"]
    assert [change["after_update"] for change in changes] == [3]
    assert "schedule.updates: 3 there, 9 now" in changes[0]["settings"]
    other = start(path, two, "stages.short.schedule.type=linear", ranks=2)
    assert "schedule.type: cosine there, linear now" in other


def recompute(rank: int, path: str, update: int) -> Any:
    return workflow.recompute(load_run(path), "short", update)


def test_a_logged_loss_is_computed_again(alone: Path) -> None:
    result = run_distributed(recompute, 2, str(alone / "run.yaml"), 5)[0]
    assert result.logged == metrics(alone)[4]["loss"]
    assert result.loss == pytest.approx(result.logged, rel=1e-6)


# -- transformers ----------------------------------------------------------------------

LAYOUTS = ["{}", "{cp: 2}", "{tp: 2}", "{pp: 2}"]


def train_layouts(rank: int, path: str, weightings: list[str]) -> list[str]:
    """One update on each layout, to an output of its own."""
    told = []
    for weighting in weightings:
        for number, layout in enumerate(LAYOUTS):
            overrides = [
                f"stages.short.layout={layout}",
                f"output={Path(path).parent}/{weighting}-{number}",
                f"stages.short.loss_weighting={weighting}",
                "cluster.ranks_per_node=2",
            ]
            if rank == 0:
                workflow.pack(load_run(path, overrides), "short")
            torch.distributed.barrier()
            told.append(train(rank, path, overrides))
    return told


def test_losses_and_calls_are_those_of_transformers_on_every_layout(
    tmp_path: Path,
) -> None:
    """The loss of an update per token and per conversation, gradients by their norm, the
    losses of held-out conversations by source and which calls are right, on dp2, cp2, tp2
    and pp2.
    """
    model = hf_models.save_model(
        tmp_path / "hf", "llama", "llama3", dtype=torch.float32
    )
    path = write_talk(tmp_path)
    generator = np.random.default_rng(17)
    talk = random_conversations(generator, 60)
    tag, calls = greedy_calls(model, generator)
    sources = {"talk": talk, "calls": calls}
    for name, pairs in sources.items():
        tokens, weights = zip(*pairs, strict=True)
        write_store(tmp_path / name, tokens, 96, weights)
    name_the_tag(tmp_path / "tokenizer", tag)
    for file in (tmp_path / "hf").glob("*token*"):
        file.unlink()
    shutil.copytree(tmp_path / "tokenizer", tmp_path / "hf", dirs_exist_ok=True)
    import_hf(tmp_path / "hf", tmp_path / "base")
    config = yaml.safe_load(path.read_text())
    config["model"] = "from_checkpoint"
    config["optimizer"] = {"clip_grad": 1e9}
    config["evaluation"] = {"every_updates": 1}
    config["data"]["sources"] = {n: {"store": str(tmp_path / n)} for n in sources}
    rope = dict(hf_models.ROPES["llama3"])
    config["stages"]["short"] |= {
        "init_from": str(tmp_path / "base"),
        "context": 128,
        "rope": {
            "type": rope.pop("rope_type"),
            "theta": rope.pop("rope_theta"),
            **rope,
        },
        "epochs": 1,
        "update_instances": 100,
        "learning_rate": 1e-12,  # so small that the weights stay what they are
        "schedule": {"type": "constant"},
    }
    config["stages"]["short"]["pack"]["held_out_instances"] = 20
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    weightings = ["token", "conversation"]
    for told in run_distributed(train_layouts, 2, str(path), weightings, timeout=400):
        assert told == [""] * 8
    plan = workflow.open_plan(load_run(path, [f"output={tmp_path}/token-0"]), "short")
    rows = [plan.row(index) for index in plan.rows_of_update(0)]
    in_update = [
        (plan.sources[source], int(number))
        for row in rows
        for source, number in zip(row.sources, row.doc_ids, strict=True)
    ]
    held_out = {
        name: [pair for n, pair in enumerate(pairs) if (name, n) not in in_update]
        for name, pairs in sources.items()
    }
    assert sum(map(len, held_out.values())) == 20
    right = [is_greedy(model, *pair) for pair in held_out["calls"]]
    assert {True, False} == set(right), "calls that are right, and calls that are not"
    for weighting in weightings:
        pairs = [sources[name][number] for name, number in in_update]
        loss, norm = by_transformers(model, pairs, weighting)
        for number, layout in enumerate(LAYOUTS):
            log = tmp_path / f"{weighting}-{number}/stages/short/metrics.jsonl"
            (line,) = (yaml.safe_load(text) for text in log.read_text().splitlines())
            assert line["documents"] == len(pairs)
            assert line["loss"] == pytest.approx(loss, rel=LOSS_TOLERANCE), layout
            # of fp32 gradients through four layers, as in test_engine
            assert line["gradient_norm"] == pytest.approx(norm, rel=1e-4), layout
            scores = line["conversations"]
            assert (scores["conversations"], scores["too_long"]) == (20, 0)
            for name, pairs_of in held_out.items():
                expected, _ = by_transformers(model, pairs_of, "token")
                assert scores["loss_by_source"][name] == pytest.approx(
                    expected, rel=LOSS_TOLERANCE
                )
            assert scores["calls"] == len(right), layout
            assert scores["calls_exact"] == pytest.approx(sum(right) / len(right)), (
                layout
            )


def random_conversations(
    generator: np.random.Generator, count: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    lengths = generator.integers(8, 100, count).tolist()
    return [
        (generator.integers(4, 96, length), np.arange(length) * 4 // length % 2 == 1)
        for length in lengths
    ]


def greedy_calls(
    model: Any, generator: np.random.Generator
) -> tuple[int, list[tuple[np.ndarray, np.ndarray]]]:
    """The token that the model says most often after random prompts, and conversations
    in which it begins the answer: every other one as the model goes on, the rest not.
    """
    prompts = torch.from_numpy(generator.integers(4, 96, (600, 20)))
    with torch.no_grad():
        said = prompts
        for _ in range(3):
            best = model(input_ids=said).logits[:, -1].argmax(-1)
            said = torch.cat((said, best[:, None]), 1)
    first = said[:, 20]
    tag = int(torch.bincount(first).argmax())
    calls = said[first == tag].numpy()
    assert len(calls) >= 20
    for number, tokens in enumerate(calls):
        if number % 2:
            tokens[-1] = 4 + (tokens[-1] + 1) % 90
    return tag, [(tokens, np.arange(23) >= 20) for tokens in calls]


def name_the_tag(tokenizer: Path, tag: int) -> None:
    """Call the token `tag` <tool_call> in a tokenizer of a word for each id."""
    file = tokenizer / "tokenizer.json"
    document = json.loads(file.read_text())
    words = document["model"]["vocab"]
    del words[next(word for word, number in words.items() if number == tag)]
    words["<tool_call>"] = tag
    document["model"]["vocab"] = {w: n for w, n in words.items() if n < 96}
    file.write_text(json.dumps(document))


@torch.no_grad()
def is_greedy(model: Any, tokens: np.ndarray, weights: np.ndarray) -> bool:
    """Whether the model says every trained token of a conversation itself."""
    said = model(input_ids=torch.from_numpy(tokens)[None]).logits[0].argmax(-1).numpy()
    return bool((said[:-1] == tokens[1:])[weights[1:]].all())


def by_transformers(
    model: Any, pairs: list[tuple[np.ndarray, np.ndarray]], weighting: str
) -> tuple[float, float]:
    """Loss and gradient norm of an update: transformers' own loss of each conversation,
    with the labels that the weights stand for.
    """
    model.zero_grad()
    losses, counts = [], []
    for tokens, weights in pairs:
        ids = torch.from_numpy(tokens).long()[None]
        labels = ids.masked_fill(~torch.from_numpy(weights)[None], -100)
        losses.append(model(input_ids=ids, labels=labels).loss)
        counts.append(float((labels[:, 1:] >= 0).sum()))
    shares = torch.tensor(counts if weighting == "token" else [1.0] * len(counts))
    loss = (torch.stack(losses) * shares).sum() / shares.sum()
    loss.backward()
    squares = [float(p.grad.double().square().sum()) for p in model.parameters()]
    return float(loss.detach()), float(np.sqrt(sum(squares)))


# -- what is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides,told",
    [
        (["update_tokens=512", "update_instances=4"], "both are given"),
        (["update_instances=null"], "neither is given"),
        (["tokens=4096"], "tokens=4096: does not go with update_instances"),
        (["epochs=null"], "epochs: is needed with update_instances"),
        (["epochs=0"], "epochs=0: must be above 0"),
        (["epochs=1.5"], "epochs"),
        (["update_instances=-1"], "update_instances=-1: must be above 0"),
        (["update_instances=null", "update_tokens=512"], "tokens: is needed"),
        (["loss_weighting=document"], "loss_weighting"),
        (["pack.policy=concat"], "cuts conversations"),
        (["pack.weights.talk=1"], "sampling says"),
        (["pack.sources=[chat]"], "no such source"),
        (["pack.sampling.chat=2"], "no such source"),
        (["pack.held_out_instances=-1"], "held_out_instances=-1"),
        (["layout={cp: 64}", "cluster.ranks_per_node=64"], "rows of conversations"),
    ],
)
def test_settings_that_do_not_go_together(
    tmp_path: Path, overrides: list[str], told: str
) -> None:
    path = write_talk(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_run(
            path, [f"stages.short.{o}" if "cluster" not in o else o for o in overrides]
        )
    assert told in str(caught.value)


def test_settings_of_conversations_in_a_stage_of_tokens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this stage counts tokens"):
        load_run(write_run(tmp_path), ["stages.short.pack.held_out_instances=3"])
