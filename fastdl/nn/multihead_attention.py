"""`torch.nn.MultiheadAttention` over the fused attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl.nn.attention_masks import let_all_see, merge_masks
from fastdl.nn.attention_weights import attention_weights
from fastdl.nn.heads import merge_heads, split_heads
from fastdl.nn.key_value_cache import KeyValueCache
from fastdl.ops.attention import scaled_dot_product_attention


class MultiheadAttention(torch.nn.MultiheadAttention):
    r"""Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2).

        MultiHead(Q, K, V) = Concat(head_1, ..., head_H) W^O,   head_h = Attention(Q W_h^Q, K W_h^K, V W_h^V)

    Takes what `torch.nn.MultiheadAttention` takes and loads its state_dict. Where query, key and value are one tensor
    there is one projection for all three, from which attention reads its heads in place; neither taking heads apart nor
    putting them together copies anything, forward or backward.

    It differs from torch's where that is stricter or returns NaN: ``is_causal`` needs no ``attn_mask``; a query that
    may see no key gets weights of zero, and the output projection of a zero vector; one mask may be boolean and the
    other additive.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        cache: KeyValueCache | None = None,
        counts: Sequence[int] | Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, and return the output with the weights.

        Args:
            query: (N, L, D) if ``batch_first``, otherwise (L, N, D), or (L, D) for a single sample.
            key: (N, S, kdim) likewise; value: (N, S, vdim).
            key_padding_mask: (N, S), or (S,) for a single sample: True for a key that nobody must see, or a number that
                is added to its scores.
            need_weights: return the weights, too. They are then written out as a matrix, as torch does, in memory of
                N * H * L * S numbers: pass False wherever they are not looked at, which takes the fused op.
            attn_mask: (L, S), or (N * H, L, S) for one of each head: True where a query must not see a key (the
                opposite of the ops' masks, and torch's own convention here), or a number that is added. It has a
                gradient.
            average_attn_weights: return the mean over heads.
            is_causal: a query sees no key behind its own place. In torch this is a hint about ``attn_mask``; here it is
                enough by itself, and cheaper. With ``attn_mask`` both apply.
            cache: where the keys and values of earlier tokens are kept, and those of this call are added: query, key
                and value are then the new tokens alone, and attention is causal. Masks count all S keys. Needs
                ``torch.no_grad()``.
            counts: how many of the new tokens of each row are real, for rows of different lengths; see
                `KeyValueCache.append`.

        Returns:
            The output, shaped as ``query``, and the weights after dropout, (N, L, S) or (N, H, L, S), without N for a
            single sample; None without ``need_weights``.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or dtype; the message names it.
        """
        self._check(query, key, value, cache, counts)
        alone = query.ndim == 2
        q, k, v = self._project(query, key, value)
        offset: int | Tensor = 0
        if cache is not None:
            k, v, offset = cache.append(k, v, counts)
            is_causal = True
        if alone and key_padding_mask is not None and key_padding_mask.ndim == 1:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        mask = merge_masks(attn_mask, key_padding_mask, q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        k, v, mask, is_causal = self._with_extra_keys(k, v, mask, q.shape[2], is_causal)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            weights = attention_weights(q, k, mask, is_causal=is_causal, query_offset=offset).to(v.dtype)
            weights = F.dropout(weights, dropout) if dropout else weights
            heads = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights.squeeze(0) if alone else weights
        else:
            heads = scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, query_offset=offset)
        output = F.linear(merge_heads(heads), self.out_proj.weight, self.out_proj.bias)
        if alone:
            return output.squeeze(0), weights
        return (output if self.batch_first else output.transpose(0, 1)), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads, (N, H, L, E), with as few matrix products as the arguments allow."""
        heads, width, bias = self.num_heads, self.embed_dim, self.in_proj_bias
        if self._qkv_same_embed_dim and key is value:
            weight = self.in_proj_weight
            if query is key:
                q, k, v = split_heads(F.linear(self._samples_first(query), weight, bias), 3, heads)
                return q, k, v
            q_bias, kv_bias = (None, None) if bias is None else (bias[:width], bias[width:])
            (q,) = split_heads(F.linear(self._samples_first(query), weight[:width], q_bias), 1, heads)
            k, v = split_heads(F.linear(self._samples_first(key), weight[width:], kv_bias), 2, heads)
            return q, k, v
        if self._qkv_same_embed_dim:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        q, k, v = (
            split_heads(F.linear(self._samples_first(tensor), weight, part), 1, heads)[0]
            for tensor, weight, part in zip((query, key, value), weights, biases, strict=True)
        )
        return q, k, v

    def _samples_first(self, tensor: Tensor) -> Tensor:
        if tensor.ndim == 2:
            return tensor.unsqueeze(0)
        return tensor if self.batch_first else tensor.transpose(0, 1)

    def _with_extra_keys(
        self, key: Tensor, value: Tensor, mask: Tensor | None, length: int, is_causal: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, bool]:
        """Append the learned key and the zero key, if the module has them; every query sees both."""
        more = (self.bias_k is not None) + self.add_zero_attn
        if not more:
            return key, value, mask, is_causal
        if is_causal:  # they stand behind all positions, so what is causal must be written out before they join
            causal = torch.ones(length, key.shape[2], dtype=torch.bool, device=key.device).tril_()
            if mask is None:
                mask = causal[None, None]
            else:
                mask = mask & causal if mask.dtype == torch.bool else mask.masked_fill(~causal, -torch.inf)
        samples, heads, _, features = key.shape
        keys, values = [key], [value]
        if self.bias_k is not None and self.bias_v is not None:
            for parts, learned in ((keys, self.bias_k), (values, self.bias_v)):
                parts.append(learned.to(key.dtype).view(1, heads, 1, features).expand(samples, -1, -1, -1))
        if self.add_zero_attn:
            for parts in (keys, values):
                parts.append(key.new_zeros(samples, heads, 1, features))
        return torch.cat(keys, 2), torch.cat(values, 2), let_all_see(mask, more), False

    def _check(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cache: KeyValueCache | None,
        counts: Sequence[int] | Tensor | None,
    ) -> None:
        if query.ndim not in (2, 3):
            raise ValueError(f"query must have 2 or 3 dimensions; got shape {tuple(query.shape)}")
        for name, tensor, width in (
            ("query", query, self.embed_dim), ("key", key, self.kdim), ("value", value, self.vdim)
        ):  # fmt: skip
            if tensor.ndim != query.ndim:
                raise ValueError(f"{name} must have as many dimensions as query; got shape {tuple(tensor.shape)}")
            if tensor.shape[-1] != width:
                raise ValueError(f"{name} must have {width} features in its last dimension; got {tensor.shape[-1]}")
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(f"value must have the key's {tuple(key.shape[:-1])} tokens; got {tuple(value.shape[:-1])}")
        samples = 0 if self.batch_first else 1
        if query.ndim == 3 and key.shape[samples] != query.shape[samples]:
            raise ValueError(
                f"key must have the query's {query.shape[samples]} samples; got {key.shape[samples]}"
                f" (batch_first={self.batch_first})"
            )
        if counts is not None and cache is None:
            raise ValueError("counts is for a cache; pass cache, too")
        if cache is not None and (self.bias_k is not None or self.add_zero_attn):
            raise ValueError("cache cannot be used with add_bias_kv or add_zero_attn, whose keys have no place in it")
        if cache is not None and key.shape != query.shape:
            raise ValueError(f"key must hold the query's new tokens where there is a cache; got {tuple(key.shape)}")
