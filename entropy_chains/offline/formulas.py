"""The paper's thresholds (arXiv 2510.08146): formulas on the right and wrong answers of one step. They promise nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from entropy_chains.offline.diagnose import Separation


def entropy_mean(s: Separation) -> float | None:
    """Entropy mean, the paper's: τ = μ_c."""
    return s.mu_correct


def information(s: Separation) -> float | None:
    """Information-theoretic, the paper's: τ = μ_c + σ_c·ln(1 + |d|)."""
    if s.mu_correct is None or s.sigma_correct is None:
        return None
    return s.mu_correct + s.sigma_correct * math.log1p(abs(s.cohens_d or 0.0))


def bayes(s: Separation) -> float | None:
    """Minimum-error boundary of two Gaussians with priors: textbook; the paper names it and gives no formula.

    The root between μ_c and μ_i of ln(π_c/σ_c) - (τ-μ_c)²/2σ_c² = ln(π_i/σ_i) - (τ-μ_i)²/2σ_i²; None where there is none.
    """
    mu, sigma, nu, rho = s.mu_correct, s.sigma_correct, s.mu_wrong, s.sigma_wrong
    if mu is None or sigma is None or nu is None or rho is None or sigma <= 0 or rho <= 0 or mu >= nu:
        return None
    a = 0.5 / rho**2 - 0.5 / sigma**2
    b = mu / sigma**2 - nu / rho**2
    c = math.log(s.right * rho / (s.wrong * sigma)) + nu**2 / (2 * rho**2) - mu**2 / (2 * sigma**2)
    roots = np.roots([a, b, c])  # a = 0 leaves one root
    # Where right answers stop being the likelier ones, the difference falls.
    crossing = [float(r.real) for r in roots if abs(r.imag) < 1e-12 and mu <= r.real <= nu and 2 * a * r.real + b <= 0]
    return min(crossing, default=None)


def scale_invariant(s: Separation) -> float | None:
    """Scale-invariant universal, a reconstruction (only its factors are public): τ = μ_c·(1 + max(0, 1 - σ_c/μ_c)·ln(1 + |d|))."""
    if s.mu_correct is None or s.sigma_correct is None:
        return None
    steadiness = max(0.0, 1.0 - s.sigma_correct / s.mu_correct) if s.mu_correct > 0 else 0.0
    return s.mu_correct * (1.0 + steadiness * math.log1p(abs(s.cohens_d or 0.0)))


PLAIN: dict[str, Callable[[Separation], float | None]] = {
    "mean": entropy_mean,
    "information": information,
    "bayes": bayes,
    "scale-invariant": scale_invariant,
}
