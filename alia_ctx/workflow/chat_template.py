"""The chat template that the conversations of a stage were rendered with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

from alia_ctx.config.run import RunConfig
from alia_ctx.data.chat.template import ChatTemplate
from alia_ctx.data.packing import PackPlan
from alia_ctx.data.tokens import TokenStore
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import DataError
from alia_ctx.workflow.chain import run_directory
from alia_ctx.workflow.stores import open_stores


def template_of_stage(run: RunConfig, name: str) -> dict[str, Any] | None:
    """What a checkpoint of the stage states of its chat template: `ChatTemplate.statement`,
    and under `others` the names of templates that fewer of its conversations have. They
    are counted in the rows of its plan, as often as they are trained; before it is packed,
    in its stores. None for a stage without conversations.

    DataError where a store was rendered with another template than the configuration
    has now: a server that shows the model that one would show it what it never saw.
    """
    conversations: Counter[str] = Counter()
    statements: dict[str, dict[str, str]] = {}

    @cache  # one tokenizer for all sources, and none where nothing is a conversation
    def tokenizer() -> HubTokenizer:
        return HubTokenizer(run.tokenizer, run.model.architecture)

    template_called = cache(lambda spec: ChatTemplate(spec, tokenizer()))
    stores = open_stores(run, name)
    trained = _documents(run, name, stores)
    for source, store in stores.items():
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
        if source in trained:
            statements[template.fingerprint] = template.statement()
            conversations[template.fingerprint] += trained[source]
    if not statements:
        return None
    most = max(conversations, key=lambda key: conversations[key])
    others = sorted(s["name"] for key, s in statements.items() if key != most)
    return {**statements[most], **({"others": others} if others else {})}


def _documents(
    run: RunConfig, name: str, stores: Mapping[str, TokenStore]
) -> dict[str, int]:
    """How many documents of each source a stage is trained on, one of two epochs twice;
    a source is missing where its plan has nothing of it.
    """
    directory = run_directory(run).plan(name)
    if not directory.is_dir():
        return {source: store.n_documents for source, store in stores.items()}
    # A source has far more than is drawn of it where a setting of `pack` limits it.
    plan = PackPlan.open(directory, stores, verify=False)  # whoever trains has verified
    return {source: documents for source, _, documents, _ in plan.consumed(len(plan))}
