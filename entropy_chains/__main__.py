"""``python -m entropy_chains``."""

from entropy_chains.cli import main

main()
