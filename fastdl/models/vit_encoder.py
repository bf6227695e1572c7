"""The transformer encoder of the Vision Transformer (arXiv:2010.11929, section 3.1): a stack of equal blocks.

    z'_l = MSA(LN(z_{l-1})) + z_{l-1},   l = 1 ... L                                                   (eq. 2)
    z_l  = MLP(LN(z'_l)) + z'_l,         l = 1 ... L                                                   (eq. 3)

Each block adds to its input (He et al. 2015, arXiv:1512.03385); normalising comes before, inside of the branch, which
is called pre-norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdl.nn.dropout import Dropout
from fastdl.nn.heads import merge_heads, split_heads
from fastdl.nn.layer_norm import LayerNorm
from fastdl.ops import scaled_dot_product_attention

__all__ = ["Encoder", "EncoderBlock", "MultilayerPerceptron", "SelfAttention", "StochasticDepth"]


class SelfAttention(nn.Module):
    """MSA of eq. 2: every token looks at all others, and takes from each what it is worth to it (appendix A).

        [q, k, v] = z U_qkv                                                                            (eq. 5)
        A = softmax(q k^T / sqrt(D_h))                                                                 (eq. 6)
        SA(z) = A v                                                                                    (eq. 7)
        MSA(z) = [SA_1(z); SA_2(z); ...; SA_k(z)] U_msa                                                (eq. 8)

    All heads are computed together by `fastdl.ops.scaled_dot_product_attention`, which reads q, k and v out of the one
    product z U_qkv where they lie, and never holds A.

    Args:
        width: D.
        num_heads: k; each head has D_h = D / k features.
        qkv_bias: add a bias to U_qkv's product.
        attention_dropout: probability of dropping an entry of A.
        dropout: of the output.

    Shapes: (N, T, D) to (N, T, D).
    """

    def __init__(
        self, width: int, num_heads: int, *, qkv_bias: bool = True, attention_dropout: float = 0.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"num_heads must divide the width {width}; got {num_heads}")
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.query_key_value = nn.Linear(width, 3 * width, bias=qkv_bias)  # U_qkv
        self.output = nn.Linear(width, width)  # U_msa
        self.dropout = Dropout(dropout)

    def heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of all heads, each (N, k, T, D_h): views of one product (eq. 5)."""
        q, k, v = split_heads(self.query_key_value(tokens), 3, self.num_heads)
        return q, k, v

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.heads(tokens)
        attended = scaled_dot_product_attention(q, k, v, dropout_p=self.attention_dropout if self.training else 0.0)
        mixed: Tensor = self.dropout(self.output(merge_heads(attended)))
        return mixed


class MultilayerPerceptron(nn.Sequential):
    """MLP of eq. 3: two linear layers with a GELU (arXiv:1606.08415) between them, for each token by itself.

    Shapes: (N, T, D) to (N, T, D), through (N, T, hidden).
    """

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.activation = nn.GELU()
        self.dropout = Dropout(dropout)
        self.contract = nn.Linear(hidden, width)
        self.output_dropout = Dropout(dropout)


class StochasticDepth(nn.Module):
    """In training, leaves out a whole branch of a block for some images (Huang et al. 2016, arXiv:1603.09382).

    What stays is scaled by 1 / (1 - probability), so that the expectation is that of the complete network, which
    evaluates without any of this.

    Shapes: (N, ...) to the same.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"probability must be at least 0 and below 1; got {probability}")
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return branch
        kept = 1 - self.probability
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        return branch * (torch.rand(shape, device=branch.device) < kept).to(branch.dtype).div_(kept)

    def extra_repr(self) -> str:
        return f"probability={self.probability:g}"


class EncoderBlock(nn.Module):
    """One layer of the encoder: eq. 2, then eq. 3.

    Shapes: (N, T, D) to (N, T, D).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_width: int,
        *,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(width, eps=norm_eps)
        self.attention = SelfAttention(
            width, num_heads, qkv_bias=qkv_bias, attention_dropout=attention_dropout, dropout=dropout
        )
        self.mlp_norm = LayerNorm(width, eps=norm_eps)
        self.mlp = MultilayerPerceptron(width, mlp_width, dropout)
        self.stochastic_depth = StochasticDepth(stochastic_depth)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.stochastic_depth(self.attention(self.attention_norm(tokens)))  # eq. 2
        return tokens + self.stochastic_depth(self.mlp(self.mlp_norm(tokens)))  # eq. 3


class Encoder(nn.Sequential):
    """The stack of all blocks. The deeper one is, the more often stochastic depth leaves it out, linearly from 0.

    Args:
        depth: L, the number of blocks.
        width, num_heads, mlp_width: of every block.
        stochastic_depth: probability at the last block.
        **options: of every block.

    Shapes: z_0 (N, T, D) to z_L (N, T, D).
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_heads: int,
        mlp_width: int,
        *,
        stochastic_depth: float = 0.0,
        **options: float | bool,
    ) -> None:
        shares = [index / max(depth - 1, 1) for index in range(depth)]
        super().__init__(
            *(
                EncoderBlock(width, num_heads, mlp_width, stochastic_depth=stochastic_depth * share, **options)  # type: ignore[arg-type]
                for share in shares
            )
        )
