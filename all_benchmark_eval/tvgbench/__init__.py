"""TVGBench: moment retrieval by kind of question."""
