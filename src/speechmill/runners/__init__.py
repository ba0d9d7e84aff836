"""What runs shards. Adding an engine is one file, and one line in ``RUNNERS``."""
