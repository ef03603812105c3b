"""What `make` and users call."""
