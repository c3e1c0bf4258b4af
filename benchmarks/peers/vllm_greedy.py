"""Write greedily with vLLM on a CPU. This runs in its own environment (`vllm_cpu.sh`), which has no laconic.

    python vllm_greedy.py MODEL PROMPTS.json TOKENS

PROMPTS.json: rows of token ids. For each row, a line of JSON has the tokens written, and for each of these the gap
between the logits of the two most likely tokens. One thread, and a small cache.
"""

import json
import os
import sys

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The engine in this process: no second copy of Python and torch in memory.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from vllm import LLM, SamplingParams


def main(model: str, prompts: str, tokens: str) -> None:
    with open(prompts) as file:
        rows = json.load(file)
    longest = max(map(len, rows)) + int(tokens)
    llm = LLM(
        model,
        max_model_len=longest,
        max_num_seqs=1,
        max_num_batched_tokens=longest,
        enforce_eager=True,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
    )
    settings = SamplingParams(temperature=0, max_tokens=int(tokens), logprobs=2, ignore_eos=True, detokenize=False)
    for row in rows:
        written = llm.generate({"prompt_token_ids": row}, settings, use_tqdm=False)[0].outputs[0]
        best = [sorted((each.logprob for each in step.values()), reverse=True)[:2] for step in written.logprobs]
        gaps = [first - second for first, second in best]
        print("WRITTEN", json.dumps({"tokens": list(written.token_ids), "gaps": gaps}), flush=True)


main(*sys.argv[1:])
