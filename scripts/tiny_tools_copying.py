"""The weights that `tiny-tools` starts from: a circuit that copies.

A call repeats words of the question, and an answer repeats what the tool said. A network learns to
repeat in two layers: one head looks at the token before, and a later head looks for the place
where the token before is the one that was written last, and writes what follows there (an
"induction head"). From random weights, 250 steps of training did not find it: the loss was 1.2,
and with it 0.3. So the model starts with it: of random tokens that come twice, it repeats about
half before any training.
"""

from __future__ import annotations

import math

import torch
from transformers import LlamaForCausalLM

# The base of the rotary positions: with 10,000 too few dimensions turn slowly enough to compare
# tokens at any distance.
ROPE_THETA = 1e6
EMBEDDING_STD = 0.08
# How many pairs of a head's dimensions, from the fastest, look at the token before; the ones from
# `SLOW` compare tokens.
FAST, SLOW = 4, 6
NEIGHBOUR, MATCH, COPY = 8.0, 20.0, 2.0
"""How sharply the heads look and compare, and how much of a token they write."""


@torch.no_grad()
def place_copying(model: LlamaForCausalLM) -> None:
    """Sets heads 0 and 2 of the first two layers, each pair with random directions of its own."""
    config = model.config
    size = config.head_dim
    pairs = size // 2
    turns = ROPE_THETA ** (-torch.arange(pairs) / pairs)
    slow = torch.cat([torch.arange(SLOW, pairs), torch.arange(SLOW, pairs) + pairs])
    embeddings = model.model.embed_tokens.weight
    embeddings.normal_(0, EMBEDDING_STD)
    # One dimension is the same in all tokens: heads that look at a place, whatever stands there,
    # read it.
    embeddings[:, 0] = 4 * EMBEDDING_STD
    scale = embeddings.pow(2).mean(-1).sqrt().mean()
    constant = 4 * EMBEDDING_STD / scale
    read, written, copied = (
        _directions(config.hidden_size, 2 * count).split(count)
        for count in (len(slow), len(slow), size)
    )
    neighbour = torch.zeros(pairs)
    neighbour[:FAST] = NEIGHBOUR
    sharpness = math.sqrt(MATCH * math.sqrt(size) / len(slow))
    before, match = (model.model.layers[layer].self_attn for layer in (0, 1))
    for group in range(config.num_key_value_heads):
        head = group * config.num_attention_heads // config.num_key_value_heads
        asked = slice(head * size, (head + 1) * size)
        kept = slice(group * size, (group + 1) * size)
        for attention in (before, match):
            attention.q_proj.weight[asked] = 0
            attention.k_proj.weight[kept] = 0
        # A key, and the same turned by one place: they meet where a key stands one before.
        before.k_proj.weight[kept, 0] = torch.cat([neighbour, torch.zeros(pairs)]) / constant
        before.q_proj.weight[asked, 0] = (
            torch.cat([neighbour * turns.cos(), -neighbour * turns.sin()]) / constant
        )
        before.v_proj.weight[kept] = 0
        before.v_proj.weight[kept][: len(slow)] = read[group]
        before.o_proj.weight[:, asked] = 0
        before.o_proj.weight[:, asked][:, : len(slow)] = written[group].T * scale
        match.q_proj.weight[head * size + slow] = read[group] * sharpness
        match.k_proj.weight[group * size + slow] = written[group] * sharpness
        match.v_proj.weight[kept] = copied[group]
        match.o_proj.weight[:, asked] = copied[group].T * scale * COPY


def _directions(width: int, count: int) -> torch.Tensor:
    """Returns orthogonal directions that leave out the dimension that is the same in all tokens."""
    drawn, _ = torch.linalg.qr(torch.randn(width - 1, count))
    return torch.cat([torch.zeros(1, count), drawn]).T
