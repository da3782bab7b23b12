"""What a stage of conversations is made of: sources, shares, and updates an epoch, beside
what a publication says of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from alia_ctx.data.packing import held_out_shares


@dataclass(frozen=True)
class MixtureSource:
    """A source of conversations.

    instances: of its token store, or those that the configuration states where it is not
        tokenised yet; None where neither is there.
    stated: what the configuration states; tokens: of the store, None without one.
    sampling: how often each comes in an epoch; most: how many are used at most.
    candidates: of which some are held out, those longer than a row among them.
    """

    name: str
    instances: int | None
    stated: int | None = None
    tokens: int | None = None
    licence: str | None = None
    sampling: float = 1.0
    most: int | None = None
    candidates: int | None = None

    @property
    def is_tokenised(self) -> bool:
        return self.tokens is not None


@dataclass(frozen=True)
class Mixture:
    """The sources of a stage, conversations an update, and epochs.

    held_out: conversations kept for evaluation. Stated numbers are of training, so they
    are taken off what token stores hold and not off what is only stated.
    published: name -> number of what a publication says: `instances`,
        `update_instances`, `updates`.
    """

    sources: Sequence[MixtureSource]
    update_instances: int
    epochs: int
    held_out: int = 0
    published: Mapping[str, int] | None = None

    @property
    def held_out_by_source(self) -> dict[str, int]:
        sizes = {s.name: s.candidates or s.instances or 0 for s in self.sources}
        if not self.held_out or sum(sizes.values()) <= self.held_out:
            return dict.fromkeys(sizes, 0)
        return held_out_shares(sizes, self.held_out)

    def epoch_of(self, source: MixtureSource) -> int:
        """Conversations of a source in an epoch; duplicates of held-out ones count still."""
        if source.instances is None:
            return 0
        off = self.held_out_by_source.get(source.name, 0) if source.is_tokenised else 0
        used = source.instances - off
        if source.most is not None:
            used = min(used, source.most)
        return round(used * source.sampling)

    @property
    def epoch(self) -> int:
        """Conversations of an epoch."""
        return sum(self.epoch_of(source) for source in self.sources)

    @property
    def updates_per_epoch(self) -> int:
        """The last one of an epoch has what is left."""
        return -(-self.epoch // self.update_instances)

    @property
    def updates(self) -> int:
        return self.epochs * self.updates_per_epoch


def mixture_table(mixture: Mixture, name: str) -> Table:
    """A line a source: conversations, share, tokens, licence, held out; and their sum."""
    table = Table(title=f"Conversations of {name}")
    table.add_column("source")
    for heading in ("an epoch", "stated", "share", "tokens", "licence", "held out"):
        table.add_column(heading, justify="left" if heading == "licence" else "right")
    total, held_out = max(mixture.epoch, 1), mixture.held_out_by_source
    for source in mixture.sources:
        count = mixture.epoch_of(source)
        known = source.instances is not None
        table.add_row(
            source.name,
            f"{count:,}" if known else "?",
            "" if source.stated is None else f"{source.stated:,}",
            f"{count / total:.2%}" if known else "?",
            f"{source.tokens:,}" if source.tokens is not None else "not tokenised",
            source.licence or "not stated",
            f"{held_out.get(source.name, 0):,}",
        )
    table.add_section()
    stated = [s.stated for s in mixture.sources if s.stated is not None]
    tokens = [s.tokens for s in mixture.sources if s.tokens is not None]
    table.add_row(
        "sum",
        f"{mixture.epoch:,}",
        f"{sum(stated):,}" if stated else "",
        "100%",
        f"{sum(tokens):,}" if tokens else "not tokenised",
        "",
        f"{sum(held_out.values()):,}",
    )
    return table


def readings_table(mixture: Mixture) -> Table:
    """The stage's updates, and each reading of what was published, beside each other."""
    table = Table(title="Readings of the number of updates")
    for heading in ("reading", "an update", "epochs", "updates", "remark"):
        left = heading in ("reading", "remark")
        table.add_column(heading, justify="left" if left else "right")
    size, epoch = mixture.update_instances, mixture.epoch
    rest = epoch % size
    table.add_row(
        "this configuration",
        f"{size:,}",
        f"{mixture.epochs}",
        f"{mixture.updates:,}",
        f"the last of an epoch has {rest:,}; {epoch // size:,} an epoch without it"
        if rest
        else "",
    )
    published = dict(mixture.published or {})
    batch, updates = published.get("update_instances"), published.get("updates")
    count = published.get("instances", epoch)
    if batch:
        whole, up = count // batch, -(-count // batch)
        remark = f"not the {updates:,} published" if updates else ""
        remark = "as published" if updates in (whole, up) else remark
        table.add_row(
            "published size, 1 epoch",
            f"{batch:,}",
            "1",
            f"{up:,}",
            remark,
        )
    if batch and updates:
        table.add_row(
            "published size and updates",
            f"{batch:,}",
            f"{batch * updates / count:.3f}",
            f"{updates:,}",
            f"{batch * updates:,} conversations of {count:,}",
        )
    if updates:
        table.add_row(
            "published updates, 1 epoch",
            f"{count / updates:.2f}",
            "1",
            f"{updates:,}",
            "",
        )
    return table


def remarks(mixture: Mixture) -> list[str]:
    """What differs between what is stated, published and there, a line each."""
    lines = []
    for source in mixture.sources:
        if source.instances is None:
            lines.append(
                f"{source.name}: not tokenised, and no number of conversations is stated"
            )
        elif source.is_tokenised and source.stated not in (
            None,
            mixture.epoch_of(source),
        ):
            lines.append(
                f"{source.name}: {mixture.epoch_of(source):,} an epoch, "
                f"{source.stated:,} stated"
            )
    published = (mixture.published or {}).get("instances")
    if published == mixture.epoch:
        lines.append(f"{published:,} conversations, the number published")
    elif published:
        lines.append(
            f"{mixture.epoch:,} conversations, {published:,} published: "
            f"{abs(mixture.epoch - published):,} "
            f"{'more' if mixture.epoch > published else 'fewer'}"
        )
    return lines
