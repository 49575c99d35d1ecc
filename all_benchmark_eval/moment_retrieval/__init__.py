"""Moment retrieval: any data set in a common form."""
