"""The bundled reasoner: a 1.2 M-parameter model that multiplies, checks itself, and thinks longer than it needs."""

from pathlib import Path

MODEL_NAME = "entropy-chains/demo"
MODEL_FOLDER = Path(__file__).parent / "model"
