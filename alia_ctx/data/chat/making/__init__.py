"""Signatures of functions -> seeded conversations that call them."""

from alia_ctx.data.chat.making.drawing import Limits
from alia_ctx.data.chat.making.endpoint import Endpoint
from alia_ctx.data.chat.making.functions import FoundFunctions, Function, find_functions
from alia_ctx.data.chat.making.grammar import KINDS
from alia_ctx.data.chat.making.languages import LANGUAGES
from alia_ctx.data.chat.making.left_out import Reason, counted
from alia_ctx.data.chat.making.make import MadeCounts, MakeSpec, make_tool_data

__all__ = [
    "KINDS",
    "LANGUAGES",
    "Endpoint",
    "FoundFunctions",
    "Function",
    "Limits",
    "MadeCounts",
    "MakeSpec",
    "Reason",
    "counted",
    "find_functions",
    "make_tool_data",
]
