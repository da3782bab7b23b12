"""How much of everything a run of the recipe takes, whole and cut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CONFIG = Path(__file__).parents[2] / "configs" / "runs" / "smollm2-135m.yaml"
CONTEXT = 8192  # of the published config.json
FAR = 131_072  # where retrieval is measured beside the stages' own contexts


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Args:
        characters: of code in the corpus.
        manuals: characters of manuals in it; None is all.
        retrieval: tokens of documents that teach retrieval.
        longest: tokens of the longest of them.
        native: context in tokens that the base's configuration states, at which it is
            measured.
        short: lengths that the base knows, at which it is compared with the last stage
            on other kinds of text.
        options: of that comparison.
        overrides: of the configuration.
    """

    characters: int = 110_000_000
    manuals: int | None = None
    retrieval: int = 12_000_000
    longest: int = 163_840
    native: int = CONTEXT
    short: str = "4096,8192"
    options: tuple[str, ...] = ("--samples", "20")
    overrides: tuple[str, ...] = ()

    @property
    def text(self) -> dict[str, int | None]:
        """What decides which text is written, and which base."""
        names = ("characters", "manuals", "retrieval", "longest", "native")
        return {name: getattr(self, name) for name in names}


# What fits a laptop: the path is the same, the figures mean nothing. Its base is told to
# know 128 tokens, as measuring the true 8,192 alone takes many minutes on a host.
SMALL = Sizes(
    characters=2_000_000,
    manuals=500_000,
    retrieval=30_000,
    longest=512,
    native=128,
    short="128",
    options=("--samples", "1", "--documents", "2", "--task", "niah_single_1"),
    overrides=(
        "stages.32k.context=256",
        "stages.32k.tokens=2048",
        "stages.32k.update_tokens=512",
        "stages.160k.context=512",
        "stages.160k.tokens=2048",
        "stages.160k.update_tokens=1024",
        "checkpoint.every_updates=2",
        "evaluation.documents=2",
        "evaluation.measure=[positions]",
        "evaluation.retrieval.samples=1",
        "engine.precision=fp32",
    ),
)
