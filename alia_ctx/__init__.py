"""Extend the context of a pre-trained Llama-family model, in stages, on Megatron-Core."""

__version__ = "0.1.0"
