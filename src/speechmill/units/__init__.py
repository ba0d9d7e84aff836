"""K-means units: sampling frames, and fitting them."""
