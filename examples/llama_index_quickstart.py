"""An ordinary LlamaIndex query engine on a local reasoning model: before and after the one added line."""

import argparse
import json
from pathlib import Path

from llama_index.core import Settings, SummaryIndex
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.schema import TextNode
from llama_index.llms.entropy_chains import TransformersLLM, attach

from entropy_chains.core import answers
from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME
from entropy_chains.demo.questions import draw_questions
from entropy_chains.demo.quickstarts import compared, show_quickstarts

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--policy", type=Path, default="demo/policy.json", help="made by: entropy-chains demo")
parser.add_argument("--questions", type=int, default=6)
parser.add_argument("--json", action="store_true")
args = parser.parse_args()
questions = draw_questions(args.questions, seed=778)

llm = TransformersLLM(MODEL_FOLDER, name=MODEL_NAME, max_tokens=1200, seed=0)
counter = TokenCountingHandler()  # reads the usage of each response
Settings.callback_manager = CallbackManager([counter])
notes = [TextNode(text="the price of each item in the store"), TextNode(text="the total of each order is a product")]
engine = SummaryIndex(notes).as_query_engine(llm=llm)


def ask_engine() -> list[tuple[bool, int]]:
    """Whether each answer is right, and its tokens."""
    found = []
    for question in questions:
        counter.reset_counts()
        response = engine.query(question["question"])
        found.append((answers.same(str(response), question["gold"]), counter.completion_llm_token_count))
    return found


before = ask_engine()
attach(engine, args.policy)  # the one added line
after = ask_engine()

found = {"LlamaIndex query engine": compared(before, after)}
print(json.dumps(found)) if args.json else show_quickstarts(found)
