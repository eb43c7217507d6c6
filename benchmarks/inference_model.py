"""A model for measuring: real size and shape, random weights, a shipped model's tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

from mloc_dagster.models import builtin_model_path

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def build_model(
    folder: Path,
    *,
    hidden: int,
    layers: int,
    context: int = 8192,
    dtype: str = "float32",
    source: str = "tiny-chat",
) -> int:
    """Writes a Llama with random weights to a folder; returns how many parameters it has.

    Args:
        folder: Where to; created.
        hidden: Width; heads are 64 wide, with two of them to a key-value head.
        layers: Depth.
        context: Most positions.
        dtype: Of the weights, as torch names it.
        source: The shipped model whose tokenizer and chat template it has.
    """
    import torch
    import transformers
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    shipped = builtin_model_path(source)
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    config = LlamaConfig(
        vocab_size=1152,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        head_dim=64,
        max_position_embeddings=context,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(shipped / name, folder / name)
    return model.num_parameters()
