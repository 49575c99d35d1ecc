"""From settings to a trained checkpoint."""
