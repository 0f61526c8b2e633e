"""The process that compares formulas with math-verify: a line with two of them in, a line with the verdict out.

Run as a script by :mod:`entropy_chains.core.answer_maths`. It ends when its input does, and when a question takes too long: a
thread of the interpreter's own ends it then, whatever is being computed.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
from typing import Any

SECONDS = 5
"""For one question. The library is given a little less, which is enough but where it is deep in arithmetic."""
ROUNDING = 1e-6
"""Difference of two numbers, as a share of the gold answer, that is rounding."""
MEMORY = 2**31
"""Bytes of address space at most, where the system can bound it."""


def equal(gold: str, answer: str) -> bool:
    """Whether the library takes two formulas for equal."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    kinds = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    read = [parse(text if "$" in text else f"${text}$", kinds, parsing_timeout=SECONDS - 1) for text in (gold, answer)]
    return all(read) and bool(verify(*read, timeout_seconds=SECONDS - 1)) and nearly_equal(read[0][0], read[1][0])


def nearly_equal(gold: Any, answer: Any) -> bool:
    """Whether two values are, where both are numbers, equal but for a millionth: the library rounds to six decimals."""
    if not (getattr(gold, "is_number", False) and getattr(answer, "is_number", False)):
        return True
    return bool(abs((gold - answer).evalf(30)) <= ROUNDING * abs(gold.evalf(30)))


def main() -> None:
    """Serve until the input ends."""
    logging.disable(logging.CRITICAL)
    answers, sys.stdout = sys.stdout, open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (the library may print)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):
        pass
    import math_verify  # noqa: F401 (before the clock runs)

    silent = open(os.devnull, "w")  # noqa: SIM115
    for line in sys.stdin:
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=silent)
        try:
            is_equal = equal(*json.loads(line))
        except Exception:  # noqa: BLE001 (whatever it stumbles over, the formulas are not known to be equal)
            is_equal = False
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(is_equal), file=answers, flush=True)


if __name__ == "__main__":
    main()
