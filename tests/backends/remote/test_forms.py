"""Which settings say that the reply's form is given. That every caller asks the list: ``tests/integrations/test_forms.py``."""

import pytest

from entropy_chains.backends.remote import forms

TOOL = {"type": "function", "function": {"name": "f"}}


def reason(*places):
    return forms.never_cut(forms.merged(*places))


@pytest.mark.parametrize("name", forms.FORMATS)
def test_a_form_is_named(name):
    """By the setting that gives it, wherever that stands."""
    outer, _, inner = name.partition(".")
    form = {outer: {inner: {"type": "json"}} if inner else {"type": "json"}}
    for places in ([form], [{"extra_body": form}], [{"extra_body": {"nvext": form}}], [{"extra_body": {"extra_body": form}}]):
        assert f"({name})" in reason(*places)


@pytest.mark.parametrize("off", [None, False, "", {}, [], "text", "TEXT", {"type": "text"}, {"type": None}])
def test_a_format_that_is_free_text_is_no_form(off):
    """Nor is one that says nothing."""
    assert reason({"response_format": off}) is None
    assert reason({"text": {"format": off, "verbosity": "low"}}) is None


@pytest.mark.parametrize(
    "choice",
    [
        "required", "any", "ANY", "f", True, TOOL, {"name": "f"}, {"type": "any"}, {"type": "tool", "name": "f"},
        {"type": "allowed_tools", "mode": "required", "tools": [TOOL]},
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOL]}},
    ],
)  # fmt: skip
def test_a_forced_tool_call_is_never_cut(choice):
    """Any of the spellings of the APIs: a word, a name, an object."""
    assert "forced" in reason({"tool_choice": choice})
    assert "forced" in reason({"function_call": choice})


@pytest.mark.parametrize(
    "choice",
    [
        None, False, "", "auto", "none", "AUTO", {}, {"type": "auto"}, {"type": "none"},
        {"type": "allowed_tools", "mode": "auto", "tools": [TOOL]},
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOL]}},
    ],
)  # fmt: skip
def test_a_free_choice_is_no_form(choice):
    """Nor are tools, or whether several may be called at once."""
    assert reason({"tool_choice": choice, "function_call": choice, "tools": [TOOL], "parallel_tool_calls": True}) is None


def test_several_replies_are_several_streams():
    """One is one, and what is no number says nothing."""
    assert reason({"n": 2}) == "n is 2: only one stream can be followed"
    assert [reason({"n": n}) for n in (None, 0, 1, True, "2")] == [None] * 5


def test_any_json_is_a_form():
    """The setting of vLLM is an object of settings, of which one may be an empty schema; none of them is on without a value."""
    assert reason({"structured_outputs": {"json": {}}})
    assert reason({"structured_outputs": {"json": None, "json_object": False}}) is None


def test_a_word_is_free_for_its_own_setting_only():
    """A regular expression may be the word ``text``, a schema may have any type."""
    assert reason({"guided_regex": "text"})
    assert reason({"format": {"type": "text"}})


def test_later_places_win():
    """The call's settings over the bound ones over the model's, and the body's over all."""
    form = {"response_format": {"type": "json_object"}}
    assert reason(form, {"response_format": None}) is None
    assert reason({"response_format": None}, form)
    assert reason(form, None, {"extra_body": {"response_format": None}}) is None
    assert reason({"extra_body": form}, {"extra_body": {}}) is None
    assert reason(form, {"extra_body": "no object"})


@pytest.mark.parametrize("name", forms.SCHEMAS)
def test_an_object_as_schema_gives_the_form(name):
    """An empty one too: it means any JSON. None gives none."""
    for schema in ({}, {"additionalProperties": False}):
        assert forms.never_cut({name: schema})
    assert forms.never_cut({name: None}) is None
