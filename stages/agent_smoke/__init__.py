"""Agent smoke test: the quantized model answers scenarios with tools, and must succeed often enough."""
