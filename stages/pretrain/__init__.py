"""Stage 3: train a base model on the corpus; one dial, `depth`, sets everything that is not set by hand."""
