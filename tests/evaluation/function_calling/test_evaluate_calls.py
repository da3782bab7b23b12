"""`alia-ctx evaluate-calls` of models on disk, as a user calls it."""

from __future__ import annotations

import json
import logging
import shutil
import weakref
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from alia_ctx.cli.run_commands import app
from alia_ctx.errors import AliaError
from alia_ctx.evaluation.function_calling import (
    Case,
    read_cases,
)
from alia_ctx.evaluation.function_calling.ledger import NAME
from alia_ctx.hf.upstream import end_ids
from alia_ctx.identity import IdentityError
from alia_ctx.workflow import call_writer
from alia_ctx.workflow.call_generation import TransformersModel
from alia_ctx.workflow.call_writer import CallSettings
from tests.evaluation.function_calling.server import said
from tests.evaluation.function_calling.small_suite import wanted, write_suite
from tests.hf_models import edit_json, make_model
from tests.tokenizers import byte_level, save

END = "<|im_end|>"
SHORT_TEMPLATE = (  # of the tools their names, so that the model learns in seconds
    "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def alia(*words: Any) -> str:
    """Standard output of a command; its error is raised."""
    done = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def calls_for(text: str) -> list[tuple[str, str]]:
    """The right calls for a question of the small suite."""
    category, index = text.rstrip("?").rsplit(" ", 1)
    numbers = wanted(category, int(index))
    quote = (lambda n: f'"{n}"') if "java" in category else str
    if "irrelevance" in category:
        return []
    return [("get_value", f'{{"n": {quote(n)}}}') for n in numbers]


def right_reply(body: dict[str, Any]) -> dict[str, Any]:
    calls = calls_for(body["messages"][-1]["content"])
    return said(None if calls else "No.", *calls)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "data")


def save_small(directory: Path, context: int = 4096, rope: str = "default") -> Any:
    """A small random model in fp32 with a tokenizer of bytes, without a template."""
    sizes = {"vocab_size": 384, "num_hidden_layers": 2, "hidden_size": 64}
    model = make_model(
        "llama", rope, torch.float32, max_position_embeddings=context, **sizes
    )
    save(byte_level(), directory)
    model.save_pretrained(directory)
    return model


def answers_of(
    directory: Path, cases: tuple[Case, ...], settings: CallSettings, batch_size: int
) -> dict[str, str]:
    model = TransformersModel(directory, settings, batch_size=batch_size)
    return {
        name: answer.text for batch in model.answers(cases) for name, answer in batch
    }


@pytest.mark.long
def test_greedy_answers_are_those_of_a_plain_loop(suite: Path, tmp_path: Path) -> None:
    """One question at a time, no padding, no cache, the maximum of the last logits."""
    model = save_small(tmp_path / "m")
    names = ["simple_java", "parallel", "irrelevance"]
    cases, settings = read_cases(suite, names, limit=1).cases, CallSettings(6)
    made = TransformersModel(tmp_path / "m", settings, batch_size=4)
    assert made.template == "chatml-tools"
    found = answers_of(tmp_path / "m", cases, settings, 4)
    for case in cases:
        ids = made._tokenizer.ids([made.prompt(case)], split_special=False)[0]
        size = len(ids)
        with torch.inference_mode():
            while len(ids) < size + 6 and ids[-1] not in (2, 5):
                logits = model(torch.tensor([ids]), use_cache=False).logits
                ids.append(int(logits[0, -1].argmax()))
        written = ids[size:-1] if ids[-1] in (2, 5) else ids[size:]
        assert found[case.id] == made._auto.decode(written), case.id


@pytest.mark.long
def test_what_is_drawn_does_not_depend_on_batches(suite: Path, tmp_path: Path) -> None:
    save_small(tmp_path / "m")
    cases = read_cases(suite, ["simple_python", "multiple"]).cases
    settings = CallSettings(max_new_tokens=8, temperature=1.0, seed=3)
    one = answers_of(tmp_path / "m", cases, settings, 1)
    assert answers_of(tmp_path / "m", cases[::-1], settings, 3) == one
    other = CallSettings(max_new_tokens=8, temperature=1.0, seed=4)
    assert answers_of(tmp_path / "m", cases, other, 3) != one


@pytest.mark.long
@pytest.mark.parametrize("rope", ["dynamic", "default"])
def test_an_answer_does_not_depend_on_its_neighbours(rope: str, tmp_path: Path) -> None:
    """Nor on what was answered before. A dynamic RoPE turns by the longest text of a
    batch, and transformers keeps it for those that follow.
    """
    save_small(tmp_path / "m", context=64, rope=rope)
    settings = CallSettings(max_new_tokens=30)
    random = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(6, 340, (size,), generator=random).tolist()
        for size in (30, 90, 60, 33, 70, 45)
        if rope == "dynamic" or size < 64
    ]
    alone = []
    for prompt in prompts:
        model = TransformersModel(tmp_path / "m", settings)
        assert model.context == (256 if rope == "dynamic" else 64)
        alone += model.write([prompt], ["x"])
    assert len({answer.text for answer in alone}) == len(prompts)
    assert model.write(prompts[::-1], "abcdef"[: len(prompts)]) == alone[::-1]


