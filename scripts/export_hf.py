"""Convert a checkpoint to a Hugging Face model:

`python scripts/export_hf.py CKPT HF_DIR`; see --help.
"""

import sys

from alia_ctx.cli import run_commands

if __name__ == "__main__":
    sys.argv.insert(1, "export-hf")
    run_commands.main()
