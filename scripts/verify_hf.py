"""Compare a Hugging Face model with a checkpoint:

`python scripts/verify_hf.py HF_DIR CKPT`; see --help.
"""

import sys

from alia_ctx.cli import run_commands

if __name__ == "__main__":
    sys.argv.insert(1, "verify")
    run_commands.main()
