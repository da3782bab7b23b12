"""BFCL's multi-turn categories against a served model: the benchmark's own program.

Runs in the environment of `bfcl-eval` (`make venv-bfcl`) and imports nothing of ours:

    .venv-bfcl/bin/python scripts/bfcl_multi_turn.py --endpoint http://localhost:8000/v1 \
        --model NAME --output runs/bfcl

`bfcl-eval` only knows models by its list; this adds one that speaks OpenAI's interface
with tools, then generates and evaluates. Answers that are there are kept. The scores go
below OUTPUT/score, which `alia-ctx evaluate-calls --multi-turn` reads.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from types import SimpleNamespace

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
CATEGORIES = ("base", "miss_func", "miss_param", "long_context")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True, help="as http://HOST:PORT/v1")
    parser.add_argument("--model", required=True, help="its name at the endpoint")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.001)
    parser.add_argument("--limit", type=int, help="the first N cases of each category")
    options = parser.parse_args()
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    # Read by bfcl_eval as it is imported, and by the openai package.
    os.environ["BFCL_PROJECT_ROOT"] = str(output)
    os.environ["OPENAI_BASE_URL"] = options.endpoint
    os.environ.setdefault("OPENAI_API_KEY", "none")

    from bfcl_eval import _llm_response_generation as generation
    from bfcl_eval.constants.model_config import MODEL_CONFIG_MAPPING, ModelConfig
    from bfcl_eval.eval_checker import eval_runner
    from bfcl_eval.model_handler.api_inference.openai_completion import (
        OpenAICompletionsHandler,
    )
    from bfcl_eval.utils import load_dataset_entry

    name = "served"
    MODEL_CONFIG_MAPPING[name] = ModelConfig(
        model_name=options.model,
        display_name=options.model,
        url="",
        org="",
        license="",
        model_handler=OpenAICompletionsHandler,
        input_price=None,
        output_price=None,
        is_fc_model=True,
        underscore_to_dot=True,
    )
    categories = [f"multi_turn_{category}" for category in CATEGORIES]
    if options.limit:
        ids = {
            category: [entry["id"] for entry in load_dataset_entry(category)]
            for category in categories
        }
        chosen = {key: value[: options.limit] for key, value in ids.items()}
        (output / "test_case_ids_to_generate.json").write_text(json.dumps(chosen))
    generation.main(
        SimpleNamespace(
            model=[name],
            test_category=categories,
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
            run_ids=bool(options.limit),
            enable_lora=False,
            max_lora_rank=None,
            lora_modules=None,
        )
    )
    refuse_errors(output / "result" / name)
    eval_runner.main([name], categories, None, None, partial_eval=bool(options.limit))
    print(f"scores: {output / 'score' / name}")


if __name__ == "__main__":
    main()
