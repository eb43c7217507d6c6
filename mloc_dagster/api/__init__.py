"""The HTTP API: accepts templates durably, and shows what became of them."""
