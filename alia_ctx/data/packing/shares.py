"""How far the sources of a plan are from the shares that its weights ask for."""

from __future__ import annotations

from alia_ctx.data.packing.plan import PackPlan

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
    return {
        name: (wanted, got)
        for name, (wanted, got) in shares.items()
        if abs(got - wanted) > TOLERANCE
    }
