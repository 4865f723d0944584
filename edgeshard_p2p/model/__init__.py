"""The model: files, weights, KV, and the passes through them.  Importing it imports no torch."""
