"""Makes `reference.json`: what modules of sentence-transformers give for known hidden states. Run with the library.

python tests/model/embedding/make_reference.py > tests/model/embedding/reference.json
"""

import json

import torch
from sentence_transformers import __version__
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling

ROWS, TOKENS, WIDTH = 3, 4, 3
generator = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> torch.Tensor:
    """Numbers with few digits, which JSON holds exactly."""
    return torch.randint(-64, 64, shape, generator=generator) / 32


states, mask = drawn(ROWS, TOKENS, WIDTH), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
dense, norm = Dense(2 * WIDTH, 2), LayerNorm(WIDTH)
dense.linear.weight.data, dense.linear.bias.data = drawn(2, 2 * WIDTH), drawn(2)
norm.norm.weight.data, norm.norm.bias.data = drawn(WIDTH), drawn(WIDTH)
modes = Pooling.POOLING_MODES
pipelines = {
    **{mode: [Pooling(WIDTH, mode)] for mode in modes},
    **{f"{mode} without the prompt": [Pooling(WIDTH, mode, include_prompt=False)] for mode in modes},
    "dense": [Pooling(WIDTH, ("mean", "cls")), dense, Normalize()],
    "layer norm": [Pooling(WIDTH, "mean"), norm],
}
made = {}
with torch.no_grad():
    for name, modules in pipelines.items():
        features = {"token_embeddings": states, "attention_mask": mask, "prompt_length": 1}
        for module in modules:
            features = module(features)
        made[name] = features["sentence_embedding"].tolist()
tensors = {"dense": dense.state_dict(), "layer norm": norm.state_dict()}
print(
    json.dumps(
        {
            "source": f"sentence-transformers {__version__}, {__file__.rpartition('/')[2]}",
            "states": states.tolist(),
            "mask": mask.tolist(),
            "prompt": 1,
            "tensors": {name: {key: value.tolist() for key, value in held.items()} for name, held in tensors.items()},
            "vectors": made,
        },
        indent=1,
    )
)
