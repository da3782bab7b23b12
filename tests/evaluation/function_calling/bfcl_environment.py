"""An environment that stands in for that of `bfcl-eval`: what our program of its
multi-turn categories imports, with the shapes of the files that the real one writes.
"""

from __future__ import annotations

import sysconfig
import venv
from pathlib import Path

from alia_ctx.evaluation.function_calling import MULTI_TURN
from tests.evaluation.function_calling.small_suite import write_lines, write_suite

_FILES = {
    "__init__.py": "",
    "constants/__init__.py": "",
    "constants/eval_config.py": """
import os
from pathlib import Path
PROJECT_ROOT = Path(os.environ["BFCL_PROJECT_ROOT"])
PROMPT_PATH = Path(__file__).parents[1] / "data"
""",
    "constants/model_config.py": """
from dataclasses import dataclass
MODEL_CONFIG_MAPPING = {}
@dataclass
class ModelConfig:
    model_name: str
    display_name: str
    url: str
    org: str
    license: str
    model_handler: object
    input_price: object
    output_price: object
    is_fc_model: bool
    underscore_to_dot: bool
""",
    "model_handler/__init__.py": "",
    "model_handler/api_inference/__init__.py": "",
    "model_handler/api_inference/openai_completion.py": """
import json, os, urllib.error, urllib.request
class StatusError(Exception):
    def __init__(self, error):
        self.status_code = error.code
        super().__init__(f"Error code: {error.code} - {error.read().decode()}")
class Client:
    def with_options(self, timeout): return self
class OpenAICompletionsHandler:
    def __init__(self): self.client = Client()
    def write(self, result, result_dir, update_mode=False):
        folder = result_dir / "served" / "multi_turn"
        folder.mkdir(parents=True, exist_ok=True)
        category = result["id"].rpartition("_")[0]
        file = folder / f"BFCL_v4_{category}_result.json"
        there = file.read_text() if update_mode and file.exists() else ""
        with open(file, "w" if update_mode else "a") as stream:
            stream.write(there + json.dumps(result) + "\\n")
    def generate_with_backoff(self, **asked):
        address = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
        try:
            with urllib.request.urlopen(address, json.dumps(asked).encode()) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise StatusError(error) from None
""",
    "utils.py": """
import json
from bfcl_eval.constants.eval_config import PROMPT_PATH
def load_dataset_entry(category):
    return [json.loads(line) for line in open(PROMPT_PATH / f"BFCL_v4_{category}.json")]
""",
    # A question is one request; what the openai package would raise is kept as it is.
    "_llm_response_generation.py": """
import json
from bfcl_eval.constants.eval_config import PROJECT_ROOT
from bfcl_eval.constants.model_config import MODEL_CONFIG_MAPPING
def main(args):
    (name,) = args.model
    folder = PROJECT_ROOT / "result"
    handler = MODEL_CONFIG_MAPPING[name].model_handler()
    wanted = json.loads((PROJECT_ROOT / "test_case_ids_to_generate.json").read_text())
    for category, ids in wanted.items():
        files = folder.rglob(f"BFCL_v4_{category}_result.json")
        there = [row["id"] for file in files for row in rows_of(file)]
        for one in [one for one in ids if one not in there]:
            answer = {"id": one, **asked(one, MODEL_CONFIG_MAPPING[name])}
            handler.write(answer, folder, update_mode=args.run_ids)
    for file in folder.rglob("BFCL_v4_*_result.json"):
        sort_file_content_by_id(file)
def rows_of(file):
    return [json.loads(line) for line in open(file)]
def sort_file_content_by_id(file):
    there = rows_of(file)
    rows = sorted(there, key=lambda row: row["id"])
    if rows != there:
        lines = [json.dumps(row, ensure_ascii=False) + "\\n" for row in rows]
        file.write_text("".join(lines), encoding="utf-8")
def asked(one, config):
    message = {"role": "user", "content": one}
    parameters = {"type": "object", "properties": {}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    words = {"model": config.model_name, "messages": [message], "tools": [tool]}
    try:
        answer = config.model_handler().generate_with_backoff(**words)
        return {"result": [[answer["choices"][0]["message"].get("content")]]}
    except Exception as error:
        kind = "InternalServerError" if error.status_code >= 500 else "BadRequestError"
        told = f"Error during inference: {error}"
        return {"result": told, "traceback": f"openai.{kind}"}
""",
    "eval_checker/__init__.py": "",
    "eval_checker/eval_runner.py": """
import json
from bfcl_eval.constants.eval_config import PROJECT_ROOT
def main(models, categories, result_dir, score_dir, partial_eval):
    for category in categories:
        (file,) = (PROJECT_ROOT / result_dir / models[0]).rglob(f"*_{category}_result.json")
        rows = [json.loads(line) for line in open(file)]
        wrong = [row for row in rows if row["result"] != [["right"]]]
        kind = "multi_turn:empty_turn_model_response"
        head = {"correct_count": len(rows) - len(wrong), "total_count": len(rows)}
        lines = [head, *(
            {"id": row["id"], "valid": False, "error": {"error_type": kind},
             "model_result": row["result"]} for row in wrong
        )]
        score = PROJECT_ROOT / score_dir / models[0] / f"BFCL_v4_{category}_score.json"
        score.parent.mkdir(parents=True, exist_ok=True)
        score.write_text("".join(json.dumps(line) + "\\n" for line in lines))
""",
}


def write_environment(folder: Path, each: int = 3) -> Path:
    """A virtual environment with `each` conversations of each multi-turn category, and
    the small suite.
    """
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    for name, text in _FILES.items():
        file = site / "bfcl_eval" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    data = write_suite(site / "bfcl_eval" / "data")
    for category in MULTI_TURN:
        rows = [{"id": f"{category}_{index}"} for index in range(each)]
        write_lines(data / f"BFCL_v4_{category}.json", rows)
    stated = site / "bfcl_eval-1.0.dist-info" / "METADATA"
    stated.parent.mkdir()
    stated.write_text("Metadata-Version: 2.1\nName: bfcl-eval\nVersion: 1.0\n")
    return folder
