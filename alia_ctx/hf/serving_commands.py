"""The commands that serve an export, for its length and its RoPE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.hf.server_rope import LLAMA_CPP, SGLANG, VLLM, other_ropes
from alia_ctx.hf.serving import HIGHEST_TEMPERATURE, TEMPERATURE
from alia_ctx.spec.rope import RopeSpec

_GB = 1e9
QUESTION = "What is the weather like in Girona?"
_MESSAGES = f'[{{"role": "user", "content": "{QUESTION}"}}]'
TOOLS = """[
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather at a place.",
            "parameters": {
                "type": "object",
                "properties": {"location": {"type": "string"}},
                "required": ["location"],
            },
        },
    }
]"""
# One name for all servers: transformers serve, vLLM and SGLang take the path that they are
# given for the model's name, and transformers serve refuses any other. What it lists are
# the models of the Hugging Face cache, so a client must not ask for the list.
_CLIENT = """import os

from openai import OpenAI

client = OpenAI(base_url="http://localhost:8000/v1/", api_key="none")
answer = client.chat.completions.create(
    model=os.environ["MODEL"],
    messages=MESSAGES,
    tools=TOOLS,
    temperature=TEMPERATURE,
)
print(answer.choices[0].message)
"""
_PIPELINE = """import os

from transformers import pipeline

tools = TOOLS
messages = MESSAGES
pipe = pipeline("text-generation", model=os.environ["MODEL"], device_map="auto")
answer = pipe(messages, tools=tools, max_new_tokens=512)[0]["generated_text"][-1]
print(answer)
"""
# `prefix`: without the prompt transformers' parse_response raises ValueError, as templates
# may begin the turn that it reads (its tokenization_utils_base).
_GENERATE = """import os

from transformers import AutoModelForCausalLM, AutoTokenizer

tools = TOOLS
messages = MESSAGES
tokenizer = AutoTokenizer.from_pretrained(os.environ["MODEL"])
model = AutoModelForCausalLM.from_pretrained(os.environ["MODEL"], device_map="auto")
inputs = tokenizer.apply_chat_template(
    messages,
    tools=tools,
    add_generation_prompt=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device)
outputs = model.generate(**inputs, max_new_tokens=512)
prompt = inputs["input_ids"][0]
answer = tokenizer.parse_response(outputs[0, len(prompt) :], prefix=prompt)
print(answer)
"""


def client_snippet(has_calls: bool) -> str:
    """A program that asks any of the servers, by the `openai` package."""
    text = _CLIENT.replace("TEMPERATURE", f"{TEMPERATURE}")
    return _filled(text if has_calls else text.replace("    tools=TOOLS,\n", ""))


def pipeline_snippet(has_calls: bool) -> str:
    """A program that asks the model by transformers' `pipeline`."""
    if has_calls:
        return _filled(_PIPELINE)
    without = _PIPELINE.replace("tools = TOOLS\n", "").replace(" tools=tools,", "")
    return _filled(without)


def generate_snippet() -> str:
    """A program that asks a model that makes calls by `AutoModelForCausalLM`, and reads
    its answer by `parse_response`.
    """
    return _filled(_GENERATE)


def _filled(text: str) -> str:
    text = text.replace("    tools=TOOLS", f"    tools={TOOLS.replace('\n', '\n    ')}")
    return text.replace("TOOLS", TOOLS).replace("MESSAGES", _MESSAGES)


