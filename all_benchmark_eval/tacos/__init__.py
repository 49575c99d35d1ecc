"""TACoS: moment retrieval in long videos of cooking."""
