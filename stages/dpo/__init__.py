"""The DPO stage: teaches the assistant which of two answers is the better one."""
