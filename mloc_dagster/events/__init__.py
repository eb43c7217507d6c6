"""What happened, as facts in the past tense, and who hears of it."""
