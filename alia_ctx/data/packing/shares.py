"""How far a plan is from the shares that its weights and length buckets ask for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from alia_ctx.data.packing.blend import bucket_shares, buckets_of
from alia_ctx.data.packing.plan import PackPlan
from alia_ctx.data.packing.spec import LengthBucket

# In shares of the plan's tokens. Documents are drawn whole, so that no plan meets its
# weights to the token; a plan of usual size is within tenths of a percent, and what is
# further off than this is another mixture than the one that was chosen.
TOLERANCE = 0.02


def asked_shares(plan: PackPlan) -> dict[str, float]:
    """By source, the share of the plan's tokens that was asked for; empty where no weights
    are set.
    """
    return dict(plan.identity["spec"].get("weights") or {})


def missed_shares(plan: PackPlan) -> dict[str, tuple[float, float]]:
    """(asked, got) of each source whose share of the plan's tokens is further from what was
    asked for than `TOLERANCE`.
    """
    if not (asked := asked_shares(plan)):
        return {}
    stats = plan.stats["sources"]
    shares = {name: (asked[name], stats[name]["share"]) for name in plan.sources}
    return _missed(shares)


def missed_buckets(plan: PackPlan) -> dict[str, tuple[float, float]]:
    """The same of length buckets, by the documents that they are of (`256+ tokens`)."""
    stated = plan.identity["spec"].get("length_buckets") or []
    if not stated:
        return {}
    buckets = [LengthBucket(**bucket) for bucket in stated]
    lows = [f"{low:,}+ tokens" for low in (0, *(b.min_tokens for b in buckets))]
    asked = bucket_shares(buckets)
    of = buckets_of(plan.document_lengths(), buckets)
    got = np.bincount(of, plan.packed.piece_lengths, len(asked))
    shares = (got / got.sum()).tolist()
    return _missed(dict(zip(lows, zip(asked, shares, strict=True), strict=True)))


def _missed(
    shares: Mapping[str, tuple[float, float]],
) -> dict[str, tuple[float, float]]:
    return {
        name: (wanted, got)
        for name, (wanted, got) in shares.items()
        if abs(got - wanted) > TOLERANCE
    }
