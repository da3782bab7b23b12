"""What the configuration puts around documents, beside what the tokenizer puts around a text
by itself, as it will around prompts of the exported model.
"""

from __future__ import annotations

from alia_ctx.config.run import RunConfig
from alia_ctx.data.tokens.tokenizer import HubTokenizer, puts_around


def delimiter_notes(run: RunConfig) -> list[str]:
    """Where the two differ, a line for each. An end that the configuration alone puts is
    as usual: documents end, and prompts do not. Of conversations the template decides, and
    of stores that are used as they are whoever made them.
    """
    made = [spec for spec in run.data.sources.values() if spec.inputs]
    if all(spec.chat is not None for spec in made) or run.deferred(run.tokenizer):
        return []
    try:
        tokenizer = HubTokenizer(run.tokenizer, run.model.architecture).auto
        bos, eos = puts_around(tokenizer)
    # What is wrong with a tokenizer is said where it is compared with the model.
    except Exception:
        return []
    notes, own = [], run.data.prepend_bos
    exported = "prompts of the exported model, which has this tokenizer,"
    if own and not bos:
        notes.append(
            "data.prepend_bos: true, and the tokenizer by itself puts no begin-of-text token "
            f"before a text: {exported} begin otherwise than the documents of training did; "
            "false is what it does"
        )
    if bos and not own:
        notes.append(
            f"data.prepend_bos: false, and the tokenizer by itself puts {tokenizer.bos_token} "
            f"before a text: {exported} begin otherwise than the documents of training did; "
            "true is what it does"
        )
    if eos and not run.data.append_eos:
        notes.append(
            f"data.append_eos: false, and the tokenizer by itself puts {tokenizer.eos_token} "
            f"behind a text: {exported} end otherwise than the documents of training did; "
            "true is what it does"
        )
    return notes
