"""Where things are in the checkout, whichever folder a test lies in, and how a process of
its own finds them.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def python_path(*first: Path) -> str:
    """PYTHONPATH of a process that imports from `first`, then from the checkout."""
    return os.pathsep.join([*map(str, first), str(ROOT), given_path()]).rstrip(
        os.pathsep
    )


def given_path() -> str:
    """PYTHONPATH of this process without the checkout: modules of a cluster give packages
    by it, which a process of a test needs too.
    """
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return os.pathsep.join(path for path in given if Path(path).resolve() != ROOT)
