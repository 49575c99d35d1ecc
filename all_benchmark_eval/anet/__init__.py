"""ActivityNet Captions: moment retrieval."""
