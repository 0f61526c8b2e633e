"""Every page tells what there is not, as truly as what there is: a sentence that denies something stands here with its proof.

A denial gets out of date in silence: what it denies is added, and nothing fails. So each one is listed below, as it stands, beside
a check, or beside the name of the test that proves it. A new or changed denial is in no list, and a proof that is gone is missed.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from places import ROOT

from entropy_chains.offline.certify import examples_needed

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "integrations").glob("*/README.md"))]

# --- what a denial is

NOT_SHOWN = re.compile(r"^(?P<mark>```+)[^\n]*\n.*?^(?P=mark)[ ]*$|<!--.*?-->", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*|#]|\d+\.) )|\n(?=\|)")
"""Between paragraphs, items, headings and rows."""

OF_ITS_TIME = re.compile(
    r"\byet\b|\bthis (?:release|version)\b|\btoday\b|\bfor now\b|\bplanned\b|\bunsupported\b|\bnot (?:supported|implemented|available)\b",
    re.IGNORECASE,
)
"""Denies, wherever it stands in a sentence."""

DENIAL = re.compile(
    r"""\bcannot\b | \b(?:does|do)\ not\ (?:support|work|exist|offer)\b | \bdo(?:es)?\ not(?=[ ]?[(.;:]|$)
    | \b(?:not|never)\ (?:tested|measured|run|tried)\b | \b(?:is|are|has|have|offers?|gives?)\ (?:no|none|nothing)\b
    | \bno\ figure\b | \bnothing\ else\b | \bout\ of\ reach\b | \b(?:works?|supports?)\ only\b | \bonly\ (?:works?|supports?)\b""",
    re.IGNORECASE | re.VERBOSE,
)
CONDITION = re.compile(r"\b(?:where|if|when|what|who|unless|than|whatever)\b", re.IGNORECASE)
"""After one of these a sentence tells of a case, and denies nothing by itself: "where a model has no signal, it never stops"."""


def denies(sentence: str) -> bool:
    """Whether a sentence says of something that it is not there, or does not work."""
    found = DENIAL.search(sentence)
    return bool(OF_ITS_TIME.search(sentence) or (found and not CONDITION.search(sentence[: found.start()])))


def denials(text: str) -> Iterator[str]:
    """A page's sentences that deny; one in a table has its row's first cell before it. Code is left out."""
    for block in BLOCK.split(NOT_SHOWN.sub("\n\n", text)):
        line = " ".join(block.split())
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else [line]
        for n, cell in enumerate(cells):
            for sentence in re.split(r"(?<=[.!?:;])\**\s+", cell):
                if denies(sentence):
                    yield f"{cells[0]} | {sentence}" if n else sentence


# --- proofs


def unreleased() -> bool:
    """The changelog's only heading is of a version to come, and so are the packages'."""
    return re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE) == ["[0.1.0] - unreleased"]


def make_needs_little() -> bool:
    """The targets' commands are Python's own tools and the shell's."""
    rules = re.findall(r"^\t@?(\S+)", (ROOT / "Makefile").read_text(encoding="utf-8").partition("check:")[0], re.MULTILINE)
    return set(rules) <= {"$(BIN)/entropy-chains", "$(BIN)/python"}


def no_gpu_figures() -> bool:
    """The newest results hold no figure of a GPU."""
    newest = max((ROOT / "benchmarks" / "results").glob("*.json"))
    return "not run: torch finds no CUDA device" in newest.read_text(encoding="utf-8")


def one_entry_point() -> bool:
    """The distribution holds an entry point, and no module."""
    folder = ROOT / "integrations" / "vllm-entropy-chains"
    parsed = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    return list(parsed["project"]["entry-points"]) == ["vllm.logits_processors"] and not list(folder.rglob("*.py"))


def nowhere(words: str, folder: str) -> Callable[[], bool]:
    """A check that no file of a folder but this one has these words."""
    files = [path for path in (ROOT / folder).rglob("*.py") if path != Path(__file__)]
    return lambda: not any(re.search(words, path.read_text(encoding="utf-8")) for path in files)


LANGCHAIN, LLAMA_INDEX = "integrations/langchain-entropy-chains/tests/", "integrations/llama-index-llms-entropy-chains/tests/"
OF_A_CASE = "tells of a case, or of a word's meaning"
"""For a sentence that has the form of a denial and denies nothing that the package could have."""
OF_OTHERS = "tells of other software, which it names"

Proof = str | Callable[[], bool]

PROOFS: dict[str, dict[str, Proof]] = {
    "README.md": {
        "Both need Python ≥ 3.11, make and a package index, nothing else:": make_needs_little,
        "From a clone, today;": "tests/test_install.py::test_the_line_for_a_clone_installs",
        "After the first release (today nothing of it is on a package index):": unreleased,
    },
    "docs/benchmarks.md": {"logits | not run": no_gpu_figures, "logits | not run:": no_gpu_figures},
    "docs/calibration.md": {
        "the vLLM plug-in | it cannot ask for an answer:": "tests/backends/engine/test_settings.py::test_a_policy_for_something_else_is_refused",
    },
    "docs/commands.md": {
        "`--json` prints one JSON object on standard output and nothing else there.": "tests/test_cli.py::test_offline_commands_work_together",
        "`--calibration N` | below 45 there is no certificate": lambda: examples_needed(0.05, 0.1) == 45,
    },
    "docs/compare.md": {"Budgets have no published value.": "tests/offline/test_contenders.py::test_everyone_takes_part"},
    "docs/diagnosis.md": {
        "Stopping on entropy works only if the model is less sure when it is wrong.": "tests/offline/test_contenders.py::test_no_signal_means_no_stop",
        "`no_signal` | the two cannot be told apart": "tests/offline/test_diagnose.py::test_verdicts",
    },
    "docs/doctor.md": {
        "early stopping works here, works with something (a smaller k, a setting, another way to the answer), or cannot work, and why;": "tests/doctor/test_examine.py::test_what_makes_stopping_impossible",
        'A server on which it cannot work is an answer, so the exit status is 0, and `--json` has `"stopping":': "tests/doctor/test_examine.py::test_a_finding_is_an_answer",
    },
    "docs/faq.md": {
        "some models are no surer when right.": "tests/offline/test_diagnose.py::test_verdicts",
        "vLLM and llama.cpp do, OpenAI's reasoning models do not;": "tests/backends/test_openai.py::test_reasoning_items_of_the_responses_api_have_no_logprobs",
        "`the server gives no logprobs on reasoning tokens:": "tests/backends/remote/test_dialogue.py::test_missing_logprobs_may_be_allowed_loudly",
        "`no reasoning step ended` | the thinking has no boundary:": OF_A_CASE,
        "there are no logprobs`": "tests/test_refine.py::test_a_call_without_logprobs_never_stops",
        "Inside a code fence, JSON or a tool call there is no boundary ([steps](steps.md#what-is-protected)), and an answer is never cut.": "tests/core/test_steps.py::test_no_step_ends_inside_a_fence",
    },
    "docs/langchain-callbacks.md": {
        "a callback cannot switch them on.": LANGCHAIN + "test_callbacks.py::test_without_logprobs_it_says_so_once",
        "A callback cannot answer in the model's place.": LANGCHAIN
        + "test_callbacks.py::test_a_stop_hangs_up_within_the_step_and_gives_the_answer",
        "`with_retry`, `ModelRetryMiddleware` | one on the model itself cannot know": LANGCHAIN
        + "test_callbacks.py::test_a_retry_sends_nothing_more",
        "with a `base_url` of your own add `stream_usage=True`, or runs in full have no usage.": OF_OTHERS,
    },
    "docs/langchain.md": {
        "Structured output (`with_structured_output`, `response_format`), a forced tool call, `n` > 1, the Responses API, `disable_streaming` and models that cannot stream.": LANGCHAIN
        + "test_never_cut.py::test_what_cannot_be_stopped_says_so",
        "Tools that are offered and not forced are no hindrance:": LANGCHAIN
        + "test_never_cut.py::test_an_agent_is_stopped_before_its_tool_call_and_never_in_it",
    },
    "docs/langsmith.md": {
        "this recipe was written from its documentation and not tried on its site.": nowhere(r"smith\.langchain\.com", "tests"),
        "A live run has no answer after its other steps, so to calibrate, record the same questions with `entropy-chains record`.": LANGCHAIN
        + "test_tracing.py::test_a_project_is_read_back",
    },
    "docs/llama-index-agents.md": {
        "With `stop=True` and `handler.prepare(llm)` the handler also ends streams of `OpenAI` and `OpenAILike` objects that you cannot replace.": LLAMA_INDEX
        + "test_prepared_llms.py::test_a_prepared_stream_is_ended_at_the_stop",
        "**calls that do not stream cannot be stopped by it**, and most engines make only such calls;": LLAMA_INDEX
        + "test_handlers.py::test_what_a_handler_cannot_stop_runs_in_full_and_says_why",
        "and the caller gets the thinking so far and **no answer**, because an observer cannot ask for one.": LLAMA_INDEX
        + "test_prepared_llms.py::test_a_prepared_stream_is_ended_at_the_stop",
    },
    "docs/llama-index.md": {
        "In a stream the last response has no delta.": LLAMA_INDEX + "test_base.py::test_the_stream_looks_like_the_inner_llms_own",
        "the latter cannot go on from closed thinking there, so the answer after a stop is asked for in a new turn, and a small model may answer that worse.": LLAMA_INDEX
        + "test_base.py::test_a_server_without_prefill_is_asked_in_another_way",
        "`OpenAIResponses` | its reasoning has no logprobs": LLAMA_INDEX
        + "test_base_errors.py::test_the_responses_api_is_loud_and_never_stops_reasoning",
    },
    "docs/local-models.md": {
        "tools | A model cannot be made to call one": LANGCHAIN + "test_local_messages.py::test_the_choice_of_tools",
    },
    "docs/openai.md": {
        "Its reasoning items have no logprobs, on no server that we know of:": "tests/backends/test_openai.py::test_reasoning_items_of_the_responses_api_have_no_logprobs",
    },
    "docs/policy.md": {
        "a figure of `calibration` that is no number, a name in `segmentation` or `mass_floor` that is unknown, a `unit` other than bits, a key that stands twice in the file.": "tests/core/test_policy_use.py::test_what_would_break_later_is_refused_at_loading",
    },
    "docs/refine.md": {
        "those not yet sure make the next call in one batch.": OF_A_CASE,
        "Without a policy that stops there is nothing to give:": "tests/test_reallocation.py::test_nothing_to_reallocate",
    },
    "docs/results.md": {"energy | not measured": "tests/test_results.py::test_the_page_is_rendered_from_the_kept_figures"},
    "docs/steps.md": {
        "There is no boundary inside a code fence, inside JSON, or inside a tool call.": "tests/core/test_steps.py::test_no_step_ends_inside_a_tool_call",
    },
    "docs/traces.md": {
        "the offline half of this package needs nothing else.": "tests/test_layering.py::test_imports_point_one_way",
    },
    "docs/transformers.md": {
        "A setting that cannot work raises `SettingsError`:": "tests/backends/test_transformers_settings.py::test_impossible_settings",
        "quantised models, several devices | not tested here": nowhere("quantization_config|bitsandbytes", "tests"),
        "encoder-decoder models, images | not supported": nowhere(
            "pixel_values|AutoProcessor|AutoModelForSeq2SeqLM|AutoModelForImageTextToText", "entropy_chains"
        ),
    },
    "docs/vllm.md": {
        "**`EntropyStopV2` was never run on a GPU**, and V2 does not start without one:": no_gpu_figures,
        "a logits processor cannot ask for one), `logit_bias`, `allowed_token_ids` or `bad_words` (they change the logits before the plug-in sees them).": "tests/backends/engine/test_settings.py::test_what_changes_the_logits_is_refused",
        "No figure was taken on a GPU or with a large vocabulary.": no_gpu_figures,
    },
    "integrations/vllm-entropy-chains/README.md": {
        "It is an entry point of the group `vllm.logits_processors` and nothing else:": one_entry_point,
    },
}
"""For each page its sentences that deny, and what proves each: a check, a test, or one of the two reasons why none is needed."""


@cache
def names_in(file: str) -> set[str]:
    """Names of a file's functions, those in classes too."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_denial_has_its_proof(page):
    """No sentence denies but those in the table, and none in the table is gone."""
    found = set(denials(page.read_text(encoding="utf-8")))
    known = set(PROOFS.get(str(page.relative_to(ROOT)), {}))
    new, gone = sorted(found - known), sorted(known - found)
    assert not new, "\n".join(["these deny something; list each with its proof, or say it otherwise:", *new])
    assert not gone, "\n".join(["these stand on the page no more; take them out of the list:", *gone])


@pytest.mark.parametrize(
    ("page", "sentence"), [(page, sentence) for page, listed in PROOFS.items() for sentence in listed], ids=lambda v: v[:40]
)
def test_the_proof_holds(page, sentence):
    """The check says so, or the test named is there, to say so in its own run."""
    proof = PROOFS[page][sentence]
    if callable(proof):
        assert proof(), sentence
    elif proof not in (OF_A_CASE, OF_OTHERS):
        file, _, name = proof.partition("::")
        assert name in names_in(file), f"{sentence} is proved by {proof}, which is gone"


@pytest.mark.parametrize(
    "sentence",
    [
        "Not yet:",
        "none of them is in this release.",
        "The packages `langchain-entropy-chains` and `llama-index-llms-entropy-chains` install and offer nothing yet.",
        "LangChain and LlamaIndex are not in this release.",
        "Streams cannot be stopped.",
        "It only works with vLLM.",
        "Async clients are not supported.",
        "The plug-in does not work on Windows.",
        "There is no command for it.",
        "Ollama is out of reach.",
        "| Gemini | not available |",
    ],
)
def test_a_denial_is_seen(sentence):
    """Also those that once stood in the FAQ and the quickstart, and were wrong."""
    assert list(denials(f"Some words before it. {sentence}" if sentence[0] != "|" else sentence))


@pytest.mark.parametrize("sentence", ["It stops where a model has no doubt.", "Nothing is cut.", "```\nnot supported\n```"])
def test_other_sentences_are_left_alone(sentence):
    """A case, what is never done, and code."""
    assert not list(denials(sentence))


def test_few_sentences_go_without_a_proof():
    """The two reasons for none are no way out."""
    proofs = Counter(proof for listed in PROOFS.values() for proof in listed.values() if isinstance(proof, str))
    assert proofs[OF_A_CASE] + proofs[OF_OTHERS] <= 5
