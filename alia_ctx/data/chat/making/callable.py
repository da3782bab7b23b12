"""Functions of which a call can be made, told from those that would be offered for show.

A function that is offered again and again and never called teaches never to call its like.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from alia_ctx.data.chat.making.drawing import Limits, NotMadeError
from alia_ctx.data.chat.making.functions import FoundFunctions, Function
from alia_ctx.data.chat.making.grammar import Grammar
from alia_ctx.data.chat.making.left_out import Reason
from alia_ctx.data.chat.making.verify import fault_of

# Conversations in each language, for each of which the grammar draws some twenty times:
# a text that fits a pattern may come seldom.
_TRIES = 8


def that_can_be_called(
    found: FoundFunctions, limits: Limits, languages: Sequence[str]
) -> FoundFunctions:
    """Those of `found` of which a call can be made within `limits` in one of `languages`;
    the others are left out with what was most often the cause. Always the same ones.
    """
    kept = FoundFunctions(left_out=dict(found.left_out))
    for name, function in found.functions.items():
        if (reason := _no_call(function, limits, languages)) is None:
            kept.functions[name] = function
        else:
            kept.leave_out(f"{function.origin}: {name}", reason)
    return kept


def _no_call(
    function: Function, limits: Limits, languages: Sequence[str]
) -> Reason | None:
    needed = len(function.required)
    if needed > limits.arguments:
        return Reason(
            "a call of it needs more arguments than --most-arguments", str(needed)
        )
    if function.invented is not None:  # its values are made for its schema
        return None
    grammar = Grammar([function], 0, limits)
    causes: Counter[str] = Counter()
    for index in range(_TRIES):
        for language in languages:
            try:
                cause = fault_of(grammar.make(index, "single", language))
            except NotMadeError as error:
                cause = str(error)
            if cause is None:
                return None
            causes[cause] += 1
    return Reason("no call of it can be made", causes.most_common(1)[0][0])
