"""What a model or server allows, tried on itself."""
