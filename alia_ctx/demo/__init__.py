"""The text, the conversations and the tokenizer of the demo; nothing else uses them."""
