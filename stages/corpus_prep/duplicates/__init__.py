"""What the corpus holds twice, and what it holds of benchmarks: found in bounded memory, decided by stated
rules.

`near_duplicates` (MinHash-LSH, every pair verified), `repeated_spans` (lines and paragraphs), `repeated_runs`
(runs of words), `dedup_index` (against earlier builds), `contamination` (against benchmarks).
"""
