"""What a task may read and contact, and the one way in which URLs are fetched."""
