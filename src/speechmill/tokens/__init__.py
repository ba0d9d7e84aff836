"""What is done with stored tokens."""
