"""A stage's life, update by update. Knows neither Megatron nor Hugging Face."""
