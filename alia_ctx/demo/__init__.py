"""The text and the tokenizer of the demo; nothing else uses them."""
