"""ActivityNet Captions: dense captioning."""
