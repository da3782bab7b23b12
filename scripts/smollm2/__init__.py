"""A real model extended from 8,192 to 163,840 tokens: weights, corpus, stages, proof."""
