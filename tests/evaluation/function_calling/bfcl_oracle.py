"""The original's own answers; runs in the environment of `bfcl-eval` (`make venv-bfcl`)
and imports nothing of ours. Standard input: lines of JSON; standard output: one answer
for each.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import json
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):
        from bfcl_eval.constants.enums import Language, ModelStyle
        from bfcl_eval.constants.model_config import MODEL_CONFIG_MAPPING
        from bfcl_eval.constants.type_mappings import GORILLA_TO_OPENAPI
        from bfcl_eval.eval_checker import eval_runner_helper
        from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
        from bfcl_eval.eval_checker.ast_eval.type_convertor import (
            java_type_converter as java,
        )
        from bfcl_eval.eval_checker.ast_eval.type_convertor import (
            js_type_converter as js,
        )
        from bfcl_eval.model_handler.api_inference.openai_completion import (
            OpenAICompletionsHandler,
        )
        from bfcl_eval.model_handler.utils import convert_to_tool
        from bfcl_eval.utils import (
            add_language_specific_hint_to_function_doc,
            is_empty_output,
        )
        from openai._models import construct_type
        from openai.types.chat import ChatCompletion

    renames = {
        config.underscore_to_dot: n for n, config in MODEL_CONFIG_MAPPING.items()
    }

    def verdict(asked: dict[str, Any]) -> dict[str, Any]:
        try:
            found = ast_checker(
                asked["functions"],
                [{name: arguments} for name, arguments in asked["calls"]],
                asked["accepted"],
                Language(asked["language"]),
                asked["category"],
                renames[asked["rename"]].replace("/", "_"),
            )
        except Exception as error:
            return {"raises": repr(error)}
        return {"valid": found["valid"], "why": found.get("error_type", "")}

    converters = {"java": java.java_type_converter, "javascript": js.js_type_converter}

    def value(asked: dict[str, Any]) -> str:
        convert = converters[asked["language"]]
        try:
            return repr(convert(asked["text"], asked["type"], asked["items"]))
        except Exception as error:
            return f"raises {error!r}"

    def tools(asked: dict[str, Any]) -> Any:
        (entry,) = add_language_specific_hint_to_function_doc(
            [{"id": asked["id"], "function": asked["functions"]}]
        )
        style = ModelStyle.OPENAI_COMPLETIONS
        return convert_to_tool(entry["function"], GORILLA_TO_OPENAPI, style)

    def summary(asked: dict[str, Any]) -> dict[str, str]:
        with tempfile.TemporaryDirectory() as folder:
            scores = {renames[False].replace("/", "_"): copy.deepcopy(asked["scores"])}
            eval_runner_helper.generate_leaderboard_csv(scores, Path(folder))
            merged: dict[str, str] = {}
            for name in ("non_live", "live", "multi_turn", "overall"):
                with open(Path(folder, f"data_{name}.csv")) as stream:
                    (row,) = csv.DictReader(stream)
                merged |= {f"{name}:{key}": value for key, value in row.items()}
            return merged

    handler = OpenAICompletionsHandler.__new__(OpenAICompletionsHandler)
    handler.is_fc_model = True

    def calls(asked: dict[str, Any]) -> Any:
        """Of a server's message; None where the original finds none."""
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        answer = {"choices": [{"message": asked["message"]}], "usage": usage}
        read = construct_type(type_=ChatCompletion, value=answer)
        kept = handler._parse_query_response_FC(read)["model_responses"]
        try:
            found = handler.decode_ast(json.loads(json.dumps(kept)), "python", False)
        except Exception:
            return None
        return None if is_empty_output(found) else found

    kinds = {
        "calls": calls,
        "verdict": verdict,
        "value": value,
        "tools": tools,
        "summary": summary,
    }
    for line in sys.stdin:
        asked = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            answer = kinds[asked["kind"]](asked)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
