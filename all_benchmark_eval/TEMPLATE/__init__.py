"""What to copy for the next benchmark."""
