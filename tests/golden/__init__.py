"""What Speechmill is from outside, written down by the code before its modules got their rooms."""
