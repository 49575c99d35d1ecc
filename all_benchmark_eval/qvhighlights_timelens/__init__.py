"""QVHighlights-TimeLens: TimeLens' own annotations of QVHighlights."""
