"""`evaluate-calls --bfcl-env`: all fourteen rows of the card's table in one command."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from alia_ctx.errors import AliaError
from alia_ctx.evaluation.function_calling import MULTI_TURN, bfcl_program
from alia_ctx.workflow.call_conversations import _command
from alia_ctx.workflow.call_generation import TransformersModel
from alia_ctx.workflow.call_writer import CallSettings
from tests.evaluation.function_calling.bfcl_environment import write_environment
from tests.evaluation.function_calling.server import said, served
from tests.evaluation.function_calling.test_evaluate_calls import (
    alia,
    right_reply,
    save_small,
)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    return write_environment(tmp_path / "environment")


class Replies:
    """A server's: conversations are said to be right, but for those that `instead` has."""

    def __init__(self, **instead: int | str) -> None:
        self.instead = instead
        self.asked: list[str] = []

    def __call__(self, body: dict[str, Any]) -> dict[str, Any] | int:
        text = body["messages"][-1]["content"]
        self.asked.append(text)
        if not text.startswith("multi_turn"):
            return right_reply(body)
        answer = self.instead.get(text, "right")
        return answer if isinstance(answer, int) else said(answer)


def counts(found: dict[str, Any], model: str = "model") -> dict[str, list[int]]:
    categories = found["models"][model]["categories"]
    return {name: [s["right"], s["total"]] for name, s in categories.items()}


def test_all_rows_of_a_served_model(environment: Path, tmp_path: Path) -> None:
    replies = Replies(multi_turn_base_1="no", multi_turn_long_context_0=400)
    with served(replies) as url:
        words = ["evaluate-calls", "--endpoint", url, "--bfcl-env", environment]
        words += ["--output", tmp_path / "out"]
        table = alia(*words, "--limit", 2)
        assert table.count("0/2") + table.count("1/2") == 2
        assert "not measured" not in table
        assert "1 questions were not answered" in table
        assert "(multi_turn_long_context 1); the first: Error during" in table
        refused = replies.asked.count("multi_turn_long_context_0")
        assert refused > 1  # with fewer and fewer tokens for the answer
        asked = len(replies.asked)
        whole = json.loads(alia(*words, "--json"))
        # The third of each category, and what the server refused, as it may be another.
        assert len(replies.asked) == asked + 4 + refused
        less = json.loads(alia(*words, "--limit", 1, "--json"))
        assert len(replies.asked) == asked + 4 + 2 * refused
        replies.instead.clear()
        torn = tmp_path / "out/model/multi-turn/result/served/multi_turn"
        file = torn / "BFCL_v4_multi_turn_base_result.json"
        file.write_text(file.read_text()[:-7])  # as a kill may leave it
        replies.asked.clear()
        mended = json.loads(alia(*words, "--limit", 1, "--json"))
        assert replies.asked == ["multi_turn_long_context_0"]
        again = json.loads(alia(*words, "--json"))
        assert replies.asked[1:] == ["multi_turn_base_2"]
    rows = whole["models"]["model"]["rows"]
    assert [row["total"] for row in rows[8:12]] == [3, 3, 3, 3]
    assert [row["right"] for row in rows[8:12]] == [2, 3, 3, 2]
    assert {row["accuracy"] for row in rows[:8]} == {1}
    assert counts(less)["multi_turn_base"] == [1, 1]
    assert counts(less)["multi_turn_long_context"] == [0, 1]
    assert counts(mended)["multi_turn_long_context"] == [1, 1]
    assert counts(again)["multi_turn_base"] == [2, 3]
    categories = whole["models"]["model"]["categories"]
    assert categories["multi_turn_base"]["wrong"] == {"empty_turn_model_response": 1}
    assert categories["multi_turn_long_context"]["wrong"] == {"no_answer": 1}


def test_a_server_that_fails_leaves_no_wrong_answers(
    environment: Path, tmp_path: Path
) -> None:
    replies = Replies(multi_turn_base_1=503)
    with served(replies) as url:
        words = ["evaluate-calls", "--endpoint", url, "--bfcl-env", environment]
        words += ["--output", tmp_path / "out", "--categories", "multi_turn_base"]
        with pytest.raises(AliaError, match=r"1 conversations ended as.*bfcl\.log"):
            alia(*words)
        replies.instead.clear()
        replies.asked.clear()
        found = json.loads(alia(*words, "--json"))
        assert replies.asked == ["multi_turn_base_1"]
    assert counts(found) == {"multi_turn_base": [3, 3]}
    stated = tmp_path / "out" / "model" / "multi-turn" / "made_from.json"
    made = json.loads(stated.read_text())["made_from"]
    assert set(made["files"]) == {f"BFCL_v4_{name}.json" for name in MULTI_TURN}
    (tmp_path / "out" / "model" / "answers.jsonl").unlink()
    refused = pytest.raises(AliaError, match=r"model\.endpoint")
    with served(replies, ("model",)) as other, refused:
        alia(*words[:2], other, *words[3:])


