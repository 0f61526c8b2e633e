"""Entropy of positions: from an API's alternatives, and from the logits of a batch.

Run as a script it measures the logits in a process of its own: ``python entropies.py BACKEND THREADS ROUNDS``.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from gpu_logits import on_gpu
from measure import Paired, Row, compare, in_fresh_process, peak_memory

SHAPE = (32, 151_936)
"""Rows, and Qwen3's vocabulary."""

K = 20


def position(quick: bool) -> list[Row]:
    """Benchmark 2: one API position of 20 alternatives."""
    import numpy as np

    from entropy_chains import Alternative, Token, token_entropy

    rng = np.random.default_rng(0)
    tokens = []
    for _ in range(500):
        logprobs = np.sort(np.log(rng.dirichlet(np.full(K, 0.3)) * 0.98 + 1e-9))[::-1].tolist()
        alternatives = tuple(Alternative(f" word{n}", x, n, f" word{n}".encode()) for n, x in enumerate(logprobs))
        tokens.append(Token(alternatives[0].text, 0, alternatives[0].bytes, logprobs[0], alternatives))

    def ours() -> None:
        for token in tokens:
            token_entropy(token, k=K)

    def plain() -> None:
        for token in tokens:
            p = np.exp(np.array([a.logprob for a in token.alternatives]))
            p /= p.sum()
            -(p * np.log2(p)).sum()

    paired = compare(ours, plain, 5 if quick else 41)
    each = sorted(t / len(tokens) * 1e6 for t in paired.a)
    given = {"goal": 10.0, "note": "duplicates dropped, bounds, mass and confidence included"}
    return [
        Row("position", "token_entropy of 20 alternatives", each[len(each) // 2], "µs", each[0], each[-1], **given),
        paired.row("position", "against numpy, renormalised entropy only", per=len(tokens), scale="µs"),
        _against_uqlm([[a.logprob for a in token.alternatives] for token in tokens], 5 if quick else 41),
    ]


def _against_uqlm(positions: list[list[float]], rounds: int) -> Row:
    """Both from an API's entries, as they are in its JSON; the entropies must agree."""
    from uqlm_entropy import VERSION, scorer

    from entropy_chains import token_entropy

    figure, goal = f"from an API's entries: times as fast as UQLM {VERSION}", {"goal": 10.0, "least": True}
    try:
        theirs = scorer()
    except OSError as error:
        return Row("position", figure, None, "×", note=f"not run: {error}", **goal)
    entries = [{"top_logprobs": [{"logprob": x, "token": "word"} for x in position]} for position in positions]

    def ours() -> list[float]:
        return [token_entropy([e["logprob"] for e in d["top_logprobs"]], k=K).entropy for d in entries]

    def uqlm() -> Any:
        return theirs._compute_token_entropies(entries)

    if abs(uqlm() / math.log(2.0) - ours()).max() > 1e-9:
        raise AssertionError("UQLM's entropies are not ours: they cannot be compared")
    given = {"per": len(entries), "scale": "µs", "over": " a token"}
    return compare(ours, uqlm, rounds).flipped.row("position", figure, **given, **goal)


def logits(quick: bool) -> list[Row]:
    """Benchmark 3: the logits of a batch, float32 on the CPU, each measured in a fresh process; and on a GPU where there is one."""
    rows = []
    for backend, threads in (("torch", 1), ("torch", 2), ("numpy", 1)):
        found = in_fresh_process("entropies.py", backend, threads, 3 if quick else 15, threads=threads)
        for name, what in (("exact", "exact"), ("top", f"k = {K}")):
            paired = Paired(**found[name]["seconds"])
            label = f"{backend}, {threads} thread{'s' * (threads > 1)}, {what}"
            goal = {"goal": 2.0, "least": True} if backend == "torch" and name == "exact" else {}
            rows.append(paired.flipped.row("logits", f"{label}: times as fast as the usual formula", scale="ms", **goal))
            ours, usual = found[name]["bytes"]
            if ours is not None:
                note = f"{usual / 2**20:.1f} against {ours / 2**20:.1f} MiB; the logits have {math.prod(SHAPE) * 4 / 2**20:.1f}"
                value = usual / max(ours, 2**16)
                rows.append(Row("logits", f"{label}: times less extra memory", value, "×", note=note))
    return rows + on_gpu(SHAPE, K, usual_torch, quick)


def usual_torch(x: Any, k: int | None) -> Any:
    """What is usually written: log_softmax, exp, sum."""
    import torch

    logp = torch.log_softmax(x.float(), dim=-1)
    if k is None:
        return -(logp.exp() * logp).sum(-1) / math.log(2.0)
    logp = logp.topk(k, dim=-1).values
    logp = logp - logp.logsumexp(-1, keepdim=True)
    return -(logp.exp() * logp).sum(-1) / math.log(2.0)


def usual_numpy(x: Any, k: int | None) -> Any:
    """The same in numpy."""
    import numpy as np

    logp = x - x.max(-1, keepdims=True)
    logp -= np.log(np.exp(logp).sum(-1, keepdims=True))
    if k is not None:
        logp = np.partition(logp, -k, axis=-1)[:, -k:]
        logp -= np.log(np.exp(logp).sum(-1, keepdims=True))
    return -(np.exp(logp) * logp).sum(-1) / math.log(2.0)


def main() -> None:
    """Measure one library in this process; prints JSON."""
    import numpy as np

    from entropy_chains import logits_entropy

    backend, threads, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    x: Any = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32) * 3
    usual = usual_numpy
    if backend == "torch":
        import torch

        torch.set_num_threads(threads)
        x, usual = torch.from_numpy(x), usual_torch
    found = {}
    for name, k in (("exact", None), ("top", K)):

        def ours(k: int | None = k) -> Any:
            return logits_entropy(x, k).entropy

        def plain(k: int | None = k) -> Any:
            return usual(x, k)

        logits_entropy(x[:, :64], k), usual(x[:, :64], k)  # load what is loaded once
        taken = peak_memory(ours), peak_memory(plain)
        if abs(ours() - plain()).max() > 1e-3:
            raise AssertionError("the two formulas do not agree: they cannot be compared")
        found[name] = {"bytes": taken, "seconds": vars(compare(ours, plain, rounds))}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
