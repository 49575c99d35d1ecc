"""ReXTime: multiple choice that needs reasoning across time, with the moment of the answer."""
