"""Tokenising speed, in one run: ours, the bare `tokenizers` batch encode, and Megatron's
preprocessing loop.

    python benchmarks/tokenize.py [--megabytes N] [--rounds N]

See tokenize_speed.py, which does the work. This file has the name of a module of
Python's standard library and would hide it from every script in this folder, so
imported under that name it becomes that module.
"""

import sys

if __name__ == "tokenize":
    import sysconfig
    from pathlib import Path

    _path = Path(sysconfig.get_path("stdlib")) / "tokenize.py"
    exec(compile(_path.read_bytes(), str(_path), "exec"), globals())
elif __name__ == "__main__":
    from tokenize_speed import main

    sys.exit(main())
