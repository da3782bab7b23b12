"""Names and rules of Hugging Face: models in and out of checkpoints, streamed and verified."""
