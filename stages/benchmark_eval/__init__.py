"""Benchmark evaluation: five models on the same texts and questions, with intervals and verdicts."""
