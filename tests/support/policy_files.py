"""A policy file with every field of the contract."""

from __future__ import annotations

from entropy_chains.core.policy import FORMAT

FULL = {
    "format": FORMAT,
    "version": 1,
    "model": "entropy-chains/demo",
    "aliases": ["demo.gguf"],
    "mode": "thinking",
    "scope": "call",
    "signal": "mean_entropy",
    "unit": "bits",
    "estimator": "renormalised",
    "k": 20,
    "temperature": [0.6],
    "temperature_mode": "raw",
    "segmentation": {"boundary": "line", "min_tokens": 32},
    "template": "sha256:0123456789abcdef",
    "mass_floor": {"position": 0.5, "step": 0.8},
    "method": "certified",
    "rule": "entropy+agreement",
    "thresholds": [0.31, None],
    "min_steps": 2,
    "active": True,
    "reason": "certified",
    "calibration": {"runs": 240, "remaining_tokens": [410.4, 198.0, 0.0]},
    "from_the_future": {"kept": [1, 2]},
}
"""A policy file's object with every field of the contract, and one that is not known."""
