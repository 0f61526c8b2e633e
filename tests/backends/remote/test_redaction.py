"""Keys and passwords are taken out of messages by their value, whatever they look like."""

from __future__ import annotations

import httpx
import openai
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from loopback import Loopback, Reply
from pydantic import BaseModel, SecretStr

from entropy_chains.backends.openai import OpenAIBackend
from entropy_chains.backends.remote.redaction import SHORTEST_SECRET, hiding, secrets_of
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.doctor.examine import examine
from entropy_chains.errors import BackendError, NoLogprobsError, quoted

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = [{"role": "user", "content": "What is 6*7?"}]
KEYS = [
    "AIzaSyA1234567890abcdefGHIJKLmnopqrs",
    "0123456789abcdef0123456789abcdef",
    "a1b2c3d4e5f6.ABCDEFGHijkl",
    "p4ss+word/ending==",
]


class Model(BaseModel):
    """As frameworks hold a key."""

    openai_api_key: SecretStr
    default_headers: dict[str, str]
    openai_api_base: str


HOLDERS = {
    "client": lambda key: openai.OpenAI(api_key=key, base_url="http://x/v1"),
    "async client": lambda key: openai.AsyncOpenAI(api_key=key, base_url="http://x/v1"),
    "header of a client": lambda key: openai.OpenAI(api_key="none", base_url="http://x/v1", default_headers={"X-Mine": key}),
    "query of a client": lambda key: openai.OpenAI(api_key="none", base_url="http://x/v1", default_query={"k": key}),
    "its HTTP client": lambda key: openai.OpenAI(
        api_key="none", base_url="http://x/v1", http_client=httpx.Client(headers={"X-Mine": key})
    ),
    "Azure": lambda key: openai.AzureOpenAI(azure_ad_token=key, azure_endpoint="http://x", api_version="2024-10-21"),
    "field": lambda key: Model(openai_api_key=SecretStr(key), default_headers={}, openai_api_base="http://x"),
    "header of a model": lambda key: Model(
        openai_api_key=SecretStr("none"), default_headers={"X-Mine": key}, openai_api_base="http://x"
    ),
    "settings of a call": lambda key: {"temperature": 1.0, "extra_headers": {"Authorization": f"Bearer {key}"}},
    "settings inside settings": lambda key: {"model_kwargs": {"extra_query": {"k": key}}},
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_a_key_is_found_wherever_it_is_held(holder, key):
    """In clients, models and settings, and in the objects that these hold."""
    with pytest.raises(BackendError) as raised, hiding(holder(key)):
        raise BackendError(f"the server said: {key!r} may not do that, nor Bearer {key}")
    assert key not in str(raised.value)
    assert str(raised.value).startswith("the server said: ")


@pytest.mark.parametrize("address", ["http://me:the%20pass@x/v1?sig=s3cr3tvalue", "postgres://me:the%20pass@x?k=s3cr3tvalue"])
def test_password_and_query_of_an_address_are_secrets(address):
    """As they are written, as they are meant, and as they are sent."""
    assert set(secrets_of({"base_url": address})) == {"the%20pass", "the pass", "s3cr3tvalue", "bWU6dGhlIHBhc3M="}


@given(st.text(st.characters(codec="utf-8"), min_size=SHORTEST_SECRET), st.text(max_size=30), st.text(max_size=30))
def test_no_text_of_ours_holds_the_key(key, before, after):
    """Whatever key and message are."""
    assume(key not in f"{before} [key] {after}")
    with pytest.raises(NoLogprobsError) as raised, hiding({"api_key": key}):
        raise NoLogprobsError(f"{before} {key} {after}", key)
    assert key not in str(raised.value)
    assert raised.value.said == "[key]"


def test_what_every_client_sends_is_no_secret():
    """Neither its headers nor its address is taken out of a message."""
    client = openai.OpenAI(api_key="none", base_url="http://localhost:8000/v1")
    said = "application/json from OpenAI/Python to http://localhost:8000/v1: gzip, deflate, keep-alive, python, async:false, none"
    with pytest.raises(BackendError) as raised, hiding(client, {"model": "a-model", "max_tokens": 1000, "stop": ["a stop"]}):
        raise BackendError(said)
    assert str(raised.value) == said


def test_other_errors_pass_as_they_are():
    """What is the SDK's own is raised as it was made."""
    error = ValueError("secret-key-value")
    with pytest.raises(ValueError, match="secret-key-value") as raised, hiding({"api_key": "secret-key-value"}):
        raise error
    assert raised.value is error


@given(st.text(max_size=60), st.integers(1, 40))
def test_what_is_cut_is_cut_between_words(text, limit):
    """A part of a key would not be known for one."""
    text = "".join(c if c.isprintable() else " " for c in text)
    short = quoted(text, limit)
    assert short == text or {*short.removesuffix("…").split(" ")} <= {*text.split(" "), ""}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("far", [0, 280, 480])
def test_a_server_that_repeats_the_key_tells_it_to_nobody(key, far):
    """In an error, a warning or a reason of ours, also where the message is cut; nor does the doctor."""
    said = f"{'x ' * (far // 2)}the key {key} is not allowed to request logprobs"

    def script(body):
        return Reply(status=403, message=said) if body.get("logprobs") else Reply(status=500, message=said)

    with Loopback(script) as server, openai.OpenAI(api_key=key, base_url=server.url, max_retries=0) as client:
        told = []
        for settings in ({}, {"without_logprobs": "full"}):
            with pytest.raises(BackendError) as raised:
                OpenAIBackend(client, "scripted", **settings).generate([ASKED], policy=POLICY)
            told.append(str(raised.value))
        server.script = lambda body: Reply(status=403, message=said) if body.get("logprobs") else Reply()
        with pytest.warns(UserWarning, match="logprobs") as warned:
            (made,) = OpenAIBackend(client, "scripted", without_logprobs="full").generate([ASKED], policy=POLICY)
        told += [made.outcome.reason, *(str(each.message) for each in warned), repr(examine(client, "scripted"))]
    assert not [text for text in told if key in text or key[:12] in text]


def test_a_terminal_obeys_nothing_that_a_server_says():
    """Line ends become blanks; escapes, backspaces and marks of direction the sign for what has no form."""
    assert quoted("\x1b]0;pwned\x07\x1b[31mred\r\nerror: no\b\u202e") == "\ufffd]0;pwned\ufffd\ufffd[31mred  error: no\ufffd\ufffd"
