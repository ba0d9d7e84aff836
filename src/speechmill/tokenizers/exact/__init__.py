"""Layers of codecs whose output has the same bits on any number of threads, beside any others."""
