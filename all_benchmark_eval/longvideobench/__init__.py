"""LongVideoBench: multiple choice about videos of up to an hour."""
