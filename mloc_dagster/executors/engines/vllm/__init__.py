"""vLLM behind the seam of engines."""
