"""E.T. Bench: twelve tasks about when and where in a video."""
