"""Figures that tell made-up text from speech, and the joining of transcripts."""
