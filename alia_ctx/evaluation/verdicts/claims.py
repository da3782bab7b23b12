"""Claims about a chain of stages: each holds, does not, or cannot be decided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from alia_ctx.errors import DataError
from alia_ctx.evaluation.positions import (
    PairedDifference,
    PositionBands,
    paired_difference,
)
from alia_ctx.evaluation.retrieval.scores import Score
from alia_ctx.evaluation.standard_errors import known_error, with_error
from alia_ctx.evaluation.verdicts.measured import Measured, by_length, far_gains

CLEAR = 3.0  # standard errors by which a loss must be lower to be called clearly lower
TOLERANCE = (
    0.02  # how much of the base's loss a stage may add inside the base's context
)
BRINGS = 5.0  # standard errors from which far context is said to bring something
ANSWERS, FAILS = 0.8, 0.2  # shares of right answers

Results = Mapping[str, PositionBands]


@dataclass(frozen=True)
class Verdict:
    """A claim about the results; `holds` is None where it could not be decided.

    `model` is whom it is about, `evaluator` whose result decides it; of what was trained
    there is none.
    """

    claim: str
    holds: bool | None
    detail: str
    model: str = ""
    evaluator: str = ""

    @property
    def answer(self) -> str:
        return {True: "yes", False: "no", None: "not known"}[self.holds]

    def __str__(self) -> str:
        answer = {True: "yes", False: "NO", None: "undecided"}[self.holds]
        return f"{answer}: {self.claim}: {self.detail}"


@dataclass(frozen=True)
class Chain:
    """A base that holds `native` tokens by itself (0: nothing says how many), and the
    stages after it in their order, with what each was trained at.
    """

    base: str
    native: int
    contexts: Mapping[str, int] = field(default_factory=dict)

    def own(self, model: str) -> int:
        """The context that a model was trained at; 0 where nothing says it."""
        if model == self.base and self.native:
            return self.native
        return self.contexts.get(model, 0)


def claims(lines: Sequence[Measured], chain: Chain) -> list[Verdict]:
    """All that can be said of the models of a chain; `lines` have the base first, and of
    each model short contexts before long ones.

    Losses are compared with those of the base at its own context, in blocks of that: a
    base that is given more text than it can use is beaten by anything.
    """
    by_evaluator = {
        "positions": _positions(lines, chain),
        "blocks": _blocks(lines, chain),
        "passkey": _passkey(lines, chain),
        "leak": _leak(lines),
    }
    return [
        replace(verdict, evaluator=evaluator)
        for evaluator, found in by_evaluator.items()
        for verdict in found
    ]


def own_bands(lines: Sequence[Measured], chain: Chain) -> dict[str, PositionBands]:
    """Losses by position of each model at its own context, the base first; where the text
    was too short for that, at the longest that was measured within it.
    """
    chosen: dict[str, PositionBands] = {}
    for line in lines:
        bands, own = line.positions, chain.own(line.model)
        if bands is not None and (not own or line.context <= own):
            chosen[line.model] = bands
    return chosen


def _positions(lines: Sequence[Measured], chain: Chain) -> Iterator[Verdict]:
    results = own_bands(lines, chain)
    base = results.get(chain.base)
    if base is None:
        return
    native = chain.own(chain.base)
    for model, bands in results.items():
        if model == chain.base or bands.edges != base.edges:
            continue
        # A model is not judged where it was never trained.
        reach = chain.own(model) or base.edges[-1]
        pair = {chain.base: base, model: bands}
        said = judge(pair, base=chain.base, final=model, native=native, reach=reach)
        yield from (replace(verdict, model=model) for verdict in said)


def judge(
    results: Results,
    *,
    base: str,
    final: str,
    native: int | None = None,
    reach: int | None = None,
) -> tuple[Verdict, ...]:
    """Compare `final` with the base in the bands within the base's `native` context
    (default: the first band), where it may not lose much, and in those past it, as far as
    `reach` (default: all), where it has to be better.

    DataError: a name is not among the results, or their edges differ.
    """
    _check_names(results, (base, final))
    edges = results[base].edges
    native = edges[1] if native is None else native
    reach = max(native, edges[-1] if reach is None else reach)
    bands = [(start, stop) for start, stop in pairwise(edges) if stop <= reach]
    near = [_no_worse(results, base, final, *b) for b in bands if b[0] < native]
    far = [_clearly_better(results, base, final, *b) for b in bands if b[0] >= native]
    return (*near, *far)


def _check_names(results: Results, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in results]
    if missing:
        raise DataError(
            f"no result named {', '.join(missing)}; there are: {', '.join(results) or 'none'}"
        )
    edges = {result.edges for result in results.values()}
    if len(edges) > 1:
        raise DataError(
            f"the results have different band edges, {sorted(edges)}; evaluate all with the same"
        )


def _no_worse(
    results: Results, base: str, final: str, start: int, stop: int
) -> Verdict:
    claim = (
        f"{final} loses at most {TOLERANCE:.0%} to {base} at positions {start:,} to "
        f"{stop - 1:,}"
    )
    paired = paired_difference(results[base], results[final], start, stop)
    if paired.documents < 2:
        return Verdict(claim, None, _too_few(paired.documents))
    change = paired.difference / paired.first
    detail = f"{_losses(paired)}, {change:+.2%}"
    return Verdict(claim, bool(change <= TOLERANCE), detail)


def _clearly_better(
    results: Results, base: str, final: str, start: int, stop: int
) -> Verdict:
    claim = (
        f"{final} is clearly better than {base} at positions {start:,} to {stop - 1:,}"
    )
    paired = paired_difference(results[base], results[final], start, stop)
    if paired.documents < 2:
        return Verdict(claim, None, _too_few(paired.documents))
    gain, error = -paired.difference, known_error(paired.standard_error)
    if error is None:
        return Verdict(claim, None, _without_spread(paired.documents))
    detail = f"{_losses(paired)}; clear is {CLEAR:g} standard errors"
    return Verdict(claim, bool(gain > CLEAR * error), detail)


def _losses(paired: PairedDifference) -> str:
    difference = with_error(f"{paired.difference:+.4f}", paired.standard_error)
    return (
        f"{paired.first:.4f} -> {paired.second:.4f} nats a token, {difference} (standard "
        f"error, {paired.documents} documents)"
    )


def _too_few(documents: int) -> str:
    return (
        f"{documents} documents were measured with both, at least 2 are needed; evaluate "
        "more text"
    )


def _without_spread(documents: int) -> str:
    return (
        f"{documents} documents have no spread, as copies of one, so that no error is "
        "known; evaluate other text"
    )


def _blocks(lines: Sequence[Measured], chain: Chain) -> Iterator[Verdict]:
    """Within what each stage was trained at: the base is shown more only for the tables."""
    for line in lines:
        if "blocks" not in line.contents or line.model == chain.base:
            continue
        for gain in far_gains(line):
            if gain.first >= chain.own(line.model):
                continue
            claim = (
                f"far context brings {line.model} a gain of {BRINGS:g} standard errors "
                f"at positions {gain.first:,} to {gain.last - 1:,}"
            )
            if gain.times is None:
                few = gain.documents < 2
                why = (
                    _too_few(gain.documents) if few else _without_spread(gain.documents)
                )
                yield Verdict(claim, None, why, line.model)
                continue
            yield Verdict(
                claim,
                bool(gain.times >= BRINGS),
                f"{gain.gain:+.4f} +- {gain.error:.4f} nats a token over "
                f"{gain.documents} documents: {gain.times:.1f} standard errors, against "
                f"the same text in blocks of {gain.block:,} tokens",
                line.model,
            )


def _passkey(lines: Sequence[Measured], chain: Chain) -> Iterator[Verdict]:
    """The base in its own length, which is the control, and past it; the last stage in all
    lengths up to the longest of the chain. Each length once.
    """
    native, base = chain.own(chain.base), chain.base
    last = list(chain.contexts)[-1] if chain.contexts else ""
    longest = max(chain.contexts.values(), default=0)
    control: float | None = None
    for model in dict.fromkeys((base, last)):
        own = [line for line in lines if line.model == model]
        for length, _, scores in by_length(own, "passkey"):
            score = scores.score(length=length)
            if model == base and length == native:
                control = score.share
            found = f"{score.right} of {score.samples} right{_interval(score)}"
            right = score.share >= ANSWERS
            at = f"{length:,} tokens" + _times(length, native)
            if model == last and length <= longest:
                claim = f"{last} finds the passkey in {at}"
                yield Verdict(claim, right, found, last)
            elif model == base and length == native:
                # What fails here too is not a matter of length.
                claim = f"{base} finds the passkey in its own {length:,} tokens"
                yield Verdict(claim, right, found, base)
            elif model == base and length > native:
                far = scores.score_farther(native, length)
                yield _base_fails(base, far, length, native, control)


def _base_fails(
    base: str, far: Score, length: int, native: int, control: float | None
) -> Verdict:
    """Of passkeys that lie farther back than the base's own context: nearer ones are
    within what it was trained at, however long the row is.
    """
    claim = (
        f"{base} fails to find a passkey that is {native:,} tokens back or more, in "
        f"{length:,} tokens{_times(length, native)}"
    )
    found = f"{far.right} of {far.samples} right{_interval(far)}"
    if not far.samples:
        return Verdict(claim, None, "none was hidden there", base)
    if control is not None and control >= ANSWERS:
        return Verdict(claim, far.share <= FAILS, found, base)
    # Who fails within the own context as well shows nothing by it.
    why = "was not measured" if control is None else f"is {control:.0%} right"
    return Verdict(claim, None, f"{found}; its own context {why}", base)


def _times(length: int, native: int) -> str:
    return f" (x{length / native:g})" if native else ""


def _interval(score: Score) -> str:
    low, high = score.interval
    return f" (95% interval {low:.0%} to {high:.0%})" if score.samples else ""


def _leak(lines: Sequence[Measured]) -> Iterator[Verdict]:
    for line in lines:
        content: Mapping[str, Any] | None = line.contents.get("leak")
        if content is None:
            continue
        try:
            moved, positions = int(content["moved"]), content["positions"]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not a leak probe: {error!r}") from error
        yield Verdict(
            f"no document of {line.model} sees another one in rows of "
            f"{line.context:,} tokens",
            moved == 0,
            f"{moved:,} of {positions:,} positions of other documents moved",
            line.model,
        )
