"""Screening: repair, language, lists, scores and personal data, in batches of Arrow strings."""