def test_nobody_is_reminded_of_a_length_that_is_kept_to(tmp_path: Path) -> None:
    """transformers reminds past `max_position_embeddings`: of padded rows, whose answers
    are cut to the context, and of a RoPE that is scaled, which reads more.
    """
    from transformers.utils import logging as upstream

    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    upstream.add_handler(handler)
    upstream.warning_once.cache_clear()  # it says each thing once
    try:
        for rope, sizes in (("dynamic", (90,)), ("default", (30, 63))):
            save_small(tmp_path / rope, context=64, rope=rope)
            settings = CallSettings(max_new_tokens=30)
            model = TransformersModel(tmp_path / rope, settings)
            prompts = [list(range(6, 6 + size)) for size in sizes]
            answers = model.write(prompts, "ab"[: len(prompts)])
            assert all(
                len(p) + a.tokens <= model.context
                for p, a in zip(prompts, answers, strict=True)
            )
    finally:
        upstream.remove_handler(handler)
    assert not [line for line in told if "maximum length" in line]


def test_questions_that_do_not_fit(suite: Path, tmp_path: Path) -> None:
    save_small(tmp_path / "m", context=512)
    words = [
        "--data",
        suite,
        "--output",
        tmp_path / "out",
        "--categories",
        "irrelevance",
    ]
    found = json.loads(alia("evaluate-calls", tmp_path / "m", *words, "--json"))
    (category,) = found["models"]["m"]["categories"].values()
    assert (category["right"], category["wrong"]) == (0, {"no_answer": 2})


@pytest.mark.long
def test_a_model_that_has_learned_the_answers(suite: Path, tmp_path: Path) -> None:
    """Trained on a template's text of some questions and answers, it is right about
    these, in one command, beside a model that knows nothing; changed, it is asked anew.
    """
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    save_small(base)
    model = save_small(tuned)
    names = ["multiple", "live_parallel", "irrelevance"]
    cases = read_cases(suite, names, limit=1).cases
    template = tmp_path / "short.jinja"
    template.write_text(SHORT_TEMPLATE)
    made = TransformersModel(tuned, CallSettings(), str(template))
    learn(model, [(made.prompt(case), answer_text(case)) for case in cases], made)
    model.save_pretrained(tuned)
    out = tmp_path / "out"
    words = ["--data", suite, "--output", out, "--categories", ",".join(names)]
    words += ["--limit", 1, "--max-new-tokens", 150, "--template", template]
    found = json.loads(alia("evaluate-calls", base, tuned, *words, "--json"))["models"]
    rights = {
        name: [score["right"] for score in found[name]["categories"].values()]
        for name in found
    }
    assert rights == {"base": [0, 0, 1], "tuned": [1, 1, 1]}
    assert found["tuned"]["cut"] == 0
    save_small(tuned / "again").save_pretrained(tuned)
    with pytest.raises(AliaError, match=r"model\.huggingface\.model\.safetensors"):
        alia("evaluate-calls", tuned, *words)


def answer_text(case: Case) -> str:
    calls = calls_for(case.messages[-1]["content"])
    texts = [
        f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
        for name, arguments in calls
    ]
    return "\n".join(texts) or "No."


def learn(model: Any, pairs: list[tuple[str, str]], made: TransformersModel) -> None:
    """Until each answer is the model's first choice, token by token."""
    texts = made._tokenizer.ids([p for p, _ in pairs], split_special=False)
    ends = made._tokenizer.ids([f"{a}{END}" for _, a in pairs], split_special=False)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        hits = True
        for text, end in zip(texts, ends, strict=True):
            ids = torch.tensor([text + end])
            logits = model(ids).logits[0, len(text) - 1 : -1]
            target = ids[0, len(text) :]
            torch.nn.functional.cross_entropy(logits, target).backward()
            hits &= bool((logits.argmax(-1) == target).all())
        if hits:
            break
        optimizer.step()
        optimizer.zero_grad()
    else:
        raise AssertionError("the model does not learn its answers")
    model.eval()


def test_a_question_that_the_template_refuses_is_wrong(
    suite: Path, tmp_path: Path
) -> None:
    """By itself, told by category; the others are answered. A template that refuses the
    shortest question too is not the questions' fault, and nothing is kept of it.
    """
    save_small(tmp_path / "m")
    picky, never = tmp_path / "picky.jinja", tmp_path / "never.jinja"
    refuses = "{{ raise_exception('no such question') }}"
    picky.write_text(
        f"{SHORT_TEMPLATE}{{% if 'irrelevance 1' in messages[-1].content %}}{refuses}"
        "{% endif %}"
    )
    never.write_text(f"{SHORT_TEMPLATE}{{% if tools %}}{refuses}{{% endif %}}")
    words = ["evaluate-calls", tmp_path / "m", "--data", suite, "--max-new-tokens", 2]
    words += ["--categories", "irrelevance,multiple", "--output"]
    table = alia(*words, tmp_path / "out", "--template", picky)
    assert "m: 1 questions were not answered" in table
    assert "(irrelevance 1); the first: chat template" in table
    assert "no such question" in table
    said = (tmp_path / "out" / "m" / NAME).read_text()
    assert said.count("\n") == 1 + 4
    assert said.count("no such question") == 1
    found = json.loads(alia(*words, tmp_path / "out", "--template", picky, "--json"))
    categories = found["models"]["m"]["categories"]
    assert categories["irrelevance"]["wrong"]["no_answer"] == 1
    refused = pytest.raises(AliaError, match=r"no such question; the shortest.*--templ")
    with refused:
        alia(*words, tmp_path / "never", "--template", never)
    assert (tmp_path / "never" / "m" / NAME).read_text().count("\n") == 1


