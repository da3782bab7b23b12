"""Convert a Hugging Face model to a checkpoint:

`python scripts/import_hf.py HF_DIR CKPT`; see --help.
"""

import sys

from alia_ctx.cli import run_commands

if __name__ == "__main__":
    sys.argv.insert(1, "import-hf")
    run_commands.main()
