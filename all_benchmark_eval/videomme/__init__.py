"""Video-MME: multiple choice about 900 videos of 11 s to an hour."""
