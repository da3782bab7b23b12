"""BFCL's multi-turn categories against a served model: the benchmark's own program.

Runs in an environment that has `bfcl-eval` (`make venv-bfcl`), and imports nothing of
ours; `alia-ctx evaluate-calls --bfcl-env` starts it. By hand:

    .venv-bfcl/bin/python -I bfcl_program.py --endpoint http://localhost:8000/v1 \
        --model NAME --output runs/bfcl

`bfcl-eval` only knows models by its list; this adds one that speaks OpenAI's interface
with tools, then generates and evaluates. Answers that are there are kept. The scores go
below OUTPUT/score, which `alia-ctx evaluate-calls --multi-turn` reads.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import threading
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
CATEGORIES = (
    "multi_turn_base",
    "multi_turn_miss_func",
    "multi_turn_miss_param",
    "multi_turn_long_context",
)
NAME = "served"  # of the model in bfcl-eval's list


def refuse_errors(results: Path) -> None:
    """`bfcl-eval` takes a server that does not answer for a wrong answer of the model's,
    and keeps it. Such answers are taken out here, so that the next run asks again.
    """
    failed = 0
    for file in results.rglob("BFCL_v*_multi_turn_*_result.json"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        traces = [str(json.loads(line).get("traceback", "")) for line in lines]
        kept = [
            line
            for line, trace in zip(lines, traces, strict=True)
            if not any(fault in trace for fault in _FAULTS)
        ]
        failed += len(lines) - len(kept)
        if len(kept) < len(lines):
            scratch = file.with_suffix(".tmp")
            scratch.write_text("".join(kept), encoding="utf-8")
            scratch.replace(file)
    if failed:
        raise SystemExit(
            f"{failed} conversations ended as the server did not answer, and have no "
            "score; mend it, and start again: the others are kept"
        )


def choose(results: Path, chosen: Path, ids: dict[str, list[str]]) -> None:
    """Copy the results of `ids` (category -> conversations), as a larger limit may have
    left others: what is scored is what was asked.
    """
    shutil.rmtree(chosen, ignore_errors=True)
    for category, wanted in ids.items():
        (file,) = results.rglob(f"BFCL_v*_{category}_result.json")
        lines = file.read_text(encoding="utf-8").splitlines()
        by_id = {json.loads(line)["id"]: line for line in lines}
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
        def generate_with_backoff(self, **asked: Any) -> Any:
            """The original says no length, and some servers go on past the context."""
            if options.max_tokens:
                asked["max_tokens"] = options.max_tokens
            return super().generate_with_backoff(**asked)

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
    refuse_errors(output / "result" / NAME)
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
