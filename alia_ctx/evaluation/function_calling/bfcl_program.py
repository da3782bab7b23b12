"""BFCL's multi-turn categories against a served model: the benchmark's own program.

Runs in an environment that has `bfcl-eval` (`make venv-bfcl`), and imports nothing of
ours; `alia-ctx evaluate-calls --bfcl-env` starts it. By hand:

    .venv-bfcl/bin/python -I -X utf8 bfcl_program.py --endpoint http://localhost:8000/v1 \
        --model NAME --output runs/bfcl

`bfcl-eval` only knows models by its list; this adds one that speaks OpenAI's interface
with tools, then generates and evaluates. Answers that are there are kept. The scores go
below OUTPUT/score, which `alia-ctx evaluate-calls --multi-turn` reads.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# What the openai package raises where it is the server's fault, or that of whoever
# started it. A request that is refused (a conversation too long) and calls that are no
# JSON are the model's, and score as wrong.
_FAULTS = (
    "openai.APIConnectionError",
    "openai.APITimeoutError",
    "openai.InternalServerError",
    "openai.AuthenticationError",
    "openai.PermissionDeniedError",
    "openai.NotFoundError",
    "openai.RateLimitError",
)
# A request that the server refuses itself, and what bfcl-eval keeps of it.
_REFUSED = (400, 413, 422)
_KEPT_REFUSAL = re.compile(r"Error during inference: Error code: (400|413|422)\b")
# What is asked for where a conversation fits and its longest answer does not; as in
# alia_ctx/workflow/call_endpoint.py.
_LESS = (256, 64, 16)
# A server answers several at a time, and an answer that is given up is written anyway.
_TIMEOUT_SECONDS = 3600.0
CATEGORIES = (
    "multi_turn_base",
    "multi_turn_miss_func",
    "multi_turn_miss_param",
    "multi_turn_long_context",
)
NAME = "served"  # of the model in bfcl-eval's list


def take_out(results: Path, is_no_answer: Callable[[Any], bool]) -> int:
    """Take answers out of the files of results, so that the next run asks again, and lines
    that were not written whole; how many there were.
    """

    def is_kept(line: str) -> bool:
        try:
            return not is_no_answer(json.loads(line))
        except ValueError:
            return False

    count = 0
    for file in results.rglob("BFCL_v*_multi_turn_*_result.json"):
        text = file.read_text(encoding="utf-8", errors="replace")
        *lines, torn = text.split("\n")  # no other letter ends a line of JSON
        kept = [line for line in lines if is_kept(line)]
        if gone := len(lines) + bool(torn) - len(kept):
            count += gone
            scratch = file.with_suffix(".tmp")
            scratch.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            scratch.replace(file)
    return count


def is_failure(answer: dict[str, Any]) -> bool:
    """Whether it is the server's: `bfcl-eval` takes one that does not answer for a wrong
    answer of the model's, and keeps it.
    """
    trace = str(answer.get("traceback", ""))
    return any(fault in trace for fault in _FAULTS)


def is_refusal(answer: dict[str, Any]) -> bool:
    """Whether the server refused the request itself."""
    return _KEPT_REFUSAL.match(str(answer.get("result"))) is not None


def most_tokens(most: int | None) -> list[int | None]:
    """Most tokens of an answer to ask for, in turn, as long as it is refused."""
    return [most, None, *(n for n in _LESS if n < most)] if most else [None]


def choose(results: Path, chosen: Path, ids: dict[str, list[str]]) -> None:
    """Copy the results of `ids` (category -> conversations), as a larger limit may have
    left others: what is scored is what was asked.
    """
    shutil.rmtree(chosen, ignore_errors=True)
    for category, wanted in ids.items():
        (file,) = results.rglob(f"BFCL_v*_{category}_result.json")
        lines = file.read_text(encoding="utf-8").split("\n")
        by_id = {json.loads(line)["id"]: line for line in lines if line}
        missing = [name for name in wanted if name not in by_id]
        if missing:
            raise SystemExit(
                f"{file}: has no answer of {len(missing)} conversations, as "
                f"{missing[0]}; start again: the others are kept"
            )
        copy = chosen / file.relative_to(results)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{by_id[name]}\n" for name in wanted)
        copy.write_text(text, encoding="utf-8")


def end_with_parent() -> None:
    """However the process ends that started this one, its pipe is closed then."""

    def wait() -> None:
        # Not sys.stdin: Python ends with a fatal error where a thread holds its lock.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run(options: argparse.Namespace) -> None:
    """Generate what is not there yet, and score the conversations that are asked for."""
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    # Read by bfcl_eval as it is imported, and by the openai package.
    os.environ["BFCL_PROJECT_ROOT"] = str(output)
    os.environ["OPENAI_BASE_URL"] = options.endpoint or ""
    os.environ.setdefault("OPENAI_API_KEY", "none")

    from bfcl_eval import _llm_response_generation as generation
    from bfcl_eval.constants.eval_config import PROMPT_PATH
    from bfcl_eval.constants.model_config import MODEL_CONFIG_MAPPING, ModelConfig
    from bfcl_eval.eval_checker import eval_runner
    from bfcl_eval.model_handler.api_inference.openai_completion import (
        OpenAICompletionsHandler,
    )
    from bfcl_eval.utils import load_dataset_entry

    class Handler(OpenAICompletionsHandler):  # type: ignore[misc]
        def __init__(self, *words: Any, **named: Any) -> None:
            super().__init__(*words, **named)
            self.client: Any = self.client.with_options(timeout=_TIMEOUT_SECONDS)

        def generate_with_backoff(self, **asked: Any) -> Any:
            """The original says no length, and some servers go on past the context."""
            refused: Exception | None = None
            for most in most_tokens(options.max_tokens):
                limit = {} if most is None else {"max_tokens": most}
                try:
                    return super().generate_with_backoff(**asked, **limit)
                except Exception as error:  # of the openai package
                    if getattr(error, "status_code", None) not in _REFUSED:
                        raise
                    refused = refused or error
            assert refused is not None
            raise refused

        def write(
            self, result: Any, result_dir: Any, update_mode: bool = False
        ) -> None:
            """Behind the others: where ids are asked for, the original writes the whole
            file anew with each answer, and whatever ends it then takes them all along.
            """
            super().write(result, result_dir, update_mode=False)

    # The same, at the end: `choose` puts them in order.
    generation.sort_file_content_by_id = lambda file: None
    names = [name for name in options.categories.split(",") if name]
    entries = {name: [row["id"] for row in load_dataset_entry(name)] for name in names}
    if options.check:
        sizes = {name: len(rows) for name, rows in entries.items()}
        found = {"version": version("bfcl-eval"), "data": str(PROMPT_PATH)}
        print(json.dumps({**found, "sizes": sizes}))
        return
    config: dict[str, Any] = {
        "model_name": options.model,
        "display_name": options.model,
        **dict.fromkeys(("url", "org", "license"), ""),
        "model_handler": Handler,
        **dict.fromkeys(("input_price", "output_price")),
        "is_fc_model": True,
        "underscore_to_dot": True,
    }
    MODEL_CONFIG_MAPPING[NAME] = ModelConfig(**config)
    ids = {name: rows[: options.limit] for name, rows in entries.items()}
    (output / "test_case_ids_to_generate.json").write_text(json.dumps(ids))
    # What a kill left, and what a server that was started otherwise may answer now.
    take_out(
        output / "result", is_refusal if options.refused_again else lambda _: False
    )
    generation.main(
        SimpleNamespace(
            model=[NAME],
            test_category=names,
            temperature=options.temperature,
            include_input_log=False,
            exclude_state_log=True,
            num_gpus=1,
            num_threads=options.threads,
            gpu_memory_utilization=0.9,
            backend="vllm",
            skip_server_setup=True,
            local_model_path=None,
            result_dir=None,
            allow_overwrite=False,
            run_ids=True,
            enable_lora=False,
            max_lora_rank=None,
            lora_modules=None,
        )
    )
    if failed := take_out(output / "result" / NAME, is_failure):
        raise SystemExit(
            f"{failed} conversations ended as the server did not answer, and have no "
            "score; mend it, and start again: the others are kept"
        )
    choose(output / "result" / NAME, output / "chosen" / NAME, ids)
    shutil.rmtree(output / "score" / NAME, ignore_errors=True)
    eval_runner.main([NAME], names, "chosen", "score", partial_eval=True)
    print(f"scores: {output / 'score' / NAME}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", help="as http://HOST:PORT/v1")
    parser.add_argument("--model", help="its name at the endpoint")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--categories", default=",".join(CATEGORIES))
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.001)
    parser.add_argument("--max-tokens", type=int, help="most tokens of an answer")
    parser.add_argument("--limit", type=int, help="the first N cases of each category")
    parser.add_argument(
        "--refused-again",
        action="store_true",
        help="ask what the server refused before",
    )
    parser.add_argument("--check", action="store_true", help="only say what is here")
    parser.add_argument("--piped", action="store_true", help="end with standard input")
    options = parser.parse_args()
    if options.piped:
        end_with_parent()
    if not options.check and not (options.endpoint and options.model):
        parser.error("--endpoint and --model are needed")
    run(options)


if __name__ == "__main__":
    main()
