"""CG-Bench: multiple choice about long videos, with the moments that hold the clue."""
