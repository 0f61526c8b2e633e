"""What runs a transformers model."""
