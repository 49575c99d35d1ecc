"""ActivityNet-TimeLens: TimeLens' own annotations of ActivityNet."""
