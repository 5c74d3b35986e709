"""The SFT stage: teaches the base model to answer in a chat and to call tools."""
