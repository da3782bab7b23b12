"""`alia-ctx evaluate-calls --endpoint` as a user calls it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.errors import AliaError
from alia_ctx.evaluation.function_calling import MULTI_TURN
from alia_ctx.evaluation.function_calling.ledger import NAME
from alia_ctx.identity import unsealed
from alia_ctx.workflow.card_evaluation import card_evaluation
from tests.evaluation.function_calling.server import answering, said, served
from tests.evaluation.function_calling.small_suite import write_suite
from tests.evaluation.function_calling.test_evaluate_calls import alia, right_reply
from tests.evaluation.function_calling.test_scores import write_score


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "data")


def test_a_served_model(suite: Path, tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        bodies.append(body)
        if body["messages"][-1]["content"] == "live_multiple 1?":
            return said(None, ("get_value", '{"n": 9}'))
        return right_reply(body)

    for category in MULTI_TURN:
        write_score(tmp_path / "score", category, 1, 4)
    out = tmp_path / "out"
    with served(reply) as url:
        words = ["evaluate-calls", "--endpoint", url, "--data", suite, "--output", out]
        words += ["--temperature", 0.1, "--multi-turn", tmp_path / "score"]
        table = alia(*words)
        found = json.loads(alia(*words, "--json"))["models"]["model"]
        assert alia(*words, "--markdown") == table  # as into a file
    assert "\n- model: template the server's" in table
    assert len(bodies) == 26  # the second time nothing is asked
    assert bodies[0]["temperature"] == 0.1
    assert bodies[0]["tools"][0]["function"]["name"] == "get_value"
    rights = [row["accuracy"] for row in found["rows"]]
    assert rights == [1, 1, 1, 1, 1, 0.5, 1, 1, *[0.25] * 4, 1, 1]
    assert found["categories"]["live_multiple"]["wrong"] == {"wrong_value": 1}
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(lines) == 14
    for line, row in zip(lines, found["rows"], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:2] == [row["metric"], row["category"]]
        counts = f"{row['right']}/{row['total']}"
        low, high = 100 * row["low"], 100 * row["high"]
        shown = f"{100 * row['accuracy']:.1f} [{low:.1f}, {high:.1f}] {counts}"
        assert cells[2:] == [shown, f"{row['card_percent']:.1f}"]
    kept = json.loads((out / "model" / "scores.json").read_text())
    made, content = unsealed(kept, "scores", "")
    assert content["rows"] == found["rows"]
    assert made["model"]["settings"]["temperature"] == 0.1


def test_scores_of_several_folders_join(suite: Path, tmp_path: Path) -> None:
    """By model and category; two of one are refused, whatever the order."""
    base, missing, long_context = (
        tmp_path / name for name in ("base", "missing", "long")
    )
    write_score(base, "multi_turn_base", 1, 4)
    write_score(missing, "multi_turn_miss_func", 2, 4)
    write_score(missing, "multi_turn_miss_param", 3, 4)
    write_score(long_context, "multi_turn_base", 4, 4)
    with served(right_reply, ("a", "b")) as url:
        words = ["evaluate-calls", "a", "b", "--endpoint", url, "--data", suite]
        words += ["--limit", 1, "--output", tmp_path / "out"]

        def options(*folders: str) -> list[str]:
            return [word for one in folders for word in ("--multi-turn", one)]

        def turns(*folders: str) -> dict[str, list[Any]]:
            models = json.loads(alia(*words, "--json", *options(*folders)))["models"]
            return {
                name: [row["accuracy"] for row in models[name]["rows"][8:12]]
                for name in models
            }

        given = f"a={base}", f"b={long_context}", f"a={missing}"
        found = {"a": [0.25, 0.5, 0.75, None], "b": [1, None, None, None]}
        assert turns(*given) == found
        assert turns(*given[::-1]) == found
        older = tmp_path / "data-v3"
        shutil.copytree(suite, older)
        for file in [*older.rglob("BFCL_v4_*")]:
            file.rename(file.with_name(file.name.replace("_v4_", "_v3_")))
        words[words.index(suite)], words[-1] = older, tmp_path / "out-v3"
        table = alia(*words, *options(*given))
        both = (
            "conversations of several turns are those of BFCL v4, the other questions"
        )
        assert table.count(f"{both} of v3") == 2
        words[words.index(older)], words[-1] = suite, tmp_path / "out"
        assert both not in alia(*words, *options(*given))
        both = r"has scores of multi_turn_base, of which a=.*; leave one of them out"
        for clash in (base, long_context):
            with pytest.raises(AliaError, match=both):
                alia(*words, *options(f"a={base}", f"a={missing}", f"a={clash}"))


def test_a_question_that_a_server_refuses_is_wrong(suite: Path, tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> dict[str, Any] | int:
        refused = body["messages"][-1]["content"] == "irrelevance 1?"
        return 400 if refused else right_reply(body)

    with served(reply) as url:
        words = ["--data", suite, "--output", tmp_path / "out", "--json"]
        found = json.loads(alia("evaluate-calls", "--endpoint", url, *words))
    categories = found["models"]["model"]["categories"]
    assert categories["irrelevance"]["wrong"] == {"no_answer": 1}
    assert categories["live_irrelevance"]["accuracy"] == 1


def test_questions_that_fit_and_their_longest_answers_do_not(
    suite: Path, tmp_path: Path
) -> None:
    """As with vLLM, which refuses where question and `max_tokens` are more than its
    context. What is refused for its length alone is asked again the next time: the
    server may have been started with another context.
    """
    context, limits = [1200], []

    def reply(body: dict[str, Any]) -> dict[str, Any] | int:
        text = body["messages"][-1]["content"]
        size = 1100 if text == "irrelevance 1?" else 300
        limits.append(body.get("max_tokens"))
        if size + limits[-1] > context[0]:
            return 400
        return said("Noon.") if text == "What time is it?" else right_reply(body)

    def lenient(body: dict[str, Any]) -> dict[str, Any] | int:
        return reply({"max_tokens": 0, **body})

    def strict(body: dict[str, Any]) -> dict[str, Any] | int:
        return reply(body) if "max_tokens" in body else 422

    words = ["--data", suite, "--categories", "irrelevance,multiple", "--json"]
    for server, right in ((lenient, 2), (strict, 1)):
        context[0] = 1200 if server is lenient else 1110
        out = ["--output", tmp_path / server.__name__]
        with served(server) as url:
            command = ["evaluate-calls", "--endpoint", url, *words, *out]
            found = json.loads(alia(*command))["models"]["model"]["categories"]
            assert found["multiple"]["right"] == 2
            assert found["irrelevance"]["right"] == right
            kept = (tmp_path / server.__name__ / "model" / NAME).read_bytes()
            assert json.loads(alia(*command))["models"]["model"]["categories"] == found
            # Refused as before: nothing is written twice.
            assert (tmp_path / server.__name__ / "model" / NAME).read_bytes() == kept
            context[0] = 4000
            limits.clear()
            found = json.loads(alia(*command))["models"]["model"]["categories"]
            assert found["irrelevance"]["right"] == 2
            assert limits == [1000] * (2 - right)


def test_a_server_without_tools_is_no_wrong_model(suite: Path, tmp_path: Path) -> None:
    """It refuses every question; none of that is kept as an answer."""
    out = tmp_path / "out"
    refused = pytest.raises(AliaError, match=r"the server answers 400: .*refused")
    with served(lambda body: 400) as url, refused:
        alia("evaluate-calls", "--endpoint", url, "--data", suite, "--output", out)
    assert (out / "model" / NAME).read_text().count("\n") == 1


def test_what_is_no_server_or_model(suite: Path, tmp_path: Path) -> None:
    def known(body: dict[str, Any]) -> dict[str, Any] | int:
        return said("No.") if body["model"] in ("a", "b") else 404

    with served(known, ("a", "b")) as url:
        for words, message in (
            (["--endpoint", url], "MODEL: is needed, as .* has several models.*a, b"),
            (
                ["c", "--endpoint", url],
                "MODEL=c: is not one of the models.*to transformers serve it is the path",
            ),
            (["--endpoint", "ftp://x"], "is no http or https address"),
            (["--endpoint", "http://[bad/v1"], r"--endpoint=.*Invalid IPv6 URL"),
            (["--endpoint", "http://x:port/v1"], r"--endpoint=.*Port could not"),
            (["--endpoint", "http://x:99999/v1"], r"--endpoint=.*Port out of range"),
            (["--endpoint", "http://x/v 1"], "has characters that no address may have"),
            (["--endpoint", "http://x/v1?k=1"], "has more than a path"),
            (["--endpoint", "http://me:pw@x/v1"], r"=http://\.\.\.@x/v1: names a user"),
            (["--endpoint", url, "--template", "x"], "is the server's"),
            ([], "MODEL: is needed"),
            ([tmp_path / "none"], "none"),
            (["a", "--endpoint", url, "--multi-turn", "z=."], "z is no model here"),
            (
                ["a", "--categories", "x,multiple,y"],
                r"=x: is no category(.|\n)*=y: is no",
            ),
            (["a", "--categories", ","], "--categories=,: is empty.*multi_turn_base"),
            (["a", "--endpoint", url, "--multi-turn", "a=zz"], "zz: is no folder"),
        ):
            with pytest.raises(AliaError, match=message):
                alia("evaluate-calls", *words, "--data", suite)
    with pytest.raises(AliaError, match="does not answer"):
        alia("evaluate-calls", "--endpoint", url, "--data", suite)
    with pytest.raises(AssertionError, match="inf is no finite number"):
        alia("evaluate-calls", "a", "--data", suite, "--temperature", "inf")
    with pytest.raises(AssertionError, match="has no place beside --json"):
        alia("evaluate-calls", "a", "--data", suite, "--markdown", "--json")


def test_a_name_that_a_server_answers_to_and_does_not_list(
    suite: Path, tmp_path: Path
) -> None:
    """As transformers serve, which lists the models of a cache beside its own."""

    def pinned(body: dict[str, Any]) -> dict[str, Any] | int:
        return said("No.") if body["model"] == "/models/mine" else 400

    words = ["--data", suite, "--output", tmp_path / "out", "--limit", 1]
    words += ["--categories", "irrelevance"]
    with served(pinned, ("cached",)) as url:
        name = "/models/mine"
        shown = alia("evaluate-calls", name, "--endpoint", url, *words, "--json")
        pinned_to = r"case irrelevance_0: .* 400.*to transformers serve it is the path"
        with pytest.raises(AliaError, match=pinned_to):
            alia("evaluate-calls", "--endpoint", url, *words)
    assert json.loads(shown)["models"][name]["rows"]


def test_a_card_has_the_same_of_every_form(suite: Path, tmp_path: Path) -> None:
    """Of Markdown, `--json` and the scores beside the answers: table, data, notes, counts
    of questions without an answer; and no place on this machine.
    """

    def reply(body: dict[str, Any]) -> dict[str, Any] | int:
        text = body["messages"][-1]["content"]
        if text == "What time is it?":  # asked where a batch is refused
            return said("Noon.")
        return 400 if text == "irrelevance 1?" else right_reply(body)

    name, kept = f"{tmp_path}/models/mine", tmp_path / "kept"
    with served(reply, (name,)) as url:
        words = [
            "evaluate-calls",
            name,
            "--endpoint",
            url,
            "--data",
            suite,
            "--limit",
            2,
        ]
        words += ["--categories", "irrelevance,multiple", "--output", kept]
        printed = alia(*words)
        (tmp_path / "scores.md").write_text(printed)
        (tmp_path / "scores.json").write_text(alia(*words, "--json"))
    card = card_evaluation([tmp_path / "scores.json"])
    assert card == card_evaluation([tmp_path / "scores.md"]) == printed.strip()
    for told in (
        "| metric | category | mine | ALIA-40b-fc card |",
        "[ ]: 95% intervals",
        "cases, the first 2 of each category",
        "- mine: template the server's; wrong: no_answer 1",
        "- mine: 1 questions were not answered",
        "(irrelevance 1); the first: the server answers 400",
    ):
        assert told in card, told
    assert str(tmp_path) not in card and "kept" not in card
    # The file beside the answers says of the data only how many cases were asked.
    beside = card_evaluation([*kept.rglob("scores.json")])
    assert beside == card.replace(", the first 2 of each category", "")


@pytest.mark.parametrize("name", ["..", ".", "/".join(["directory"] * 40), "é/" * 90])
def test_whatever_a_model_is_called_its_answers_have_a_folder(
    suite: Path, tmp_path: Path, name: str
) -> None:
    """To transformers serve it is called by a path, of any length."""
    out = tmp_path / "out"
    with served(right_reply, (name, f"{name}x")) as url:
        words = ["evaluate-calls", name, f"{name}x", "--endpoint", url, "--data", suite]
        words += ["--output", out, "--json"]
        found = json.loads(alia(*words))["models"]
        assert json.loads(alia(*words))["models"] == found
    assert list(found) == [name, f"{name}x"]
    folders = [Path(model["answers"]) for model in found.values()]
    assert [folder.parent for folder in folders] == [out, out]
    assert len({folder.resolve() for folder in folders} - {out, tmp_path}) == 2
    assert all((folder / NAME).is_file() for folder in folders)


def test_names_whose_folders_would_be_one(suite: Path, tmp_path: Path) -> None:
    names = ("a/b", "a_b", "a_b (2)")
    out = tmp_path / "out"
    with served(right_reply, names) as url:
        words = ["evaluate-calls", *names, "--endpoint", url, "--data", suite]
        found = json.loads(alia(*words, "--limit", 1, "--output", out, "--json"))
    told = {name: model["model"] for name, model in found["models"].items()}
    assert told == {name: name for name in ("a/b", "a_b (3)", "a_b (2)")}
    folders = [model["answers"] for model in found["models"].values()]
    assert folders == [str(out / name) for name in ("a_b", "a_b (3)", "a_b (2)")]


@pytest.mark.parametrize(
    ("status", "page", "message"),
    [
        (200, "<html>\n<h1>Hello</h1>", "--endpoint=.*: lists no models .status 200"),
        (401, '{"error": {}}', r"OPENAI_API_KEY=\.\.\.: is refused by .*status 401"),
        (403, "no", r"OPENAI_API_KEY=\.\.\.: is refused by .*status 403"),
        (301, "", r"lists no models .status 301"),
    ],
)
def test_a_page_that_is_no_server_s(
    status: int,
    page: str,
    message: str,
    suite: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where MODEL is named, so that no list is needed; in a line each."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    options = ["--data", suite, "--output", tmp_path / "out"]
    with answering(status, page) as url:
        for words in ([], ["model"]):
            with pytest.raises(AliaError) as error:
                alia("evaluate-calls", *words, "--endpoint", url, *options)
            told = str(error.value)
            assert "secret" not in told
            assert told.count("\n") <= 1
            if status in (401, 403) or not words:
                assert re.search(message, told), told
            else:
                assert re.search("no answer of OpenAI's form.*again: answers", told)
    monkeypatch.setenv("OPENAI_API_KEY", "secret\nkey")
    with pytest.raises(AliaError, match=r"=\.\.\.: has characters that no header"):
        alia("evaluate-calls", "--endpoint", url, *options)


@pytest.mark.parametrize(
    ("message", "verdict"),
    [
        (said(None, ("get_value", '{"n": ')), "broken_call"),
        (said(None, ("get_value", "[0]")), "broken_call"),
        *(
            (said(None, ("get_value", given)), "broken_call")  # type: ignore[arg-type]
            for given in ("", " ", "{'n': 0}", None, {"n": 0}, {}, [], 3, True)
        ),
        ({"tool_calls": [{"function": {"name": "get_value"}}]}, "broken_call"),
        ({"tool_calls": [{"function": {"arguments": '{"n": 0}'}}]}, "wrong_function"),
        (said(None, ("get_value", ' {"n": 1, "n": 0}\n')), None),
        ({"content": [{"type": "text", "text": "[get_value(n=0)]"}]}, None),
        ({"content": None}, "no_call"),
        ({"function_call": {"name": "get_value", "arguments": '{"n": 0}'}}, None),
        ({"content": ["x"]}, AliaError),
        ({"tool_calls": ["x"]}, AliaError),
        ({"tool_calls": {"a": 1}}, AliaError),
    ],
)
def test_what_servers_make_of_calls(
    message: dict[str, Any], verdict: Any, suite: Path, tmp_path: Path
) -> None:
    words = ["--data", suite, "--output", tmp_path / "out", "--categories", "multiple"]
    with served(lambda body: message) as url:
        command = ["evaluate-calls", "--endpoint", url, *words, "--limit", 1]
        if verdict is AliaError:
            with pytest.raises(
                AliaError, match=r"multiple_0: no answer of OpenAI's form"
            ):
                alia(*command)
            return
        found = json.loads(alia(*command, "--json"))["models"]["model"]["categories"]
    assert found["multiple"]["wrong"] == ({verdict: 1} if verdict else {})
