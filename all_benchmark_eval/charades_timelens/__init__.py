"""Charades-TimeLens: TimeLens' own annotations of Charades."""
