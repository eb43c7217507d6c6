"""What was accepted, durably, and what became of it: submissions, tasks and runs in PostgreSQL."""
