"""Policies and reward models: read from folders, scored, written to folders.

A policy is any causal language model of transformers. A reward model is the same body with a
projection to one number at each token, kept as an AutoModelForTokenClassification folder so that
anything can load it: an answer's score is the mean of its tokens' numbers. Knows nothing of losses
and optimisers.
"""

import shutil
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from learning.training.attention import PACKED_ATTENTION
from learning.training.packing import Packed, attend

_COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


class RewardModel(nn.Module):
    """A score for every token of a row; an answer's score is the mean over its tokens.

    The head and the bias stay in fp32: bf16 would give scores in steps of 1/128 around 1.
    """

    def __init__(self, classifier: PreTrainedModel, bias: float = 0.0) -> None:
        super().__init__()
        self.classifier = classifier
        self.score.float()
        self.score.bias = nn.Parameter(
            torch.tensor([bias], device=self.score.weight.device), requires_grad=False
        )

    @property
    def score(self) -> nn.Linear:
        """The projection from a hidden state to the score, fp32."""
        return cast(nn.Linear, self.classifier.score)

    @property
    def head(self) -> nn.Parameter:
        """(1, width) fp32, the weights of that projection."""
        return cast(nn.Parameter, self.score.weight)

    @property
    def bias(self) -> nn.Parameter:
        """(1,) fp32, added to every score; learns only where it is told to."""
        return self.score.bias

    @torch.no_grad()
    def rescale(self, gain: float, bias: float) -> None:
        """Turn every score s into gain * s + bias, in the parameters themselves."""
        self.head.mul_(gain)
        self.bias.mul_(gain).add_(bias)


def load_policy(folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """The causal language model of a folder, without dropout."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=PACKED_ATTENTION, local_files_only=True
    )
    return _without_padding_row(model)


def init_reward_model(
    anchor: Path, *, head_init_std: float, seed: int, dtype: torch.dtype = torch.bfloat16
) -> RewardModel:
    """A reward model with the body of a causal language model and a head that is almost zero.

    The head is N(0, head_init_std). Its pad token differs from every token that ends an answer, so
    that who pads with it can tell the two apart.
    """
    config = AutoConfig.from_pretrained(anchor, local_files_only=True)
    pad = _pad_token(config)
    classifier = AutoModelForTokenClassification.from_pretrained(
        anchor,
        num_labels=1,
        pad_token_id=pad,
        dtype=dtype,
        attn_implementation=PACKED_ATTENTION,
        local_files_only=True,
    )
    generator = torch.Generator().manual_seed(seed)
    model = RewardModel(_without_padding_row(classifier))
    noise = torch.randn(model.head.shape, generator=generator)  # (1, width)
    model.head.data.copy_(noise * head_init_std)
    return model


def freeze_bottom(model: RewardModel, share: float) -> None:
    """Keep the embedding and the bottom `share` of the layers as they are.

    With 0 nothing is frozen. Frozen layers need no backward pass, no gradients and no moments.
    """
    body = cast(PreTrainedModel, model.classifier.base_model)
    layers = layers_of(model.classifier)
    frozen = [body.get_input_embeddings(), *layers[: round(share * len(layers))]] if share else []
    for module in frozen:
        module.requires_grad_(False)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The layers of a model's body, which all have the same form."""
    body: nn.Module = model.base_model
    return next(
        child
        for child in body.children()
        if isinstance(child, nn.ModuleList) and len(child) == model.config.num_hidden_layers
    )


def load_reward_model(folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> RewardModel:
    """A reward model as `save_reward_model` left it."""
    classifier = AutoModelForTokenClassification.from_pretrained(
        folder, dtype=dtype, attn_implementation=PACKED_ATTENTION, local_files_only=True
    )
    bias = float(cast(nn.Linear, classifier.score).bias.detach())
    return RewardModel(_without_padding_row(classifier), bias=bias)


def token_scores(model: RewardModel, packed: Packed) -> Tensor:
    """A score at every token of a row, (length,) fp32. A value model reads its values here."""
    hidden = attend(model.classifier, packed)[0]  # (length, width)
    return _project(model, hidden)


def scores(model: RewardModel, packed: Packed) -> Tensor:
    """The score of every answer of a row, (num_answers,) fp32: the mean over the answer's tokens.

    The mean learns from few comparisons what a reading at the last token alone does not
    (docs/implementation-details.md).
    """
    hidden, answer = _answer_hidden(model, packed)
    return _answer_means(_project(model, hidden), answer, len(packed.answer_ids))


def scores_and_features(model: RewardModel, packed: Packed) -> tuple[Tensor, Tensor]:
    """Scores as `scores` gives them, and what they are a projection of, without its gradient.

    The features (num_answers, width) fp32 are the means of the answers' hidden states.
    """
    hidden, answer = _answer_hidden(model, packed)
    num_answers = len(packed.answer_ids)
    features = _answer_means(hidden.detach().float(), answer, num_answers)
    return _answer_means(_project(model, hidden), answer, num_answers), features


def save_reward_model(model: RewardModel, folder: Path, *, tokenizer_from: Path) -> None:
    """Write the folder; the projection in the body's precision, as it is afterwards."""
    model.score.to(model.classifier.dtype)
    save_folder(model.classifier, folder, tokenizer_from=tokenizer_from)
    model.score.float()


def save_folder(model: PreTrainedModel, folder: Path, *, tokenizer_from: Path) -> None:
    """Write a model as safetensors, with the tokeniser and chat template of another folder."""
    model.save_pretrained(folder)
    for name in _COPIED_FILES:
        if (tokenizer_from / name).is_file():
            shutil.copyfile(tokenizer_from / name, folder / name)


def ending_tokens(config: PretrainedConfig) -> frozenset[int]:
    """The ids that end an answer, by the model's config."""
    ids = config.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)


def _answer_hidden(model: RewardModel, packed: Packed) -> tuple[Tensor, Tensor]:
    """Hidden states (answer tokens, width), and which of the row's answers each belongs to."""
    hidden = attend(model.classifier, packed)[0, packed.answer_mask]
    return hidden, packed.answer_index[packed.answer_mask] - packed.answer_ids[0]


def _answer_means(values: Tensor, answer: Tensor, num_answers: int) -> Tensor:
    """Means over each answer's tokens, (num_answers, ...) fp32, of values (answer tokens, ...)."""
    sums = values.new_zeros(num_answers, *values.shape[1:], dtype=torch.float32)
    tokens = torch.bincount(answer, minlength=num_answers)
    return sums.index_add(0, answer, values) / tokens.view(-1, *[1] * (values.dim() - 1))


def _project(model: RewardModel, hidden: Tensor) -> Tensor:
    projected: Tensor = model.score(hidden.float())
    return projected.squeeze(-1)


def _pad_token(config: PretrainedConfig) -> int:
    """The configured pad token, or the lowest id, that ends no answer."""
    ending = ending_tokens(config)
    if config.pad_token_id is not None and config.pad_token_id not in ending:
        return int(config.pad_token_id)
    return next(i for i in range(config.vocab_size) if i not in ending)


def _without_padding_row(model: PreTrainedModel) -> PreTrainedModel:
    """Let every row of the embedding learn, also the one that the config calls padding.

    Where padding and the end token share an id, the end token would get no gradient.
    """
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    embedding.padding_idx = None
    model.train(False)
    return model
