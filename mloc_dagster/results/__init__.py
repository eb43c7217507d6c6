"""What a task leaves behind: rows, responses, exports, manifest, delivery."""
