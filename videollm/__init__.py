"""The core of temporally grounded video-language models: it names no head and no benchmark (see README.md)."""
