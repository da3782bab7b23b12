"""How rows are made from documents: `data.packing` in the configuration."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from alia_ctx.errors import Problem

_TOLERANCE = 1e-6
_CHOICES = {
    "policy": ("concat", "best_fit"),
    "long_docs": ("split", "drop"),
    "short_docs": ("with_long", "apart"),
}


@dataclass(frozen=True)
class LengthBucket:
    """Documents of at least `min_tokens` tokens (and below the next bucket) give
    `share` of the plan's tokens.
    """

    min_tokens: int
    share: float


@dataclass(frozen=True)
class PackSpec:
    """Policy, blend and held-out documents of a pack plan.

    policy: `concat` puts documents one after another and cuts at every row end;
        `best_fit` packs whole documents by
        best-fit decreasing (arXiv 2404.10830) and cuts only those longer than a row.
    long_docs: what becomes of documents longer than a row: `split` in rows and a
        remainder, or `drop`. No default.
    weights: source -> share of the tokens, summing to 1; empty means by size.
    length_buckets: shares by document length; documents below the smallest `min_tokens`
        give the rest.
    short_docs: `with_long` fills the gaps beside long documents with short ones;
        `apart` packs each length bucket
        for itself, so that a row is long or short throughout (and fills worse).
    max_epochs: refuse a plan that repeats any part of the data more often; None is no limit.
    holdout_documents: so many documents of each source are kept for evaluation and
        never trained on. Which ones
        depends on the source, this number, holdout_min_tokens and holdout_seed alone,
        so all stages hold out the same.
    holdout_min_tokens: held-out documents have at least so many tokens.
    """

    policy: Literal["concat", "best_fit"]
    long_docs: Literal["split", "drop"]
    weights: dict[str, float] = field(default_factory=dict)
    length_buckets: list[LengthBucket] = field(default_factory=list)
    short_docs: Literal["with_long", "apart"] = "with_long"
    max_epochs: float | None = None
    holdout_documents: int = 0
    holdout_min_tokens: int = 2
    holdout_seed: int = 0

    def problems(self, key: str, sources: Collection[str]) -> list[Problem]:
        """Rules that this spec breaks for a blend of `sources`;

        `key` is its place in the configuration.
        """
        found = [
            Problem(
                f"{key}.{name}",
                getattr(self, name),
                f"is none of {', '.join(allowed)}",
                "choose one of them",
            )
            for name, allowed in _CHOICES.items()
            if getattr(self, name) not in allowed
        ]
        found += self._weight_problems(key, sources) + self._bucket_problems(key)
        if self.max_epochs is not None and not self.max_epochs > 0:
            found.append(
                Problem(
                    f"{key}.max_epochs",
                    self.max_epochs,
                    "must be above 0",
                    "leave it out for no limit",
                )
            )
        if self.holdout_documents < 0:
            found.append(
                Problem(
                    f"{key}.holdout_documents",
                    self.holdout_documents,
                    "is negative",
                    "0 holds out none",
                )
            )
        if self.holdout_min_tokens < 2:
            found.append(
                Problem(
                    f"{key}.holdout_min_tokens",
                    self.holdout_min_tokens,
                    "is below 2",
                    "a document of 1 token predicts nothing",
                )
            )
        return found

    def _weight_problems(self, key: str, sources: Collection[str]) -> list[Problem]:
        if not self.weights:
            return []
        found = []
        for name in sorted({*self.weights, *sources}):
            if name not in sources:
                found.append(
                    Problem(
                        f"{key}.weights.{name}",
                        self.weights[name],
                        "no such source",
                        f"the sources are {', '.join(sorted(sources))}",
                    )
                )
            elif name not in self.weights:
                found.append(
                    Problem(
                        f"{key}.weights.{name}",
                        None,
                        "this source has no weight",
                        "give each source one (0 leaves it out), or none at all",
                    )
                )
            elif self.weights[name] < 0:
                found.append(
                    Problem(
                        f"{key}.weights.{name}",
                        self.weights[name],
                        "is negative",
                        "0 leaves it out",
                    )
                )
        total = sum(self.weights.values())
        if abs(total - 1) > _TOLERANCE:
            found.append(
                Problem(
                    f"{key}.weights",
                    self.weights,
                    f"sum to {total:g}, not 1",
                    "use shares of tokens",
                )
            )
        return found

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
        found = []
        bounds = [bucket.min_tokens for bucket in self.length_buckets]
        shares = [bucket.share for bucket in self.length_buckets]
        if bounds != sorted(set(bounds)) or bounds[0] < 1:
            found.append(
                Problem(
                    f"{key}.length_buckets",
                    bounds,
                    "min_tokens must be positive and rise",
                    "list the buckets from short to long",
                )
            )
        if min(shares) < 0 or sum(shares) > 1 + _TOLERANCE:
            found.append(
                Problem(
                    f"{key}.length_buckets",
                    shares,
                    "shares must be 0 or more and sum to at most 1",
                    "documents below the first bucket give what is left of 1",
                )
            )
        return found
