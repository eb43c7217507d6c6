"""Tasks as people ask for them: launch, show, cancel, retry. Plain functions over an instance."""
