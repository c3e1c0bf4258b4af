"""Architectures whose heads can shrink, some whose cannot, and a size for the tests."""

SIZE = 5
"""Of heads of eight."""

HEADED = (
    "bert-classifier", "bert-masked", "bert-base", "roberta-masked", "electra-masked", "electra-classifier",
    "distilbert-masked", "albert-masked", "albert-groups", "gpt2", "gpt-neo", "opt", "t5", "t5-gated", "bart", "marian",
    "xlm-roberta-masked", "camembert-classifier", "mpnet-masked", "mt5", "blenderbot-small", "mbart", "m2m-100",
    "pegasus", "blenderbot",
)  # fmt: skip
RIGID = (
    "deberta-masked", "deberta-v2-masked", "longformer-masked", "led", "modernbert-masked", "gpt-neox", "llama",
    "mistral", "qwen2", "qwen3", "gemma", "phi", "big-bird-masked", "gptj", "granite", "olmo2", "cohere2",
)  # fmt: skip
