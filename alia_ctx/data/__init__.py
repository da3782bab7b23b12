"""From text to rows of training data: documents, token stores, plans. NumPy only."""
