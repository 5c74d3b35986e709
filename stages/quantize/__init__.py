"""Quantize: the assistant's weights as 8-bit and 4-bit integers, and what that costs and saves."""
