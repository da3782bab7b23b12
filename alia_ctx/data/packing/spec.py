"""How rows are made from documents: `stages.NAME.pack` in the configuration."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from alia_ctx.data.packing.policies import POLICIES
from alia_ctx.errors import Problem

_TOLERANCE = 1e-6
_CHOICES = {
    "policy": tuple(POLICIES),
    "long_docs": ("split", "drop"),
    "short_docs": ("with_long", "apart"),
    "data": ("continue", "restart"),
}
_HELD_OUT = (
    "name the held-out text under evaluation.held_out instead, and leave this out"
)


@dataclass(frozen=True)
class LengthBucket:
    """Documents of at least `min_tokens` tokens (and below the next bucket) give
    `share` of the plan's tokens.
    """

    min_tokens: int
    share: float


@dataclass(frozen=True)
class PackSpec:
    """Policy and blend of a pack plan.

    policy: one of `policies.POLICIES`: `concat` puts documents one after another and
        cuts at every row end; `best_fit` packs whole documents by best-fit decreasing
        (arXiv 2404.10830) and cuts only those longer than a row.
    long_docs: what becomes of documents longer than a row: `split` in rows and a
        remainder, or `drop`. No default.
    weights: source -> share of the tokens, summing to 1; empty means by size.
    length_buckets: shares by document length; documents below the smallest `min_tokens`
        give the rest.
    short_docs: `with_long` fills the gaps beside long documents with short ones;
        `apart` packs each length bucket for itself, so that a row is
        long or short throughout (and fills worse).
    max_epochs: refuse a plan that repeats any part of the data more often, the stages
        whose data it continues included; None is no limit.
    data: `continue` begins where the data of the stage before in the chain stopped;
        `restart` begins anew, with the same documents as that stage.
    drop_contaminated: leave out documents that are held-out text, exactly or nearly.
    """

    # settings of version 0.1 -> what to do instead; the configuration's reader says so
    REMOVED: ClassVar[dict[str, str]] = {
        name: _HELD_OUT
        for name in ("holdout_documents", "holdout_min_tokens", "holdout_seed")
    }

    policy: str
    long_docs: Literal["split", "drop"]
    weights: dict[str, float] = field(default_factory=dict)
    length_buckets: list[LengthBucket] = field(default_factory=list)
    short_docs: Literal["with_long", "apart"] = "with_long"
    max_epochs: float | None = None
    data: Literal["continue", "restart"] = "continue"
    drop_contaminated: bool = False

    def statement(self) -> dict[str, Any]:
        """What decides a plan's content, as plain containers. What `data` stands for is
        said by the earlier plans that the plan names.
        """
        return {k: v for k, v in asdict(self).items() if k != "data"}

    def problems(self, key: str, sources: Collection[str]) -> list[Problem]:
        """Rules that this spec breaks for a blend of `sources`; `key` is its place in
        the configuration.
        """
        problems = [
            Problem(
                f"{key}.{name}",
                getattr(self, name),
                f"is none of {', '.join(allowed)}",
                "choose one of them",
            )
            for name, allowed in _CHOICES.items()
            if getattr(self, name) not in allowed
        ]
        problems += self._weight_problems(key, sources) + self._bucket_problems(key)
        if self.max_epochs is not None and not self.max_epochs > 0:
            problems.append(
                Problem(
                    f"{key}.max_epochs",
                    self.max_epochs,
                    "must be above 0",
                    "leave it out for no limit",
                )
            )
        return problems

    def _weight_problems(self, key: str, sources: Collection[str]) -> list[Problem]:
        if not self.weights:
            return []
        problems = []
        for name in sorted({*self.weights, *sources}):
            if name not in sources:
                problems.append(
                    Problem(
                        f"{key}.weights.{name}",
                        self.weights[name],
                        "no such source",
                        f"the sources are {', '.join(sorted(sources))}",
                    )
                )
            elif name not in self.weights:
                problems.append(
                    Problem(
                        f"{key}.weights.{name}",
                        None,
                        "this source has no weight",
                        "give each source one (0 leaves it out), or none at all",
                    )
                )
            elif not self.weights[name] >= 0:
                problems.append(
                    Problem(
                        f"{key}.weights.{name}",
                        self.weights[name],
                        "is negative",
                        "0 leaves it out",
                    )
                )
        total = sum(self.weights.values())
        if not abs(total - 1) <= _TOLERANCE:
            problems.append(
                Problem(
                    f"{key}.weights",
                    self.weights,
                    f"sum to {total:g}, not 1",
                    "use shares of tokens",
                )
            )
        return problems

    def _bucket_problems(self, key: str) -> list[Problem]:
        if not self.length_buckets:
            if self.short_docs == "apart":
                return [
                    Problem(
                        f"{key}.short_docs",
                        "apart",
                        "needs length_buckets, which say what is short",
                        f"set {key}.length_buckets",
                    )
                ]
            return []
        problems = []
        bounds = [bucket.min_tokens for bucket in self.length_buckets]
        shares = [bucket.share for bucket in self.length_buckets]
        if bounds != sorted(set(bounds)) or bounds[0] < 1:
            problems.append(
                Problem(
                    f"{key}.length_buckets",
                    bounds,
                    "min_tokens must be positive and rise",
                    "list the buckets from short to long",
                )
            )
        if not (min(shares) >= 0 and sum(shares) <= 1 + _TOLERANCE):
            problems.append(
                Problem(
                    f"{key}.length_buckets",
                    shares,
                    "shares must be 0 or more and sum to at most 1",
                    "documents below the first bucket give what is left of 1",
                )
            )
        return problems
