"""What following a stream costs: ``Monitor.feed`` and ``BatchMonitor.feed``, a token."""

from __future__ import annotations

from measure import Paired, Row, compare, turn_by_turn

K, STEP = 20, 40
"""Alternatives a position, and tokens a paragraph."""


def monitors(quick: bool) -> list[Row]:
    """Benchmark 4: a stream of text in paragraphs, every token inside the thinking, with a policy that never stops."""
    import numpy as np

    from entropy_chains import Alternative, BatchMonitor, Monitor, Policy, Token, token_entropy

    count = 400 if quick else 4000
    rng = np.random.default_rng(0)
    policy = Policy("any", (0.0,), reason="certified")
    tokens = []
    for n in range(count):
        logprobs = np.sort(np.log(rng.dirichlet(np.full(K, 0.3)) * 0.98 + 1e-9))[::-1].tolist()
        alternatives = tuple(Alternative(f" word{i}", x, i) for i, x in enumerate(logprobs))
        tokens.append(Token(".\n\n" if n % STEP == STEP - 1 else " word", 0, None, logprobs[0], alternatives))
    bounds = [token_entropy(t, k=K) for t in tokens]

    def entropies() -> None:
        for token in tokens:
            token_entropy(token, k=K)

    def sums() -> None:
        total = 0.0
        for token, b in zip(tokens, bounds, strict=True):
            total += b.entropy
            if token.text.endswith("\n\n"):
                total = 0.0

    def with_alternatives() -> None:
        monitor = Monitor(policy, thinking=True)
        for token in tokens:
            monitor.feed(token)

    def with_bounds() -> None:
        monitor = Monitor(policy, thinking=True)
        for token, b in zip(tokens, bounds, strict=True):
            monitor.feed(token, b)

    rounds = 3 if quick else 21
    each = {"per": count, "scale": "µs", "over": " a token"}
    rows = [
        compare(with_alternatives, entropies, rounds).row(
            "monitor", "Monitor.feed with alternatives, against token_entropy alone", **each
        ),
        compare(with_bounds, sums, rounds).row("monitor", "Monitor.feed with bounds, against a bare sum", **each),
    ]
    figures = np.array([[b.entropy, b.mass, b.lower, b.upper, b.confidence] for b in bounds])
    for size in (8, 64, 1024):
        steps = max(2 * STEP, count // size)
        texts = [[tokens[(n + r) % STEP].text for r in range(size)] for n in range(STEP)]
        values = [figures[rng.integers(0, count, size)] for _ in range(STEP)]

        def batch(size=size, steps=steps, texts=texts, values=values) -> None:
            monitor = BatchMonitor(policy, size, thinking=True)
            for n in range(steps):
                monitor.feed(texts[n % STEP], values[n % STEP], range(size))

        together, one = turn_by_turn(rounds, batch, with_bounds)
        paired = Paired([t / (size * steps) for t in together], [t / count for t in one])
        what = f"BatchMonitor.feed, {size} rows, against Monitor.feed with bounds"
        rows.append(paired.row("monitor", what, scale="µs", over=" a token"))
    return rows
