"""Whether a package is installed, in whatever state: one that is there and broken shall make
its tests fail, and only one that is not there lets them be skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder

# Module that is the package's own, and its distributions; nothing of them is imported.
PACKAGES: dict[str, tuple[str, Sequence[str]]] = {
    "flash4": ("flash_attn.cute", ["flash-attn-4"]),
    "flash3": ("flash_attn_interface", ["flash-attn-3"]),
    # `flash_attn` itself is FlashAttention 4's folder too.
    "flash2": ("flash_attn.flash_attn_interface", ["flash-attn"]),
    "te": ("transformer_engine", ["transformer-engine"]),
    "torchtitan": ("torchtitan", ["torchtitan"]),
}


def is_installed(name: str) -> bool:
    """Whether a package of `PACKAGES` is there, by its files or as pip knows it."""
    module, distributions = PACKAGES[name]
    return _has_files(module) or any(map(_is_known, distributions))


def _has_files(module: str) -> bool:
    # Not importlib.util.find_spec: it imports what is around a module, and finds none that
    # is marked in sys.modules as missing, as the product marks what it cannot use.
    places: Sequence[str] | None = None  # sys.path
    parts = module.split(".")
    spec: ModuleSpec | None = None
    for number in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: number + 1]), places)
        places = None if spec is None else spec.submodule_search_locations
        if places is None and number + 1 < len(parts):
            return False
    return spec is not None


def _is_known(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
