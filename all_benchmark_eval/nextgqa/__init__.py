"""NExT-GQA: multiple-choice questions whose evidence has to be found in the video."""
