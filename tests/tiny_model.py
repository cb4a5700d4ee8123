"""Models for tests: a random two-layer Llama that vLLM serves, and the default model, made once.

The tiny one has SmolLM2's tokenizer and chat template, so that prompts look as in production; all
its sizes differ, so that a transposed axis cannot pass. It answers gibberish, always the same.
"""

import os
import shutil
import tempfile
from pathlib import Path

from core.default_model import prepare_default_model

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def default_model() -> Path:
    """The default model's folder, kept between test runs under the system's temporary folder."""
    cache = Path(tempfile.gettempdir()) / f"instructloop-tests-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    assert cache.stat().st_uid == os.getuid(), f"{cache} belongs to somebody else"
    return prepare_default_model(cache / "smollm2")


def make_tiny_model(target: Path, *, seed: int = 0) -> Path:
    """Write a random Llama (hidden 64, 2 layers, 4 heads of 32, 2 key-value heads) as bf16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the smallest that vLLM's attention on CPU has
        max_position_embeddings=2048,
        # wide enough that bf16 logits are not all ties
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(target)
    source = default_model()
    for name in TOKENIZER_FILES:
        shutil.copy(source / name, target / name)
    return target
