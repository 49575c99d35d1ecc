"""ExtremeWhenBench: moments in videos of an hour and more."""
