"""Row sources: lists, datasets, graph templates, upstream results; and the spool."""
