"""The moving-shapes benchmark: synthetic clips with known events."""
