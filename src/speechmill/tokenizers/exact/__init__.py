"""Layers of codecs that give the same bits in any company."""
