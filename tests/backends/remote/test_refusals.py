"""What is a refusal of logprobs, which runs need any, and what is known of a client. Pure."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_chains.backends.remote.refused import Known, known, refusal, without_logprobs
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import BackendError

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
UNREAD = {
    "fixed-step": Policy("scripted", (None,), rule="fixed-step", min_steps=2, segmentation=POLICY.segmentation),
    "agreement": Policy("scripted", (None,), rule="agreement", segmentation=POLICY.segmentation),
}


def status_error(status, body):
    """An error as the SDKs raise it."""
    return type("StatusError", (Exception,), {"status_code": status, "body": body})(f"Error code: {status} - {body}")


@pytest.mark.parametrize(
    "error",
    [
        status_error(403, {"message": "You are not allowed to request logprobs from this model", "code": None}),
        status_error(400, {"object": "error", "message": "Logprobs are not enabled for this model", "code": "3051"}),
        status_error(400, {"message": "Unsupported parameter: 'logprobs' is not supported with this model.", "param": "logprobs"}),
        status_error(400, {"message": "Logprobs is not enabled for models/gemini-2.5-pro", "status": "INVALID_ARGUMENT"}),
        status_error(400, {"message": "top_logprobs must be between 0 and 5"}),
        status_error(400, {"message": "Requested sample logprobs of 20, which is greater than max allowed: 5"}),
        status_error(400, {"message": "Invalid value: wrong parameter", "param": "top_logprobs"}),
        status_error(400, {"message": "Your API key is not allowed to request logprobs"}),
        status_error(422, [{"type": "extra_forbidden", "loc": ["body", "top_logprobs"], "msg": "Extra inputs are not permitted"}]),
        status_error(404, {"message": "No endpoints found that support the requested parameters: logprobs, top_logprobs."}),
        status_error(500, {"message": "logprobs is not supported with tools + stream", "code": 500}),
        status_error(501, {"message": "logprobs not implemented"}),
        status_error(400, {"message": "'logprobs': this model gives none; you sent {'logprobs': True, 'top_logprobs': 20}"}),
        status_error(400, {"message": 'Unknown name "top_logprobs": Cannot find field.'}),
        status_error(400, {"message": "logprobs: true is not supported"}),
        status_error(400, None),
        TypeError("Messages.create() got an unexpected keyword argument 'logprobs'"),
        BackendError("the server sent an error in the stream: log probabilities are not supported"),
    ],
    ids=lambda error: str(getattr(error, "body", error))[:40],
)
def test_a_refusal_of_logprobs_is_recognised(error):
    """Whatever the provider's wording, and whichever client raised it."""
    if getattr(error, "body", True) is None:
        error.args = ("Error response 400 while fetching /v1/chat: logprobs is not supported",)
    assert refusal(error)


@pytest.mark.parametrize(
    "error",
    [
        status_error(401, {"message": "Incorrect API key; the request had logprobs"}),
        status_error(429, {"message": "Too many requests with logprobs"}),
        status_error(500, {"message": "logprobs kernel crashed"}),
        status_error(404, {"message": "The model logprobs-7b does not exist"}),
        status_error(400, {"message": "Budget exceeded. Request: {'model': 'm', 'logprobs': True, 'top_logprobs': 20}"}),
        status_error(400, {"message": 'bad request {"logprobs":true,"top_logprobs":20,"n":1}: n'}),
        status_error(400, {"message": r"upstream said {\"logprobs\": true} is too long"}),
        status_error(
            400, {"message": "[{'type': 'missing', 'loc': ('messages',), 'input': {'logprobs': None, 'top_logprobs': 5}}]"}
        ),
        status_error(400, {"message": "ChatCompletionRequest(model='m', logprobs=True, top_logprobs=20, n=1) has no messages"}),
        status_error(400, {"message": "This model's maximum context length is 8192 tokens, and 9000 with logprobs were asked for"}),
        status_error(400, {"message": "Invalid API key, in a request for logprobs"}),
        status_error(400, {"message": "temperature is not supported"}),
        status_error(422, [{"type": "missing", "loc": ["body", "messages"], "msg": "Required", "input": {"logprobs": True}}]),
        SimpleNamespace(status_code=None, body={"message": "no access to logprobs", "code": 401}),
        ConnectionError("refused"),
    ],
    ids=str,
)
def test_another_error_is_not_taken_for_one(error):
    """An error that only mentions logprobs, by its status, its subject, or as a part of the request that it repeats."""
    assert refusal(error) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, st.sampled_from([None, 400, "400", 999, 0, -1, "x", True]))
def test_any_body_can_be_read(body, status):
    """No body of an error breaks the reading of it, and a key in it is not repeated."""
    said = refusal(status_error(status, {"message": "logprobs? not with sk-verysecret123", "more": body}))
    assert said is None or "sk-verysecret123" not in said


@pytest.mark.parametrize(
    ("policy", "stop", "expected"),
    [
        (POLICY, True, "error"),
        (POLICY, False, "full"),
        (None, True, "full"),
        (Policy("m", (0.2,), active=False, reason="no_signal"), True, "full"),
        (UNREAD["fixed-step"], True, "full"),
    ],
    ids=["stops", "switched off", "no policy", "not active", "reads no entropy"],
)
def test_an_error_is_for_runs_that_would_be_stopped_by_entropy(policy, stop, expected):
    """No other run needs logprobs; what else was chosen stays."""
    assert without_logprobs("error", policy, stop=stop) == expected
    assert without_logprobs("agreement", policy, stop=stop) == "agreement"


class Owner:
    """Whatever holds a connection."""

    def __eq__(self, other):
        return True

    __hash__ = None


def test_what_is_known_belongs_to_one_client_and_goes_with_it():
    """Equal objects share nothing; what cannot be watched remembers nothing."""
    one, other = Owner(), Owner()
    known(one, "m").refused = "no"
    assert (known(one, "m").refused, known(other, "m"), known(one, "another")) == ("no", Known(), Known())
    identity = id(one)
    del one
    gc.collect()
    from entropy_chains.backends.remote import refused

    assert identity not in refused._known
    known((), "m").refused = "no"
    assert known((), "m") == Known()
