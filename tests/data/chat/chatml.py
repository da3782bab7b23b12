"""ChatML with tools, written out by hand: what the shipped template must render."""

from __future__ import annotations

from tests.data.chat.talks import Case, dumps


def chatml(case: Case) -> list[tuple[str, bool]]:
    """The text of the shipped template, written out by hand: pieces, and whether the
    assistant says them.
    """
    pieces: list[tuple[str, bool]] = []
    messages = [*case.messages]
    system = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
    if case.tools:
        text = f"{system}\n\n" if system is not None else ""
        text += (
            "# Tools\n\nYou may call one or more functions to assist with the user query."
            "\n\nYou are provided with function signatures within <tools></tools> XML "
            "tags:\n<tools>"
        )
        for tool in case.tools:
            function = tool.get("function", tool)
            function = {k: v for k, v in function.items() if k != "type"}
            text += "\n" + dumps({"type": "function", "function": function})
        text += (
            "\n</tools>\n\nFor each function call, return a json object with function name "
            "and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
            '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
        )
        pieces.append((f"<|im_start|>system\n{text}<|im_end|>\n", False))
    elif system is not None:
        pieces.append((f"<|im_start|>system\n{system}<|im_end|>\n", False))
    before = None
    for number, message in enumerate(messages):
        role = message["role"]
        if role == "user":
            pieces.append(
                (f"<|im_start|>user\n{message['content']}<|im_end|>\n", False)
            )
        elif role == "tool":
            text = "" if before == "tool" else "<|im_start|>user"
            text += f"\n<tool_response>\n{message['content']}\n</tool_response>"
            last = number + 1 == len(messages) or messages[number + 1]["role"] != "tool"
            pieces.append((text + ("<|im_end|>\n" if last else ""), False))
        else:
            parts = [message["content"]] if message.get("content") else []
            parts += [
                f'<tool_call>\n{{"name": {dumps(call["function"]["name"])}, "arguments": '
                f"{dumps(call['function']['arguments'])}}}\n</tool_call>"
                for call in message.get("tool_calls", [])
            ]
            pieces.append(("<|im_start|>assistant\n", False))
            pieces.append(("\n".join(parts) + "<|im_end|>", True))
            pieces.append(("\n", False))
        before = role
    return pieces
