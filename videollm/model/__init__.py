"""From a batch to loss terms or tokens: tower, connector, language model, head."""
