"""Making rejected answers: by factor, by rewording, from the model's own answers, from packed files."""
