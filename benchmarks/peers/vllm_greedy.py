"""Write greedily with vLLM on a CPU. This runs in its own environment (`vllm_cpu.sh`), which has no laconic.

    python vllm_greedy.py PROMPTS.json TOKENS MODEL...

PROMPTS.json: rows of token ids. For each model and each row, a line of JSON has the tokens written, and for each of
these the gap between the logits of the two most likely tokens. One thread, and a small cache. The models are loaded one
after the other in one process, as its start takes longer than a small model. A model that vLLM refuses gets
a line FAILED.
"""

import gc
import json
import os
import sys

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The engine in this process: no second copy of Python and torch in memory.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
# Nothing is compiled: that would take longer than the tokens.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory


def main(prompts: str, tokens: str, *models: str) -> None:
    with open(prompts) as file:
        rows = json.load(file)
    for model in models:
        try:
            write(model, rows, int(tokens))
        except (RuntimeError, ValueError) as error:
            print("FAILED", json.dumps({"model": model, "error": f"{type(error).__name__}: {error}"}), flush=True)
        gc.collect()
        cleanup_dist_env_and_memory()


def write(model: str, rows: list[list[int]], tokens: int) -> None:
    longest = max(map(len, rows)) + tokens
    llm = LLM(
        model,
        max_model_len=longest,
        max_num_seqs=1,
        max_num_batched_tokens=longest,
        enforce_eager=True,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
    )
    settings = SamplingParams(temperature=0, max_tokens=tokens, logprobs=2, ignore_eos=True, detokenize=False)
    for row in rows:
        written = llm.generate({"prompt_token_ids": row}, settings, use_tqdm=False)[0].outputs[0]
        best = [sorted((each.logprob for each in step.values()), reverse=True)[:2] for step in written.logprobs]
        gaps = [first - second for first, second in best]
        found = {"model": model, "tokens": list(written.token_ids), "gaps": gaps}
        print("WRITTEN", json.dumps(found), flush=True)


main(*sys.argv[1:])
