"""What deployed runs saved."""
