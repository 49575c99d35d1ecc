"""ActivityNet-RTL: moments that a question has to be thought through for."""
