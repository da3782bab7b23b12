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
    candidates: of which some are held out, those longer than a row among them; None
        is all, and text has none.
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

    @property
    def may_be_held_out(self) -> int:
        return (self.instances or 0) if self.candidates is None else self.candidates


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
    def is_known(self) -> bool:
        """Whether the size of every source is; else sums are of those that are known."""
        return all(source.instances is not None for source in self.sources)

    @property
    def held_out_by_source(self) -> dict[str, int]:
        sizes = {s.name: s.may_be_held_out for s in self.sources}
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

    def tokens_of(self, source: MixtureSource) -> int | None:
        """Tokens of a source in an epoch, by the mean of its store; None without one."""
        if source.tokens is None:
            return None
        return round(
            source.tokens * self.epoch_of(source) / max(source.instances or 0, 1)
        )

    @property
    def epoch(self) -> int:
        """Conversations of an epoch, of sources whose size is known."""
        return sum(self.epoch_of(source) for source in self.sources)

    @property
    def updates_per_epoch(self) -> int:
        """The last one of an epoch has what is left."""
        return -(-self.epoch // self.update_instances)

    @property
    def updates(self) -> int:
        return self.epochs * self.updates_per_epoch


def mixture_table(mixture: Mixture, name: str) -> Table:
    """A line a source: conversations, share, tokens, licence, held out; and their sum. All
    are of an epoch. Where the size of a source is not known, neither are shares and sums.
    """
    table = Table(title=f"Conversations of {name}")
    table.add_column("source")
    for heading in ("an epoch", "stated", "share", "tokens", "licence", "held out"):
        table.add_column(heading, justify="left" if heading == "licence" else "right")
    total, held_out = max(mixture.epoch, 1), mixture.held_out_by_source
    whole = mixture.is_known
    tokens = [mixture.tokens_of(source) for source in mixture.sources]
    for source, size in zip(mixture.sources, tokens, strict=True):
        count = mixture.epoch_of(source)
        table.add_row(
            source.name,
            _UNKNOWN if source.instances is None else f"{count:,}",
            "" if source.stated is None else f"{source.stated:,}",
            f"{count / total:.2%}" if whole else _UNKNOWN,
            "not tokenised" if size is None else _about(size, source.tokens),
            source.licence or "not stated",
            _if(whole or not mixture.held_out, held_out.get(source.name, 0)),
        )
    table.add_section()
    stated = [s.stated for s in mixture.sources if s.stated is not None]
    sizes = [size for size in tokens if size is not None]
    stores = sum(source.tokens or 0 for source in mixture.sources)
    table.add_row(
        "sum",
        _if(whole, mixture.epoch),
        f"{sum(stated):,}" if stated else "",
        "100%" if whole else _UNKNOWN,
        _about(sum(sizes), stores)
        if len(sizes) == len(tokens)
        else (f"{_UNKNOWN} ({sum(sizes):,} known)" if sizes else "not tokenised"),
        "",
        _if(whole or not mixture.held_out, sum(held_out.values())),
    )
    return table


_UNKNOWN = "?"


def _if(known: bool, number: int) -> str:
    return f"{number:,}" if known else _UNKNOWN


def _about(tokens: int, store: int | None) -> str:
    """Exact only where it is all of a store: which conversations come is not known yet."""
    return f"{tokens:,}" if tokens == store else f"~{tokens:,}"


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
        _if(mixture.is_known, mixture.updates),
        f"{epoch:,} conversations of an epoch are known"
        if not mixture.is_known
        else f"the last of an epoch has {rest:,}; {epoch // size:,} an epoch without it"
        if rest
        else "",
    )
    published = dict(mixture.published or {})
    batch, updates = published.get("update_instances"), published.get("updates")
    count = published.get("instances", epoch)
    if "instances" not in published and not mixture.is_known:
        return table
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
    if published and not mixture.is_known:
        lines.append(f"{mixture.epoch:,} conversations known, {published:,} published")
    elif published == mixture.epoch:
        lines.append(f"{published:,} conversations, the number published")
    elif published:
        lines.append(
            f"{mixture.epoch:,} conversations, {published:,} published: "
            f"{abs(mixture.epoch - published):,} "
            f"{'more' if mixture.epoch > published else 'fewer'}"
        )
    return lines
