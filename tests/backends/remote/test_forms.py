"""Which settings say that the reply's form is given. That every caller asks the list: ``tests/integrations/test_forms.py``."""

from enum import StrEnum

import pytest
from pydantic import BaseModel

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
    assert reason({"n": "2"})
    assert reason({"n": 2.0})
    assert [reason({"n": n}) for n in (None, 0, 1, True, "1", 1.0, "many")] == [None] * 7


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


# --- as servers and SDKs write them


class Mode(StrEnum):
    """As Gemini's SDK has it."""

    AUTO = "AUTO"
    ANY = "ANY"


class Config(BaseModel):
    """As Gemini's SDK has it."""

    response_mime_type: str | None = None
    candidate_count: int = 1
    temperature: float = 0.0


SCHEMA = {"type": "object", "properties": {"value": {"type": "integer"}}}

GIVEN = [
    {"responseMimeType": "application/json"},
    {"generation_config": {"response_mime_type": "application/json"}},
    {"generationConfig": {"responseSchema": SCHEMA}},
    {"generationConfig": {"responseJsonSchema": {}}},
    {"generationConfig": {"candidateCount": 2}},
    {"generation_config": Config(response_mime_type="application/json")},
    {"extra_body": {"generationConfig": {"responseSchema": SCHEMA}}},
    {"extra_body": {"nvext": {"guided_json": {}}}},
    {"outputConfig": {"textFormat": {"type": "json_schema", "structure": SCHEMA}}},
    {"additionalModelRequestFields": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}},
    {"structured_outputs": {"regex": "[0-9]+", "backend": "xgrammar"}},
    {"structured_outputs": {"json": {}, "_backend": "xgrammar"}},
    {"structured_outputs": {"a form of tomorrow": "[0-9]+"}},
    {"response_format": Config},
    {"tool_choice": {"any": {}}},
    {"tool_choice": {"tool": {"name": "f"}}},
    {"toolConfig": {"toolChoice": {"any": {}}}},
    {"toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}}},
    {"tool_config": {"function_calling_config": {"mode": Mode.ANY}}},
]

FREE = [
    {"generationConfig": {"responseMimeType": "text/plain", "candidateCount": 1}},
    {"generation_config": Config(response_mime_type="text/plain")},
    {"generationConfig": {"thinkingConfig": {"thinkingBudget": 100}}},
    {"structured_outputs": {"backend": "xgrammar"}},
    {"structured_outputs": {"_backend": "xgrammar", "disable_any_whitespace": True, "whitespace_pattern": " ?", "json": None}},
    {"tool_choice": {"auto": {}}},
    {"toolConfig": {"toolChoice": {"auto": {}}, "tools": [{}]}},
    {"toolConfig": {"functionCallingConfig": {"mode": "AUTO"}}},
    {"tool_config": {"function_calling_config": {"mode": Mode.AUTO}}},
    {"max_tokens": 2, "temperature": 2},
]


@pytest.mark.parametrize("settings", GIVEN, ids=str)
def test_the_form_is_given(settings):
    """However a setting is written, and wherever in the request it stands."""
    assert reason(settings) is not None


@pytest.mark.parametrize("settings", FREE, ids=str)
def test_the_form_is_free(settings):
    """What only says how a form is kept, or that a tool may be called, gives none: such replies are stopped."""
    assert reason(settings) is None


def test_fields_of_a_model_are_settings():
    """Those of the list, and no others."""
    assert forms.of_model(Config(response_mime_type="application/json")) == {
        "response_mime_type": "application/json",
        "candidate_count": 1,
    }
