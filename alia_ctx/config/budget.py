"""What a stage trains on in all and in one update, and at which rates: the rules that
bind these settings to each other.
"""

from __future__ import annotations

from alia_ctx.config.run import StageConfig
from alia_ctx.errors import Problem, Problems

_PAIRS = {"update_tokens": "tokens", "update_instances": "epochs"}


def budget_problems(key: str, stage: StageConfig) -> list[Problem]:
    """That updates are of tokens or of conversations, and the budget of the same."""
    problems = Problems()
    given = [name for name in _PAIRS if getattr(stage, name) is not None]
    if len(given) != 1:
        problems.add(
            f"{key}.update_tokens",
            stage.update_tokens,
            "an update is a number of tokens or of conversations, and "
            + ("both are given" if given else "neither is given"),
            "keep one of update_tokens (with tokens) and update_instances (with epochs)",
        )
        return problems
    size = given[0]
    budget = _PAIRS[size]
    other = "epochs" if budget == "tokens" else "tokens"
    problems.need(
        getattr(stage, budget) is not None,
        f"{key}.{budget}",
        None,
        f"is needed with {size}",
        "say how far the stage goes",
    )
    problems.need(
        getattr(stage, other) is None,
        f"{key}.{other}",
        getattr(stage, other),
        f"does not go with {size}",
        f"leave it out; {budget} says how far the stage goes",
    )
    return [*problems, *unit_problems(key, stage)]


def unit_problems(key: str, stage: StageConfig) -> list[Problem]:
    """What of `pack` does not go with what updates count, whatever their number."""
    if stage.update_instances is not None:
        return stage.pack.instance_problems(f"{key}.pack")
    return stage.pack.token_problems(f"{key}.pack")


def schedule_problems(key: str, stage: StageConfig) -> list[Problem]:
    """What is no schedule, and what would never reach the stage's rate."""
    problems = Problems()
    schedule, least = stage.schedule, stage.schedule.min_learning_rate
    whole = schedule.warmup < 1 or float(schedule.warmup).is_integer()
    problems.need(
        schedule.warmup >= 0 and whole,
        f"{key}.warmup",
        schedule.warmup,
        "is neither a number of updates nor a share below 1",
        "0.04 is 4% of the stage, 100 is 100 updates",
    )
    problems.need(
        0 <= least <= stage.learning_rate,
        f"{key}.min_learning_rate",
        least,
        f"must be between 0 and learning_rate={stage.learning_rate:g}",
        "0 is the default",
    )
    problems.need(
        schedule.type != "constant" or least in (0, stage.learning_rate),
        f"{key}.min_learning_rate",
        least,
        "is never reached by a constant rate",
        "leave it out, or choose cosine or linear",
    )
    tokens, of_update = stage.tokens or 0, stage.update_tokens or 0
    if tokens > 0 and of_update >= stage.context > 0:
        problems += warmup_problems(key, stage, stage.updates)
    return problems


def warmup_problems(key: str, stage: StageConfig, updates: int) -> list[Problem]:
    """A warm-up in which a stage of so many updates ends before it reaches its rate."""
    problems, warmup = Problems(), stage.schedule.warmup
    share = 0 < warmup < 1
    problems.need(
        stage.schedule.warmup_updates(updates) < max(1, updates),
        f"{key}.warmup",
        warmup,
        f"{'comes to all of' if share else 'is not below'} the stage's {updates} "
        f"update{'s' if updates != 1 else ''}",
        "shorten it, so that the stage reaches its rate",
    )
    return problems
