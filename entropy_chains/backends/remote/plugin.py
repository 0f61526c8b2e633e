"""The client's half of the vLLM plug-in: whether it is there, and what a request tells it. Pure: the caller does the asking."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from entropy_chains.backends.engine.settings import CHANGING, HELLO, PREFIX
from entropy_chains.core.policy import Policy
from entropy_chains.options import OnMismatch

NO_TOKEN = 2**31 - 1
"""An id that no vocabulary has: vLLM refuses the prompt right after the plug-in had its say, so nothing is ever generated."""


VERSION_PATH = "/version"
"""Path, below the server's root, where a vLLM tells its version."""

SAFE = (0, 6, 4)
"""The first vLLM that refuses an id that no vocabulary has; those before it die of one."""


def may_be_greeted(reply: Any) -> bool:
    """Whether :func:`hello` does a server no harm, by its reply at :data:`VERSION_PATH`: one of unknown version is left alone."""
    version = reply.get("version") if isinstance(reply, Mapping) else None
    match = re.match(r"v?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?\b", version) if isinstance(version, str) else None
    return match is not None and tuple(int(part or 0) for part in match.groups()) >= SAFE


def hello(model: str) -> dict[str, Any]:
    """The body of a request to ``/completions`` that is refused in any case, by the plug-in where there is one.

    Only for servers that :func:`may_be_greeted`.
    """
    return {"model": model, "prompt": [NO_TOKEN], "max_tokens": 1, "vllm_xargs": {PREFIX + HELLO: 1}}


def version_in(refusal: str) -> str | None:
    """The plug-in's version, from the message of the refusal; None where the plug-in did not write it."""
    match = re.search(r"entropy-chains plug-in (\S+) .*is here", refusal)
    return match[1] if match else None


def settings_for(
    policy: Policy, model: str, request: Mapping[str, Any], *, on_mismatch: OnMismatch = "error"
) -> dict[str, Any] | None:
    """What the body of a request says so that the plug-in closes the thinking by this policy.

    Args:
        policy: checked by the client, which knows its model by a name of its own.
        model: the name that the server knows it by.
        request: the user's settings of every request.
        on_mismatch: ``error`` or ``warn``.

    Returns:
        Fields of the body; None where the plug-in cannot follow: a rule that needs a probe, a signal that is not recorded in the
        engine, settings that change the logits which it reads, or settings of the user's own for it.
    """
    body = {**request, **(request.get("extra_body") or {})}
    arguments = body.get("vllm_xargs") or {}
    conflicts = any(body.get(name) for name in CHANGING) or any(str(key).startswith(PREFIX) for key in arguments)
    if not policy.active or policy.stop_rule.reads_answers or policy.stop_rule.unrecorded or conflicts:
        return None
    engine_policy = replace(policy, calibration={}, extra={}).for_model(model)  # what decides, and no more
    keys = {PREFIX + "policy": json.dumps(engine_policy.to_dict()), PREFIX + "on_mismatch": on_mismatch}
    return {"vllm_xargs": {**arguments, **keys}}
