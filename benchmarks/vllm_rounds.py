"""One vLLM engine, in this process alone: a round for every line of standard input, its seconds as a line of standard output.

``python benchmarks/vllm_rounds.py SETTINGS``, in vLLM's own environment; SETTINGS and the lines are JSON, see ``plugin.py``.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """All prompts at once, a round after the other."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints too
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    given = json.loads(sys.argv[1])
    engine = LLM(
        given["model"],
        dtype="float32",
        max_model_len=given["context"],
        max_num_seqs=len(given["questions"]),
        max_logprobs=-1,
        enforce_eager=True,
        generation_config="vllm",
        logits_processors=given["processors"],
    )
    template = engine.get_tokenizer().apply_chat_template
    rendered = [
        template([{"role": "user", "content": q}], add_generation_prompt=True, tokenize=True, return_dict=True)
        for q in given["questions"]
    ]
    prompts = [{"prompt_token_ids": list(prompt["input_ids"])} for prompt in rendered]
    print("ready", file=told, flush=True)
    for line in sys.stdin:
        params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=given["tokens"], **json.loads(line))
        start = time.perf_counter()
        replies = engine.generate(prompts, params, use_tqdm=False)
        took = time.perf_counter() - start
        lengths = {len(reply.outputs[0].token_ids) for reply in replies}
        if lengths != {given["tokens"]}:
            sys.exit(f"{sorted(lengths)} tokens a request instead of {given['tokens']}: the sides cannot be compared")
        print(took, file=told, flush=True)


if __name__ == "__main__":
    main()
