"""Architectures whose heads can shrink, some whose cannot, and a size for the tests."""

SIZE = 5
"""The size that heads of eight channels shrink to."""

HEADED = (
    "bert-classifier", "bert-masked", "bert-base", "roberta-masked", "electra-masked", "electra-classifier",
    "distilbert-masked", "albert-masked", "albert-groups", "gpt2", "gpt-neo", "opt", "t5", "t5-gated", "bart", "marian",
)  # fmt: skip
RELATED = (
    "xlm-roberta-masked", "camembert-classifier", "mpnet-masked", "mt5", "umt5", "blenderbot-small", "mbart", "m2m-100",
    "pegasus", "blenderbot", "bloom", "mpt", "gpt-bigcode-heads",
)  # fmt: skip
"""Architectures like them whose heads can shrink."""
RIGID = (
    "deberta-masked", "deberta-v2-masked", "longformer-masked", "led", "modernbert-masked", "gpt-neox", "llama",
    "mistral", "qwen2", "qwen3", "gemma", "phi", "big-bird-masked",
    "gptj", "granite", "olmo2", "cohere2", "stablelm", "phi3", "falcon-heads",
)  # fmt: skip
