"""A plug-in's settings: how they are read from a request, which are refused, and that nothing of them is kept."""

from __future__ import annotations

import json
import sys
import tracemalloc
import warnings
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from engine_rows import SERVING, SIZE, WORDS, asked

from entropy_chains.backends.engine import settings as engine_settings
from entropy_chains.backends.engine.requests import Rows
from entropy_chains.backends.engine.settings import Serving, check, read
from entropy_chains.backends.engine.slots import Seats
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import InputError, PolicyError, SettingsError

POLICY = Policy("demo", thresholds=(0.3,), segmentation=Segmentation("line", 32), template=WORDS.template)
GOOD = json.dumps(POLICY.to_dict())


def test_a_policy_is_read_from_a_path_or_from_its_content(tmp_path):
    """Both give the policy, and a path that changed is read anew."""
    path = tmp_path / "policy.json"
    POLICY.save(path)
    assert read({"entropy_chains_policy": str(path)}).policy == POLICY
    assert read({"entropy_chains_policy": GOOD, "entropy_chains_stop": 0}).policy == POLICY


def test_inline_numbers_make_a_policy():
    """Every number lands in its place; k 0 is the whole vocabulary."""
    keys = {"threshold": 0.25, "boundary": "line", "min_tokens": 8, "min_steps": 3, "k": 0, "stop": "true", "holdout": 0}
    settings = read(asked(**keys).extra_args)
    policy = settings.policy
    assert (policy.thresholds, policy.min_steps, policy.k, policy.estimator) == ((0.25,), 3, None, "full")
    assert policy.segmentation == Segmentation("line", 8)
    assert (settings.stop, settings.holdout) == (True, False)
    check(settings, SERVING)


def test_who_asks_nothing_has_no_settings():
    """Other extensions' arguments are none of ours."""
    assert read(None) is None
    assert read({"other": 1}) is None


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"treshold": 1}, "entropy_chains_treshold is unknown"),
        ({"threshold": "low"}, "entropy_chains_threshold is 'low'"),
        ({"threshold": float("nan")}, "nan"),
        ({"threshold": 10**400}, "entropy_chains_threshold"),
        ({"threshold": 1e9}, "1000 bits"),
        ({"threshold": [1]}, r"\[1\]"),
        ({"threshold": True}, "True"),
        ({"threshold": 1, "boundary": ["line"]}, "entropy_chains_boundary"),
        ({"threshold": 1, "min_tokens": 10**30}, "entropy_chains_min_tokens"),
        ({"threshold": 1, "min_steps": 0}, "entropy_chains_min_steps is 0"),
        ({"threshold": 1, "k": 2**63}, "entropy_chains_k is 9223372036854775808"),
        ({"threshold": 1, "k": 2.0}, "entropy_chains_k is 2.0"),
        ({"threshold": 1, "stop": 10**5000}, "entropy_chains_stop"),
        ({"threshold": 1, "stop": None}, "entropy_chains_stop is None"),
        ({"threshold": 1, "id": "x" * 201}, "entropy_chains_id"),
        ({"threshold": 1, "id": "\ud800"}, "entropy_chains_id"),
        ({"threshold": 1, "on_mismatch": ["warn"]}, "entropy_chains_on_mismatch"),
        ({"threshold": 1, "boundary": "word"}, "'word'"),
        ({"threshold": 1, "min_tokens": 0}, "min_tokens is 0"),
        ({"threshold": 1, "min_steps": 1.5}, "entropy_chains_min_steps is 1.5"),
        ({"threshold": 1, "k": -1}, "k is -1"),
        ({"threshold": 1, "stop": "perhaps"}, "entropy_chains_stop is 'perhaps'"),
        ({"threshold": 1, "on_mismatch": "ignore"}, "entropy_chains_on_mismatch is 'ignore'"),
        ({"stop": 0}, "give entropy_chains_policy or entropy_chains_threshold"),
        ({"policy": json.dumps({"format": "?"}), "threshold": 1}, "not a policy"),
        ({"policy": GOOD, "threshold": 1}, "contradict"),
        ({"policy": "{"}, "not JSON"),
        ({"policy": "{}"}, "not a policy"),
        ({"policy": 7}, "entropy_chains_policy is 7"),
        ({"policy": "/etc/hostname"}, "not a policy file"),
        ({"policy": "/nowhere/policy.json"}, "not a policy file"),
        ({"policy": "/nowhere/\0.json"}, "not a policy file"),
        ({"policy": "/" + "x" * 100_000 + ".json"}, "not a policy file"),
        ({"policy": '{"format":' + "[" * 200_000}, "nested too deep"),
        ({"policy": GOOD[:-1] + ', "active": true}'}, "'active' stands twice"),
        ({"policy": json.dumps(POLICY.to_dict() | {"thresholds": [10**400]})}, "thresholds"),
        ({"policy": json.dumps(POLICY.to_dict() | {"calibration": {"remaining_tokens": [None]}})}, "remaining_tokens"),
        ({"policy": "{" + " " * 2**20 + "}"}, "entropy_chains_policy"),
        ({"policy": [GOOD]}, "entropy_chains_policy"),
    ],
)
def test_a_setting_that_cannot_be_read_is_refused_by_name(keys, said):
    """The message names the value; vLLM makes HTTP 400 of it, for it is a ValueError."""
    with pytest.raises(InputError, match=said.replace("{", r"\{")):
        read(asked(**keys).extra_args)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*engine_settings.KINDS, "other"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
            | st.sampled_from([0, 1, 9, 2**53, 2**63, 10**400, 0.5, "1", "true", "line", "warn", GOOD, "policy.json", "/"]),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
            max_leaves=4,
        ),
        max_size=5,
    )
)  # fmt: skip
def test_whatever_a_request_says_it_is_refused_or_watched(keys):
    """InputError at the door, or a row that is seated, fed and taken away without an error. Nothing else is ever raised."""
    params = asked(**keys)
    try:
        found = read(params.extra_args)
        if found is not None:
            check(found, SERVING, params)
    except InputError:
        return
    rows = Rows(SERVING, 1)
    seats = Seats(rows, left_limit=1)
    output = []
    seats.update(SimpleNamespace(removed=[], added=[(0, params, WORDS.encode("1=?<think>\n"), output)], moved=[]))
    for token in WORDS.encode("1234\n56789\n"):
        seats.step(torch.zeros(1, SIZE))
        output.append(token)
    seats.update(SimpleNamespace(removed=[0], added=[], moved=[]))
    assert not rows._failed


