"""transformers behind the seam of engines."""
