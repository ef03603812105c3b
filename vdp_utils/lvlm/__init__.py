"""A model, and a sample as its prompt."""
