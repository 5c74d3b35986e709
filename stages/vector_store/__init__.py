"""Documents to a searchable store: chunks, vectors, postings, and how well they find."""
