"""`python -m alia_ctx.cli`, and under torchrun `-m alia_ctx.cli`."""

from alia_ctx.cli import main

main()
