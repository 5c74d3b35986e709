"""Stage 1: from the user's text, or the documentation of the user's own Python, to clean training data."""