def test_answers_that_end_otherwise_are_another_model_s(
    suite: Path, tmp_path: Path
) -> None:
    """What ends an answer, how much is read, and what day it is for a template that says
    so: all that decides an answer is compared, and named where it differs.
    """
    model, out, dated = tmp_path / "m", tmp_path / "out", tmp_path / "dated.jinja"
    save_small(model)
    words = ["evaluate-calls", model, "--data", suite, "--output", out, "--limit", 1]
    words += ["--categories", "multiple", "--max-new-tokens", 2]
    alia(*words)
    alia(*words)
    ends = model / "generation_config.json"
    before = ends.read_text()
    ends.write_text(json.dumps({"eos_token_id": [7, 8]}))
    with pytest.raises(
        AliaError, match=r"model\.stop_ids: \[2, 5\] there, \[7, 8, 2, 5"
    ):
        alia(*words)
    ends.write_text("{")
    with pytest.raises(AliaError, match=r"generation_config\.json: .*copy it again"):
        alia(*words)
    ends.write_text(before)
    config = json.loads((model / "config.json").read_text())
    edit_json(model / "config.json", max_position_embeddings=2048)
    with pytest.raises(AliaError, match=r"model\.context: 4096 there, 2048 now"):
        alia(*words)
    (model / "config.json").write_text(json.dumps(config))
    shutil.rmtree(out)
    dated.write_text(SHORT_TEMPLATE + "{{ strftime_now('%d %b %Y') }}")
    alia(*words, "--template", dated)
    ledger = out / "m" / NAME
    head, *rest = ledger.read_text().splitlines(keepends=True)
    today = date.today().isoformat()
    assert today in head
    ledger.write_text("".join([head.replace(today, "2024-02-29"), *rest]))
    with pytest.raises(AliaError, match=rf"model\.day: 2024-02-29 there, {today} now"):
        alia(*words, "--template", dated)


def test_weights_that_are_replaced_before_they_are_loaded(tmp_path: Path) -> None:
    save_small(tmp_path / "m")
    model = TransformersModel(tmp_path / "m", CallSettings(max_new_tokens=2))
    other = save_small(tmp_path / "other")
    with torch.no_grad():
        other.lm_head.weight += 1
    other.save_pretrained(tmp_path / "m")
    with pytest.raises(IdentityError, match=r"model\.safetensors: (.|\n)*was replaced"):
        model.write([[7, 8]], "a")


def test_what_ends_an_answer_is_as_transformers_has_it(tmp_path: Path) -> None:
    model = save_small(tmp_path / "m")
    ends = tmp_path / "m" / "generation_config.json"
    for stated in ({"eos_token_id": 9}, {"eos_token_id": [9, 3]}, {}, None):
        ends.unlink(missing_ok=True)
        if stated is not None:
            ends.write_text(json.dumps(stated))
        loaded = type(model).from_pretrained(tmp_path / "m")
        ids = loaded.generation_config.eos_token_id
        listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
        assert end_ids(tmp_path / "m") == listed, stated


@pytest.mark.long
def test_one_model_is_in_memory_at_a_time(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    write = call_writer.Writer.write

    def watched(self: Any, *words: Any) -> list[Any]:
        loaded.append(weakref.ref(self._model))
        assert sum(one() is not None for one in set(loaded)) == 1
        return write(self, *words)

    monkeypatch.setattr(call_writer.Writer, "write", watched)
    names = ["a", "b", "c"]
    for name in names:
        save_small(tmp_path / name)
    words = ["--data", suite, "--output", tmp_path / "out", "--max-new-tokens", 2]
    alia("evaluate-calls", *(tmp_path / name for name in names), *words, "--limit", 1)
    assert len(set(loaded)) == 3


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_memory_that_does_not_hold_the_model_is_not_the_question_s_fault(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Path] = []

    def load(directory: Path, *_: Any, **__: Any) -> Any:
        loads.append(directory)
        raise error

    save_small(tmp_path / "m")
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    model = TransformersModel(tmp_path / "m", CallSettings())
    with pytest.raises(AliaError, match="memory does not hold the model's weights"):
        model.write([[7, 8, 9]] * 8, "abcdefgh")
    assert len(loads) == 1
