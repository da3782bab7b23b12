"""How rows are made from documents: `stages.NAME.pack` in the configuration."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from alia_ctx.data.packing.policies import POLICIES
from alia_ctx.errors import Problem, Problems

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

# Settings that only updates of conversations have, and what they are where not used.
_UNUSED: dict[str, Any] = {
    "sampling": {}, "max_instances": {}, "held_out_instances": 0, "min_rows": 1,
}  # fmt: skip
_OF_CONVERSATIONS = tuple(_UNUSED)
_MOST_PASSES = 1000


def _known(sources: Collection[str]) -> str:
    return f"the sources are {', '.join(sorted(sources))}"


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
    sources: those that the stage draws from; empty means all.

    For updates of conversations (`update_instances`) alone:

    sampling: source -> how often each of its conversations comes in an epoch (default
        1); 0.5 is one half of them in one epoch, the other half in the next.
    max_instances: source -> how many of its conversations are used at most, chosen by
        the seed.
    held_out_instances: conversations that are kept for evaluation, over the sources by
        their sizes; they, and what is like them, are never trained on.
    min_rows: spread an update over at least so many rows, where they stay as long as
        its longest conversation, so that data-parallel ranks have work.
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
    sources: list[str] = field(default_factory=list)
    sampling: dict[str, float] = field(default_factory=dict)
    max_instances: dict[str, int] = field(default_factory=dict)
    held_out_instances: int = 0
    min_rows: int = 1

    def statement(self) -> dict[str, Any]:
        """What decides a plan's content, as plain containers. What `data` stands for is
        said by the earlier plans that the plan names, `sources` by its stores. What
        only conversations have is left out where it is not used, as plans made before
        it existed do not have it.
        """
        settings = asdict(self)
        of_conversations = {
            name: settings.pop(name) for name in ("data", "sources", *_OF_CONVERSATIONS)
        }
        return settings | {
            name: value
            for name, value in of_conversations.items()
            if name in _OF_CONVERSATIONS and value != _UNUSED[name]
        }

    def drawn_from(self, sources: Collection[str]) -> list[str]:
        """Which of `sources` the stage draws from, in their order."""
        return [name for name in sources if not self.sources or name in self.sources]

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
        problems += [
            Problem(f"{key}.sources", name, "no such source", _known(sources))
            for name in self.sources
            if name not in sources
        ]
        drawn = self.drawn_from(sources)
        for setting in ("sampling", "max_instances"):
            problems += [
                Problem(
                    f"{key}.{setting}.{name}", value, "no such source", _known(drawn)
                )
                for name, value in getattr(self, setting).items()
                if name not in drawn
            ]
        elsewhere = set(sources) - set(drawn)
        problems += self._weight_problems(key, drawn, elsewhere)
        problems += self._bucket_problems(key)
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

    def token_problems(self, key: str) -> list[Problem]:
        """What is of conversations, in a stage whose updates are of tokens."""
        return [
            Problem(
                f"{key}.{name}",
                getattr(self, name),
                "is of updates of conversations, and this stage counts tokens",
                "leave it out, or give update_instances and epochs",
            )
            for name in _OF_CONVERSATIONS
            if getattr(self, name) != _UNUSED[name]
        ]

    def instance_problems(self, key: str) -> list[Problem]:
        """Rules that hold where updates are of conversations."""
        problems = Problems()
        problems.need(
            self.policy == "best_fit",
            f"{key}.policy",
            self.policy,
            "cuts conversations",
            "use best_fit",
        )
        for name, instead in {
            "weights": "sampling says how often each source comes in an epoch",
            "length_buckets": "an epoch has each conversation, whatever its length",
            "max_epochs": "epochs says how far the stage goes",
        }.items():
            value = getattr(self, name)
            rule = "is of stages that count tokens"
            problems.need(
                not value, f"{key}.{name}", value, rule, f"leave it out: {instead}"
            )
        for name, share in self.sampling.items():
            problems.need(
                0 < share <= _MOST_PASSES,
                f"{key}.sampling.{name}",
                share,
                f"is not above 0 and at most {_MOST_PASSES} passes an epoch",
                "1 is each conversation once an epoch; leave a source that is not to "
                "come out of pack.sources",
            )
        for name, most in self.max_instances.items():
            rule, remedy = "must be above 0", "leave the source out of pack.sources"
            problems.need(most > 0, f"{key}.max_instances.{name}", most, rule, remedy)
        for name, least in (("held_out_instances", 0), ("min_rows", 1)):
            value = getattr(self, name)
            rule, remedy = f"must be at least {least}", f"{least} is the default"
            problems.need(value >= least, f"{key}.{name}", value, rule, remedy)
        return problems

    def _weight_problems(
        self, key: str, sources: Collection[str], elsewhere: Collection[str]
    ) -> list[Problem]:
        if not self.weights:
            return []
        problems = []
        # 0 leaves a source out, which one that other stages draw from is anyway.
        out = {n for n in elsewhere if self.weights.get(n) == 0}
        for name in sorted({*self.weights, *sources} - out):
            if name not in sources:
                problems.append(
                    Problem(
                        f"{key}.weights.{name}",
                        self.weights[name],
                        "no such source",
                        _known(sources),
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