def test_a_server_that_refuses_every_conversation_is_no_wrong_model(
    environment: Path, tmp_path: Path
) -> None:
    """As with questions of one turn: it was started without tools, say."""
    with served(lambda body: 400) as url:
        words = ["evaluate-calls", "--endpoint", url, "--bfcl-env", environment]
        words += ["--output", tmp_path / "out", "--categories", "multi_turn_base"]
        with pytest.raises(AliaError, match=r"no conversation.*shortest.*400.*tools"):
            alia(*words)
    assert not (tmp_path / "out" / "model" / "scores.json").exists()


def test_answers_are_added_behind_those_that_are_there(
    environment: Path, tmp_path: Path
) -> None:
    """The benchmark's program would write its file anew for each, and a kill lose all."""
    replies = Replies(multi_turn_base_0=400, multi_turn_base_2="no\u2028\x85")
    with served(replies) as url:
        words = ["evaluate-calls", "--endpoint", url, "--bfcl-env", environment]
        words += ["--output", tmp_path / "out", "--categories", "multi_turn_base"]
        assert counts(json.loads(alia(*words, "--json"))) == {"multi_turn_base": [1, 3]}
        del replies.instead["multi_turn_base_0"]
        assert counts(json.loads(alia(*words, "--json"))) == {"multi_turn_base": [2, 3]}
    results = tmp_path / "out/model/multi-turn/result/served/multi_turn"
    lines = (results / "BFCL_v4_multi_turn_base_result.json").read_bytes().split(b"\n")
    assert [json.loads(line)["id"][-1] for line in lines[:-1]] == ["1", "2", "0"]
    assert list(results.iterdir()) == [results / "BFCL_v4_multi_turn_base_result.json"]


def test_a_line_ends_at_its_end_alone(tmp_path: Path) -> None:
    """Not at what text may have for ends of lines, which JSON may have as they are."""
    rows = [{"id": f"{end}", "result": f"a{end}b"} for end in "\u2028\u2029\x85"]
    file = tmp_path / "in" / "BFCL_v4_multi_turn_base_result.json"
    file.parent.mkdir()
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(whole + '{"id": "torn', encoding="utf-8")
    assert bfcl_program.take_out(file.parent, lambda _: False) == 1
    assert file.read_text(encoding="utf-8") == whole
    ids = {"multi_turn_base": ["\x85", "\u2028"]}
    bfcl_program.choose(file.parent, tmp_path / "out", ids)
    with open(tmp_path / "out" / file.name, encoding="utf-8") as stream:
        assert [json.loads(line) for line in stream] == [rows[2], rows[0]]


def test_single_turn_categories_are_those_of_the_environment_too(
    environment: Path, tmp_path: Path
) -> None:
    with served(right_reply) as url:
        words = ["evaluate-calls", "--endpoint", url, "--output", tmp_path / "out"]
        words += ["--bfcl-env", environment, "--categories", "simple_java", "--json"]
        found = json.loads(alia(*words))
        assert counts(found) == {"simple_java": [2, 2]}
        with pytest.raises(AliaError, match="is no environment"):
            alia(*words[:-1], "--bfcl-env", tmp_path)
    assert not (tmp_path / "out" / "model" / "multi-turn").exists()


def test_what_is_no_environment(environment: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "bin").mkdir(parents=True)
    (empty / "bin" / "python").symlink_to(environment / "bin" / "python")
    with served(right_reply) as url:
        for words, message in (
            (["--bfcl-env", tmp_path], "is no environment.*make venv-bfcl"),
            (["--bfcl-env", empty], "cannot run bfcl-eval.*No module named"),
            (["--bfcl-env", environment, "--multi-turn", "."], "leave one of them"),
            (["--categories", "multi_turn_base"], "needs bfcl-eval's program"),
        ):
            with pytest.raises(AliaError, match=message):
                alia("evaluate-calls", "--endpoint", url, *words)
    assert not Path("evaluation").exists()


