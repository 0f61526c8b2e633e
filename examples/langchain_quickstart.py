"""An ordinary LangChain chain, and an agent, on a local reasoning model: before and after the one added line."""

import argparse
import json
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_entropy_chains import ChatTransformers, EarlyStopMiddleware

from entropy_chains import Policy
from entropy_chains.core import answers
from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME
from entropy_chains.demo.questions import draw_questions
from entropy_chains.demo.quickstarts import compared, show_quickstarts

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--policy", type=Path, default="demo/policy.json", help="made by: entropy-chains demo")
parser.add_argument("--questions", type=int, default=20)
parser.add_argument("--json", action="store_true")
args = parser.parse_args()
questions = draw_questions(args.questions, seed=777)

llm = ChatTransformers.from_model_id(MODEL_FOLDER, name=MODEL_NAME, max_tokens=1200, seed=0)
prompt = ChatPromptTemplate.from_messages([("system", "Answer the question."), ("human", "{question}")])
chain = prompt | llm | {"answer": StrOutputParser(), "tokens": lambda message: message.response_metadata["early_stop_tokens"]}


def ask_chain() -> list[tuple[bool, int]]:
    """Whether each answer is right, and the tokens that the response metadata counts."""
    found = chain.batch(questions)
    return [(answers.same(f["answer"], q["gold"]), f["tokens"]) for f, q in zip(found, questions, strict=True)]


def ask_agent(*middleware: EarlyStopMiddleware) -> list[tuple[bool, int]]:
    """The same of an agent; it asks one question at a time."""
    agent = create_agent(llm, system_prompt="You are a helpful assistant.", middleware=middleware)
    last = [agent.invoke({"messages": [("user", q["question"])]})["messages"][-1] for q in questions[:4]]
    return [(answers.same(m.text, q["gold"]), m.usage_metadata["output_tokens"]) for m, q in zip(last, questions, strict=False)]


chain_before, agent_before = ask_chain(), ask_agent()
agent_after = ask_agent(EarlyStopMiddleware(args.policy))
llm.policy = Policy.load(args.policy)  # the one added line
chain_after = ask_chain()

found = {"LangChain chain": compared(chain_before, chain_after), "LangChain agent": compared(agent_before, agent_after)}
print(json.dumps(found)) if args.json else show_quickstarts(found)