def serving_lines(
    manifest: Manifest,
    weight_bytes: int,
    itemsize: int,
    *,
    has_template: bool,
    has_calls: bool,
) -> list[str]:
    """Markdown: commands for transformers, vLLM, SGLang, Docker and llama.cpp. In place of
    those of a server that would compute another RoPE stands why.

    Args:
        manifest: of the exported checkpoint.
        weight_bytes: of all exported weights.
        itemsize: bytes of a value in the dtype that config.json states.
        has_template: there is a chat template.
        has_calls: its calls are those that the `hermes` parsers read.
    """
    context = manifest.context
    vllm = f"--max-model-len {context}"
    sglang = f"--context-length {context}"
    if has_calls:
        vllm += " --enable-auto-tool-choice --tool-call-parser hermes"
        sglang += " --tool-call-parser hermes"
    others = other_ropes(manifest.model.architecture, manifest.rope, context)
    commands = {
        VLLM: [
            "# vLLM, from pip or as a Docker image",
            f'vllm serve "$MODEL" {vllm}',
            'docker run --gpus all --ipc=host -p 8000:8000 -v "$MODEL":/model \\',
            '    vllm/vllm-openai:latest --model /model --served-model-name "$MODEL" \\',
            f"    {vllm}",
        ],
        SGLANG: [
            "# SGLang, from pip or as a Docker image",
            'python3 -m sglang.launch_server --model-path "$MODEL" --port 8000 \\',
            f"    {sglang}",
            "docker run --gpus all --shm-size 32g --ipc=host -p 8000:8000 \\",
            '    -v "$MODEL":/model lmsysorg/sglang:latest \\',
            "    python3 -m sglang.launch_server --model-path /model --host 0.0.0.0 \\",
            f'    --served-model-name "$MODEL" --port 8000 {sglang}',
        ],
        LLAMA_CPP: [
            "# llama.cpp, and with it Docker Model Runner",
            'python3 convert_hf_to_gguf.py "$MODEL" --outtype bf16 --outfile model.gguf',
            f"llama-server -m model.gguf --jinja -c {context} --port 8000",
            'docker model package --gguf "$PWD/model.gguf" alia && docker model run alia',
        ],
    }
    lines = [
        *_memory_lines(manifest, weight_bytes, itemsize, others),
        *_rope_lines(manifest.rope, context, others),
        "",
        "```bash",
        "export MODEL=/path/of/this/directory",
        "",
        "# transformers 5, with what `pip install 'transformers[serving]'` brings",
        'transformers serve "$MODEL" --port 8000',
    ]
    for server, its_commands in commands.items():
        refused = [f"# not for {server}: {others[server]}"] if server in others else []
        lines += ["", *(refused or its_commands)]
    lines.append("```")
    if has_template:
        lines += [
            "",
            "Ask it through `/v1/chat/completions`, where a server applies the chat",
            "template, with a temperature from 0.0 to "
            f"{HIGHEST_TEMPERATURE}; generation_config.json says {TEMPERATURE} if the",
            "model was trained on conversations. To each server its name is that path:",
            "",
            *_python(client_snippet(has_calls)),
            "",
            "Without a server, with `pip install transformers accelerate` (transformers 5)",
            "and `MODEL` set as above:",
            "",
            *_python(pipeline_snippet(has_calls)),
        ]
    if has_calls:
        lines += [
            "",
            "The same by hand. `parse_response` needs the prompt as `prefix`; what it",
            "returns is a message with `tool_calls`, which goes back with each tool's",
            "result (`role: tool`) behind it:",
            "",
            *_python(generate_snippet()),
        ]
    return lines


def _python(program: str) -> list[str]:
    return ["```python", *program.splitlines(), "```"]


def _memory_lines(
    manifest: Manifest, weight_bytes: int, itemsize: int, others: Mapping[str, str]
) -> Iterator[str]:
    model, context = manifest.model, manifest.context
    token = (
        2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim
    ) * itemsize
    options = {VLLM: "--tensor-parallel-size N", SGLANG: "--tp N"}
    given = [f"{name} `{how}`" for name, how in options.items() if name not in others]
    yield (
        f"The weights take {_size(weight_bytes / _GB)}, keys and values {token:,} bytes a "
        f"token: {_size(token * context / _GB)} for one sequence of {context:,} tokens."
        + (
            f" Over several GPUs give {', '.join(given)}, with N a divisor of "
            f"{model.num_key_value_heads}, the number of KV heads."
            if given
            else ""
        )
    )


def _size(gigabytes: float) -> str:
    if gigabytes < 0.1:
        return f"{1000 * gigabytes:,.1f} MB"
    return f"{gigabytes:,.1f} GB"


def _rope_lines(
    rope: RopeSpec, context: int, others: Mapping[str, str]
) -> Iterator[str]:
    """What a server makes of the RoPE in config.json, from vLLM's `_get_and_verify_max_len`
    and SGLang's `get_context_length`.
    """
    yield (
        f"config.json describes the RoPE ({rope.type}): override nothing of it. The "
        f"length is given to each server, {context:,} tokens, as the model was trained."
    )
    # Linear multiplies max_position_embeddings, YaRN the original length.
    of = rope.original_max_position_embeddings if rope.type == "yarn" else context
    if rope.type in ("linear", "yarn") and of and rope.factor and VLLM not in others:
        reach = int(of * rope.factor)
        if reach > context:
            yield (
                f"Without it vLLM takes {of:,} times the factor of {rope.type}, and "
                f"promises {reach:,} tokens, which were never trained."
            )
        elif reach < context:
            yield f"Without it vLLM takes {of:,} times the factor, {reach:,} tokens."
    if rope.type == "dynamic":
        yield "Servers differ in what they make of it: see the head of this card."
