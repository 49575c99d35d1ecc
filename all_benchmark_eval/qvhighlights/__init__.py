"""QVHighlights: moment retrieval and highlight detection."""
