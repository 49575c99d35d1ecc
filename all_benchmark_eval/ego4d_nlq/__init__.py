"""Ego4D-NLQ: moments that a question about a first-person video is answered by."""
