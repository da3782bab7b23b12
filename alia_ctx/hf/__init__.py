"""Names and rules of Hugging Face: models in and out of checkpoints, streamed and verified."""

from alia_ctx.optional_packages import guard

guard()  # before transformers is imported
