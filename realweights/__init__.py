"""Real weights, real pictures, natural questions: what the heads learn of a pretrained language model and tower."""
