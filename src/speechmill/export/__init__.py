"""The rows in other files and layouts."""
