"""Runs a model in vLLM for `laconic.runtime.engine.vllm`. It runs in an environment without laconic.

    python vllm_worker.py MODEL CONTEXT LISTED

It answers requests, one line of JSON each, and writes its answers as lines of JSON after the word ANSWER:

    {"predict": tokens, "start": n}     the tokens from n on: the log-probability of each and of the LISTED likeliest
    {"write": prompt, "count": n}       n greedy tokens, with the seconds of each

The first answer comes when the model is loaded.
"""

import json
import os
import sys
import time
from importlib import import_module
from typing import Any

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # The engine in this process: no second copy of Python and torch in memory, and no time between processes.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # A scored prompt as long as the context is followed by one more token, which the model does not read.
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
}


def main(model: str, context: int, listed: int) -> None:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    vllm: Any = import_module("vllm")
    llm = vllm.LLM(
        model,
        # A prompt whose tokens are scored is followed by one more token.
        max_model_len=context + 1,
        max_num_batched_tokens=context + 1,
        max_num_seqs=1,
        max_logprobs=listed,
        enforce_eager=True,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
    )
    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    answer({"library": f"vllm {vllm.__version__}", "vocabulary": vocabulary})
    for number, line in enumerate(sys.stdin):
        request = json.loads(line)
        if "predict" in request:
            answer(predict(vllm, llm, request["predict"], request["start"], listed))
        else:
            answer(write(vllm, llm, str(number), request["write"], request["count"]))


def answer(found: dict[str, Any]) -> None:
    print("ANSWER", json.dumps(found), flush=True)


def predict(vllm: Any, llm: Any, tokens: list[int], start: int, listed: int) -> dict[str, Any]:
    """For each token from `start` on: the token, the likeliest ones, and their log-probabilities."""
    settings = vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=listed, detokenize=False)
    found = llm.generate({"prompt_token_ids": tokens}, settings, use_tqdm=False)[0].prompt_logprobs
    ids, values = [], []
    for token, listing in zip(tokens[start:], found[start:], strict=True):
        likeliest = sorted(listing.items(), key=lambda pair: -pair[1].logprob)[:listed]
        ids.append([token, *(other for other, _ in likeliest)])
        values.append([listing[token].logprob, *(each.logprob for _, each in likeliest)])
    return {"tokens": ids, "log_p": values}


def write(vllm: Any, llm: Any, name: str, prompt: list[int], count: int) -> dict[str, Any]:
    """Tokens written greedily, the seconds of each, and the resident memory of this process in bytes."""
    engine = llm.llm_engine
    settings = vllm.SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    tokens: list[int] = []
    seconds: list[float] = []
    begun = time.perf_counter()
    engine.add_request(name, {"prompt_token_ids": prompt}, settings)
    while engine.has_unfinished_requests():
        for output in engine.step():
            written = list(output.outputs[0].token_ids)
            if len(written) > len(tokens):
                ended = time.perf_counter()
                seconds += [(ended - begun) / (len(written) - len(tokens))] * (len(written) - len(tokens))
                tokens, begun = written, ended
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {"tokens": tokens, "seconds": seconds, "resident": resident}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
