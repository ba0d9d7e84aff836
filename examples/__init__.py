"""Examples: the demo, its corpus, and job files."""
