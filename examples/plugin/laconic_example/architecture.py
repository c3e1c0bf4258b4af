"""A decoder with Llama's attention and a feed-forward of two matrices around a squared ReLU, and its entry for laconic.

Paper: D. So et al., "Primer: Searching for Efficient Transformers for Language Modeling", NeurIPS 2021, section 3.

transformers finds the classes by the two `register` calls. Both happen when this module is imported, which laconic does
as soon as it meets a config.json whose model_type is `relu2`.
"""

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel

from laconic.model.anatomy import Anatomy, Attention, FeedForward, Heads, Stack, WordEmbedding


class Relu2Config(LlamaConfig):
    """Llama's configuration under another name."""

    model_type = "relu2"


class Relu2FeedForward(nn.Module):
    """y = W_down relu(W_up x)²."""

    def __init__(self, config: Relu2Config) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, hidden_size) to the same."""
        return self.down_proj(self.up_proj(x).relu().square())


class Relu2Model(LlamaModel):
    """The blocks, without a head."""

    config_class = Relu2Config

    def __init__(self, config: Relu2Config) -> None:
        super().__init__(config)
        for layer in self.layers:
            layer.mlp = Relu2FeedForward(config)
        self.post_init()


class Relu2ForCausalLM(LlamaForCausalLM):
    """The blocks, and a head that predicts the next token."""

    config_class = Relu2Config

    def __init__(self, config: Relu2Config) -> None:
        super().__init__(config)
        self.model = Relu2Model(config)
        self.post_init()


AutoConfig.register("relu2", Relu2Config)
AutoModel.register(Relu2Config, Relu2Model)
AutoModelForCausalLM.register(Relu2Config, Relu2ForCausalLM)

RELU2 = Anatomy(
    model_types=("relu2",),
    stacks=(
        Stack(
            blocks="layers",
            attention=Attention(
                module="self_attn",
                query="self_attn.q_proj",
                key="self_attn.k_proj",
                value="self_attn.v_proj",
                output="self_attn.o_proj",
                norm="input_layernorm",
                heads=Heads(
                    size="head_dim",
                    can_shrink=False,
                    config_size="head_dim",
                    config_count="num_attention_heads",
                    config_kv_count="num_key_value_heads",
                ),
            ),
            feed_forward=(
                FeedForward(
                    inner=("mlp.up_proj",),
                    output="mlp.down_proj",
                    norm=("post_attention_layernorm",),
                    config_width="intermediate_size",
                ),
            ),
        ),
    ),
    embeddings=(WordEmbedding("embed_tokens"),),
)
"""The paths of the matrices; those of `attention` and `feed_forward` are relative to one block."""
