"""Conversations -> documents with masks: forms of data sets, templates, proven masks, stores."""

from alia_ctx.data.chat.blocks import EncoderSettings
from alia_ctx.data.chat.conversation import Conversation, Message, RowError, ToolCall
from alia_ctx.data.chat.converting import ChatConversion
from alia_ctx.data.chat.counts import ChatCounts, FirstOfEach, LeftOutRow
from alia_ctx.data.chat.encoding import ChatEncoder, EncodedChat
from alia_ctx.data.chat.forms import read_record
from alia_ctx.data.chat.rows import Row, read_rows
from alia_ctx.data.chat.store import (
    ChatReport,
    chat_settings,
    require_same_chat,
    require_same_chat_options,
    write_chat_store,
)

__all__ = [
    "ChatConversion",
    "ChatCounts",
    "ChatEncoder",
    "ChatReport",
    "Conversation",
    "EncodedChat",
    "EncoderSettings",
    "FirstOfEach",
    "LeftOutRow",
    "Message",
    "Row",
    "RowError",
    "ToolCall",
    "chat_settings",
    "read_record",
    "read_rows",
    "require_same_chat",
    "require_same_chat_options",
    "write_chat_store",
]
