"""The fleet's engine on Redis."""
