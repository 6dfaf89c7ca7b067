"""Model in, graph and engine out."""
