"""Text: figures that tell made-up text from speech, and transcripts joined."""
