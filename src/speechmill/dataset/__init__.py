"""The dataset: its columns, where they lie, how rows get in, and how they are read."""
