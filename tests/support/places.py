"""Where tests find the project, and what is shared beside it (not in every checkout)."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT.parent / "shared" / "corpus"
