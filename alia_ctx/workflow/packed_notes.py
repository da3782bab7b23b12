"""What `pack` says of a plan that is made: where it is another than was asked for."""

from __future__ import annotations

from alia_ctx.data.packing import PackPlan, missed_buckets, missed_shares


def packed_notes(name: str, plan: PackPlan) -> list[str]:
    """All that is to be said of the plan of stage `name`, a sentence or two each."""
    return [*shares_notes(name, plan), *repeats_notes(name, plan)]


def shares_notes(name: str, plan: PackPlan) -> list[str]:
    """That sources, or documents of a length, have other shares of the plan of a stage than
    its weights and length buckets ask for.
    """
    tokens, pack = plan.stats["tokens"], f"stages.{name}.pack"
    longest = int(plan.document_lengths().max())
    nearer = f"more `stages.{name}.tokens`"
    if longest > plan.row_length:
        nearer += f", or `{pack}.long_docs: drop` (of documents longer than a row),"
    notes = []
    for setting, missed in (
        ("weights", missed_shares(plan)),
        ("length_buckets", missed_buckets(plan)),
    ):
        found = ", ".join(
            f"{part} {got:.1%} (asked for: {asked:.1%})"
            for part, (asked, got) in missed.items()
        )
        if found:
            notes.append(
                f"stage {name}: {pack}.{setting} are not met in shares of the plan's "
                f"tokens: {found}. Documents are drawn whole, and the longest has "
                f"{longest:,} tokens where the plan has {tokens:,}: {nearer} may come nearer"
            )
    return notes


def repeats_notes(name: str, plan: PackPlan) -> list[str]:
    """That rows have the same text more than once."""
    repeated = plan.repeated_in_rows()
    if not repeated:
        return []
    found = ", ".join(f"{source} {count:,}" for source, count in repeated.items())
    return [
        f"stage {name}: rows have the same text again, which another row would be better "
        f"for: {found} times in {len(plan.packed):,} rows. A source that is gone through "
        "more than once in 32 rows is packed together with its repetition: give it less "
        f"of `stages.{name}.pack.weights`, or more text"
    ]
