"""A LlamaIndex query engine with the one added line, and what it saved. It runs offline, on the bundled model.

    entropy-chains demo                 # makes demo/policy.json
    python query_engine.py demo/policy.json

On a server, give the engine ``OpenAILike(model=…, api_base="http://localhost:8000/v1", is_chat_model=True)``, and make a policy
of your own: ``entropy-chains record --base-url …``, then ``entropy-chains calibrate``.
"""

import sys

from llama_index.core import Document, SummaryIndex
from llama_index.llms.entropy_chains import TransformersLLM, attach

from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME

llm = TransformersLLM(MODEL_FOLDER, name=MODEL_NAME, max_tokens=1200, seed=0)
index = SummaryIndex.from_documents([Document(text="34 boxes hold 7 apples each.")])
engine = index.as_query_engine(llm=llm, streaming=True)
attach(engine, sys.argv[1] if len(sys.argv) > 1 else "demo/policy.json")  # the added line

response = engine.query("34*7=?")
for token in response.response_gen:
    print(token, end="", flush=True)
print()
for name, value in response.metadata.items():
    if name.startswith("early_stop_"):
        print(f"{name}: {value}")