@pytest.mark.long
def test_all_rows_of_a_model_on_disk(environment: Path, tmp_path: Path) -> None:
    """It is served for the benchmark's program alone, with one command."""
    save_small(tmp_path / "m")
    words = ["evaluate-calls", tmp_path / "m", "--bfcl-env", environment, "--limit", 1]
    words += ["--output", tmp_path / "out", "--max-new-tokens", 4, "--json"]
    found = json.loads(alia(*words))
    rows = found["models"]["m"]["rows"]
    assert [row["total"] for row in rows] == [3, *[1] * 12, 2]
    assert found["models"]["m"]["categories"]["multi_turn_base"]["wrong"] == {
        "empty_turn_model_response": 1
    }


@pytest.mark.long
def test_served_answers_are_the_model_s(tmp_path: Path) -> None:
    """Asked by several at once, each gets what the model writes for it alone; what does
    not fit is refused, as other servers do.
    """
    from urllib.error import HTTPError
    from urllib.request import urlopen

    save_small(tmp_path / "m", context=200)
    model = TransformersModel(tmp_path / "m", CallSettings(max_new_tokens=8))
    template = tmp_path / "plain.jinja"
    texts = [f"{'Hello ' * number}?" for number in range(6)]
    template.write_text(
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
        "{% for m in messages %}{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    model = TransformersModel(
        tmp_path / "m", CallSettings(max_new_tokens=8), str(template), batch_size=3
    )
    ids = model._tokenizer.ids([f"{t}\n>" for t in texts], split_special=False)
    alone = [model.write([one], ["x"])[0].text for one in ids]
    found: dict[str, str] = {}
    with model.serving() as url:

        def ask(text: str) -> str:
            messages = [{"role": "user", "content": text}]
            body = json.dumps({"messages": messages}).encode()
            with urlopen(f"{url}/chat/completions", body) as answer:
                return str(json.load(answer)["choices"][0]["message"]["content"])

        def keep(text: str) -> None:
            found[text] = ask(text)

        threads = [threading.Thread(target=keep, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pytest.raises(HTTPError, match="400") as refused:
            ask("long " * 60)
        assert b"leaves no room" in refused.value.read()
        with pytest.raises(HTTPError, match="400"):
            urlopen(f"{url}/chat/completions", b"no JSON")
    assert [found[text] for text in texts] == alone
    assert len(set(alone)) > 1


@pytest.mark.long
def test_an_answer_ends_with_the_context(tmp_path: Path) -> None:
    """Each by its own room, whatever is written beside it."""
    save_small(tmp_path / "m", context=64)
    settings = CallSettings(max_new_tokens=40)
    model = TransformersModel(tmp_path / "m", settings, "chatml-tools", batch_size=8)
    prompts = [[300 + size % 7] * size for size in (10, 30, 50, 63)]
    alone = [model.write([prompt], ["x"])[0] for prompt in prompts]
    assert model.write(prompts, "abcd") == alone
    assert [answer.tokens for answer in alone if answer.cut] == [40, 34, 14, 1]


@pytest.mark.long
def test_batches_that_memory_does_not_hold_are_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_small(tmp_path / "m", context=64)
    settings = CallSettings(max_new_tokens=4)
    model = TransformersModel(tmp_path / "m", settings, "chatml-tools")
    prompts = [[300 + size] * size for size in (5, 9, 13, 17, 21)]
    alone = [model.write([prompt], ["x"])[0] for prompt in prompts]
    write, held = model._writer.write, [2]

    def within(prompts: Any, *rest: Any) -> Any:
        if len(prompts) > held[0]:
            raise torch.OutOfMemoryError
        return write(prompts, *rest)

    monkeypatch.setattr(model._writer, "write", within)
    assert model.write(prompts, "abcde") == alone
    held[0] = 0
    with pytest.raises(AliaError, match="memory does not hold a question of 21 tokens"):
        model.write(prompts, "abcde")


@pytest.mark.long
def test_the_program_ends_with_what_started_it(
    environment: Path, tmp_path: Path
) -> None:
    """Killed even: the pipe is closed by the system."""
    asked, over = threading.Event(), threading.Event()

    def waits(body: dict[str, Any]) -> int:
        asked.set()
        over.wait(60)
        return 503

    source = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    with served(waits) as url:
        words = [*_command(environment / "bin" / "python"), "--piped", "--model", "m"]
        words += ["--endpoint", url, "--output", str(tmp_path / "out")]
        parent = subprocess.Popen(
            [sys.executable, "-c", source, *words], stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert asked.wait(60)
        assert _runs(child)
        parent.kill()
        parent.communicate()
        for _ in range(600):
            if not _runs(child):
                break
            time.sleep(0.1)
        over.set()
        assert not _runs(child)


def _runs(process: int) -> bool:
    """Whether a process is there, and not only its exit status."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
