"""Where speech is, and where it is cut."""
