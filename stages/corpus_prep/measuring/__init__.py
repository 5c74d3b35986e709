"""Measuring: what a text is like in numbers, and the rules that judge by the numbers alone.

    texts -> measure() -> statistics, hash and MinHash signature, stored beside the text
    statistics -> judge() -> which rules each document breaks

Moving a threshold decides anew from the statistics; no text is read for it. `measures.py` has the functions
for others to call, `rules.py` the rules with their thresholds and sources, `judging.py` decides, and
`line_edits.py` removes lines as C4 does. The compiled loops are in the `*_kernels.py`.
"""
