"""Charades-STA: moment retrieval in videos of daily activities at home."""
