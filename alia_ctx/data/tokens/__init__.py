"""Documents -> token stores in Megatron's `.bin`/`.idx` format, memory-mapped."""

from alia_ctx.data.tokens.encoder import TextEncoder
from alia_ctx.data.tokens.places import document_places, document_table
from alia_ctx.data.tokens.remedy import making_anew
from alia_ctx.data.tokens.same_source import require_same_options, require_same_source
from alia_ctx.data.tokens.same_tokenizer import changed_ids
from alia_ctx.data.tokens.shards import TokenizeProgress
from alia_ctx.data.tokens.source import TokenizeReport, tokenize_source
from alia_ctx.data.tokens.special_tokens import SpecialTokens
from alia_ctx.data.tokens.store import (
    TokenStore,
    token_dtype,
    write_index,
    write_store,
    write_weights,
)
from alia_ctx.data.tokens.tokenizer_files import (
    CONFIGURED,
    TOKENIZER,
    has_vocabulary,
    known_tokenizer,
    tokenizer_statement,
)
from alia_ctx.data.tokens.vocabulary import vocabulary_problems
from alia_ctx.data.tokens.written import require_written

__all__ = [
    "CONFIGURED",
    "TOKENIZER",
    "SpecialTokens",
    "TextEncoder",
    "TokenStore",
    "TokenizeProgress",
    "TokenizeReport",
    "changed_ids",
    "document_places",
    "document_table",
    "has_vocabulary",
    "known_tokenizer",
    "making_anew",
    "require_same_options",
    "require_same_source",
    "require_written",
    "token_dtype",
    "tokenize_source",
    "tokenizer_statement",
    "vocabulary_problems",
    "write_index",
    "write_store",
    "write_weights",
]