def test_what_is_remembered_of_requests_is_bounded(tmp_path):
    """Forty policies of a megabyte leave nothing behind; a file is remembered once, however its path is written."""
    path = tmp_path / "policy.json"
    POLICY.save(path)
    seats = Seats(Rows(SERVING, 1), left_limit=256)
    engine_settings._from_file.cache_clear()
    tracemalloc.start()
    for n in range(40):
        params = asked(policy=json.dumps(POLICY.to_dict() | {"note": "y" * 10**6 + str(n)}))
        seats.update(SimpleNamespace(removed=[], added=[(0, params, WORDS.encode("<think>\n"), [])], moved=[]))
        assert seats._seats[0].row.on
        seats.update(SimpleNamespace(removed=[0], added=[], moved=[]))
        read({"entropy_chains_policy": str(tmp_path / ("x/../" * n) / "policy.json")})
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 5e6
    assert engine_settings._from_file.cache_info().currsize == 1


def test_a_file_that_is_no_policy_is_not_told_from_one_that_is_not_there(tmp_path):
    """A request cannot find out what lies on the server."""
    (tmp_path / "other.json").write_text('{"secret": 1}')
    said = []
    for name in ("other.json", "none.json"):
        with pytest.raises(PolicyError) as caught:
            read({"entropy_chains_policy": str(tmp_path / name)})
        said.append(str(caught.value).replace(name, ""))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rule": "entropy+agreement"}, "reads an answer"),
        ({"mode": "refine"}, "mode"),
        ({"signal": "eat"}, "on eat reads an answer"),
        ({"signal": "trial_entropy"}, "on trial_entropy reads an answer"),
        ({"signal": "of_my_own"}, "'of_my_own' is not recorded"),
        ({"model": "another"}, "model 'another'"),
        ({"template": "sha256:0"}, "template 'sha256:0'"),
        ({"temperature_mode": "scaled"}, "temperature_mode"),
    ],
)
def test_a_policy_for_something_else_is_refused(change, said):
    """What the engine cannot do or does not serve; the message names the value."""
    text = json.dumps(POLICY.to_dict() | change)
    with pytest.raises(SettingsError, match=said):
        check(read({"entropy_chains_policy": text}), SERVING)


def test_a_policy_for_what_is_served_is_taken():
    """By the served name, the path or an alias."""
    for name in ("demo", "a/path"):
        check(read({"entropy_chains_policy": json.dumps(POLICY.to_dict() | {"model": name})}), SERVING)
    check(read({"entropy_chains_policy": json.dumps(POLICY.to_dict() | {"model": "x", "aliases": ["demo"]})}), SERVING)


def test_a_mismatch_can_be_let_through():
    """on_mismatch=warn: a warning, as everywhere in the package."""
    text = json.dumps(POLICY.to_dict() | {"model": "another"})
    with pytest.warns(UserWarning, match="another"):
        check(read({"entropy_chains_policy": text, "entropy_chains_on_mismatch": "warn"}), SERVING)


def test_what_clients_send_is_not_kept():
    """Warnings of many requests leave nothing in the process's registries, and each is a short line."""
    texts = [json.dumps(POLICY.to_dict() | {"model": f"{n}" + "M" * 10_000, "temperature": [0.1] * 500}) for n in range(5)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for text in texts:
            asked_with = {"entropy_chains_policy": text, "entropy_chains_on_mismatch": "warn"}
            check(read(asked_with), SERVING, SimpleNamespace(temperature=0.7))
    assert len(caught) == 2 * len(texts)
    assert max(len(str(w.message)) for w in caught) < 400
    registries = [vars(m).get("__warningregistry__", {}) for m in list(sys.modules.values()) if hasattr(m, "__dict__")]
    assert not [key for registry in registries for key in registry if "MMM" in str(key)]


@pytest.mark.parametrize("change", [{"signal": "S" * 900_000}, {"model": "M" * 900_000}, {"template": "T" * 900_000}])
def test_a_refusal_is_short(change):
    """However long what it is about."""
    with pytest.raises(SettingsError) as raised:
        check(read({"entropy_chains_policy": json.dumps(POLICY.to_dict() | change)}), SERVING)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("name", ["logit_bias", "allowed_token_ids", "bad_words"])
def test_what_changes_the_logits_is_refused(name):
    """The entropy would not be the one that was calibrated."""
    settings = read(asked(threshold=1).extra_args)
    with pytest.raises(SettingsError, match=name):
        check(settings, SERVING, SimpleNamespace(**{name: [1]}))


def test_a_server_that_cannot_close_thinking_says_so():
    """No tokenizer, no tags, or tokens drafted ahead."""
    settings = read(asked(threshold=1).extra_args)
    for serving in (Serving.of(("m",), None), Serving(("m",), WORDS, speculative=True)):
        with pytest.raises(SettingsError):
            check(settings, serving)
        assert Rows(serving, 1).begin(settings, [1]) is None
