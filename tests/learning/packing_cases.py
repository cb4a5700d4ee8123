"""A tiny fp32 Llama whose sizes all differ, and groups of answers to read with it."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from learning.training.packing import Group

VOCABULARY = 61
WIDTH = 24

GROUPS = [
    Group(prompt=[5, 9, 11, 3, 40], answers=[[7, 8, 2], [50, 2], [13, 14, 15, 16]]),
    Group(prompt=[33, 4], answers=[[21, 22, 23, 24, 2]]),
    Group(prompt=[44, 45, 46], answers=[[2], [58, 57, 2]]),
]


def tiny_llama(*, seed: int = 0) -> LlamaForCausalLM:
    """Width 24, 3 layers, 6 heads of 4 (2 key-value), feed-forward 34, vocabulary 61."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=34,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.model.embed_tokens.padding_idx = None
    return model.eval()


def tiny_classifier(*, seed: int = 0) -> LlamaForSequenceClassification:
    """The same body with a head of one number."""
    causal = tiny_llama(seed=seed)
    config = LlamaConfig.from_dict(causal.config.to_dict())
    config.num_labels = 1
    config.pad_token_id = 0
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        model = LlamaForSequenceClassification._from_config(config, attn_implementation="sdpa")
    model.model.load_state_dict(causal.model.state_dict())
    return model.eval()
