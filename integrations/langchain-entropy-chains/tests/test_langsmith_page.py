"""What docs/langsmith.md names is what LangSmith gets: read off the page's own tables, against what the real SDK posted."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from chats import POLICY, chat
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_entropy_chains import EarlyStopMiddleware, EarlyStopTracer
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, said, thinking
from places import ROOT

sys.path.insert(0, str(Path(__file__).parent / "support"))

from langsmith_receiver import Receiver

PAGE = (ROOT / "docs" / "langsmith.md").read_text(encoding="utf-8")


@tool
def weather(place: str) -> str:
    """The weather of a place."""
    return "sunny"


def agentic(body: dict[str, Any]) -> Reply:
    """Thinks, calls the tool once, thinks, answers."""
    thought = [] if is_answer_call(body) else thinking(UNSURE, SURE, SURE, SURE).tokens[:160]
    if not any(message["role"] == "tool" for message in body["messages"]):
        return Reply(thought, tools=[("weather", {"place": "Paris"})], pace=0.001)
    return Reply([*thought, *said("The answer is sunny")], pace=0.001)


@pytest.fixture(scope="module")
def posted():
    """What came of an agent that stops and of one that the holdout runs in full: by holdout, the root run and its model runs."""
    with Loopback(agentic) as server, Receiver() as receiver:
        tracer = EarlyStopTracer(client=receiver.client(), project_name="p", feedback=True)
        for holdout in (0.0, 1.0):
            agent = create_agent(chat(server), [weather], middleware=[EarlyStopMiddleware(POLICY, holdout=holdout)])
            agent.invoke({"messages": [("user", "weather in Paris?")]}, {"callbacks": [tracer]})
        tracer.wait_for_futures()
        tracer.client.flush()
        receiver.root = {metadata(root)["early_stop_holdout"]: root for root in receiver.roots()}
        yield receiver


def metadata(run: dict[str, Any]) -> dict[str, Any]:
    return run["extra"]["metadata"]


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    section = PAGE.partition(f"{heading}\n")[2]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table, heading
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table[0].splitlines()[2:]]


def names(cell: str) -> list[str]:
    """The names in a cell; after the first one of a family the others may be written by their ends alone."""
    found = re.findall(r"`([\w-]+)`", cell)
    return [f"early_stop{name}" if name.startswith("_") else name for name in found]


def test_the_first_table_says_what_stands_where(posted):
    """Fields of every model run, of the root and no other, and the tag."""
    told, tag, totals, versions, *_ = rows("# LangSmith")
    root = posted.root[False]
    for run in posted.llm():
        held = metadata(run)["early_stop_holdout"]
        assert set(names(told[0])) <= metadata(run).keys() | ({"early_stop_tokens_saved_estimate"} if held else set())
        assert not {"early_stop_runs", "early_stop_stopped_runs", "early_stop_tokens_saved_share"} & metadata(run).keys()
        assert (names(tag[0])[0] in (run.get("tags") or [])) is not held
        assert set(names(versions[0])) - {"lc_versions"} <= metadata(run)["lc_versions"].keys()
    assert set(names(totals[0])) <= metadata(root).keys()
    assert names(tag[0])[0] in root["tags"]


@pytest.mark.parametrize("heading", ["## In the table of runs", "## A saved chart"])
def test_each_row_names_what_the_root_runs_have(posted, heading):
    """Metadata, tags and feedback of the agent that stopped; your own feedback is yours."""
    root, keys = posted.root[False], {feedback["key"] for feedback in posted.feedback}
    kinds = {"metadata": metadata(root).keys(), "tag": set(root["tags"]), "feedback": keys, "feedback score": keys}
    checked = 0
    for row in rows(heading):
        for kind, name in re.findall(r"(metadata|tag|feedback score|feedback) `([\w-]+)`", " | ".join(row[1:])):
            assert name in kinds[kind], row
            checked += 1
        assert len(re.findall("`", "".join(row[1:]))) == 2 * len(re.findall(r"(?:metadata|tag|feedback|score) `", "".join(row[1:])))
    assert checked >= 4
    assert {feedback["run_id"] for feedback in posted.feedback} == {run["id"] for run in posted.root.values()}


def test_output_tokens_are_told_of_every_model_run(posted):
    """LangSmith sums them for the root: fewer where it stopped than in the holdout."""
    tokens = {False: 0, True: 0}
    for run in posted.llm():
        tokens[metadata(run)["early_stop_holdout"]] += metadata(run)["usage_metadata"]["output_tokens"]
    assert 0 < tokens[False] < tokens[True]
    assert {held: metadata(root)["early_stop_tokens"] for held, root in posted.root.items()} == tokens
