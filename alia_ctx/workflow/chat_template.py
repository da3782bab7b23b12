"""The chat template that the conversations of a stage were rendered with."""

from __future__ import annotations

from functools import cache
from typing import Any

from alia_ctx.config.run import RunConfig
from alia_ctx.data.chat.template import ChatTemplate
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import DataError
from alia_ctx.workflow.stores import open_stores


def template_of_stage(run: RunConfig, name: str) -> dict[str, Any] | None:
    """What a checkpoint of the stage states of its chat template: `ChatTemplate.statement`,
    and under `others` the names of templates that fewer of its conversations have. None
    for a stage without conversations.

    DataError where a store was rendered with another template than the configuration
    has now: a server that shows the model that one would show it what it never saw.
    """
    conversations: dict[str, int] = {}
    statements: dict[str, dict[str, str]] = {}

    @cache  # one tokenizer for all sources, and none where nothing is a conversation
    def tokenizer() -> HubTokenizer:
        return HubTokenizer(run.tokenizer, run.model.architecture)

    template_called = cache(lambda spec: ChatTemplate(spec, tokenizer()))
    for source, store in open_stores(run, name).items():
        chat = run.data.sources[source].chat
        if chat is None:
            continue
        template = template_called(chat.template)
        identity = store.sidecar.get("identity")
        stated = identity.get("template") if isinstance(identity, dict) else None
        there = stated.get("fingerprint") if isinstance(stated, dict) else None
        if there not in (None, template.fingerprint):
            raise DataError(
                f"{store.prefix}: was rendered with another chat template than "
                f"data.sources.{source}.chat.template={chat.template} is now; restore "
                "it, or make the store anew with `alia-ctx tokenize CONFIG --source "
                f"{source} --overwrite`"
            )
        key = template.fingerprint
        statements[key] = template.statement()
        conversations[key] = conversations.get(key, 0) + store.n_documents
    if not statements:
        return None
    most = max(conversations, key=lambda key: conversations[key])
    others = sorted(s["name"] for key, s in statements.items() if key != most)
    return {**statements[most], **({"others": others} if others else {})}
