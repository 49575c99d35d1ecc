"""From questions to answer lines."""
