"""Every number of the learning stages, as two profiles: `cpu-small` and `paper`.

The defaults below are `cpu-small`; `PAPER` holds what the InstructGPT paper (arXiv 2203.02155)
states, where it differs. Why small runs need other numbers: docs/implementation-details.md.
Knows nothing of where settings come from; core/settings.py reads and overrides these.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


class Group(BaseModel):
    """A frozen group of settings; an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SftSettings(Group):
    """Supervised fine-tuning on demonstrations (section 3.5, appendices C.1 and C.3)."""

    epochs: int = Field(4, ge=1, le=64)
    """Passes of the SFT policy over the demonstrations; the best one is kept."""
    learning_rate: Positive = 2e-5
    """Its peak, from which a cosine leads down."""
    final_learning_rate_fraction: Fraction = 0.1
    """The cosine schedule ends at this share of the peak."""
    residual_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of what each layer adds to the residual stream that is dropped. The paper's .2 takes
    the loss of a small model of 30 layers that never saw dropout from 2.5 to 9.9 nats."""
    batch_demonstrations: int = Field(8, ge=1)
    """Demonstrations in one optimiser step."""
    anchor_epochs: int = Field(2, ge=1, le=16)
    """Passes of the model that PPO starts from and is held to."""
    anchor_learning_rate: Positive = 1e-5
    """Its peak."""
    anchor_pretraining_share: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of plain text among its examples."""
    min_demonstrations: int = Field(20, ge=1)
    """Training demonstrations under which the stage answers "not enough data"."""
    selection_prompts: int = Field(32, ge=0)
    """Validation prompts whose answers choose the epoch, by the reward model's score."""
    max_new_tokens: int = Field(40, ge=1)
    """Longest of those answers."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """Of Adam."""
    adam_eps: Positive = 1e-5
    """Of Adam; larger than the default tames the first steps."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    token_budget: int = Field(1024, ge=64)
    """Tokens in one packed row; memory grows with it."""


class RewardModelSettings(Group):
    """Equation 1 of the paper and how it is optimised (section 3.5, appendix C.2)."""

    epochs: int = Field(1, ge=1, le=16)
    """Passes over the comparisons."""
    learning_rate: Positive = 2e-4
    """Peak of the schedule."""
    final_learning_rate_fraction: Fraction = 0.1
    """The cosine schedule ends at this share of the peak."""
    batch_prompts: int = Field(2, ge=1)
    """Prompts (each with all of its K completions) in one optimiser step."""
    head_init_std: float = Field(1e-3, ge=0.0)
    """Standard deviation of the scalar head's first weights; negative values are refused."""
    frozen_share: Fraction = 0.5
    """Share of the layers, from the bottom, that stay as they are; the embedding with them."""
    normalisation: Literal["bias", "bias_and_gain"] = "bias_and_gain"
    """`bias`: anchor answers score 0 on average (the paper). `bias_and_gain`: and have sd 1."""
    thumb_weight: float = Field(0.1, ge=0.0)
    """Weight of thumbs and ratings, together, against rankings."""
    cut_rate_factor: Positive = 50.0
    """The learned cuts of thumbs and ratings move at so many times the learning rate."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """Of Adam."""
    adam_eps: Positive = 1e-5
    """Of Adam; larger than the default tames the first steps."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    token_budget: int = Field(1024, ge=64)
    """Tokens in one packed row; memory grows with it."""
    min_accuracy: Fraction = 0.65
    """Held-out pair accuracy under which PPO does not start."""
    min_comparisons: int = Field(100, ge=1)
    """Untied training pairs under which the stage answers "not enough data"."""
    rater_weights: bool = False
    """Whether raters who agree with others weigh more than those who do not."""
    rater_folds: int = Field(0, ge=0, le=10)
    """Groups of raters, each left out once to see whether the model learns what others want: so
    many more trainings. 0 turns it off; the paper has 5."""
    heads: int = Field(8, ge=0, le=64)
    """Small heads beside the main one, whose disagreement says what to label next; 0: none."""
    scored_prompts: int = Field(256, ge=0)
    """Logged prompts nobody ranked, the newest first, on which the heads' disagreement is taken."""
    checkpoint_every: int = Field(20, ge=1)
    """Optimiser steps between checkpoints."""


class PolicySettings(Group):
    """PPO-ptx: equation 2 of the paper and how it is optimised (appendix C.4)."""

    iterations: int = Field(6, ge=1)
    """Rollouts, each followed by its updates."""
    prompts_per_iteration: int = Field(16, ge=1)
    """Prompts in one iteration."""
    answers_per_prompt: int = Field(4, ge=1)
    """Answers sampled to each prompt."""
    minibatches: int = Field(4, ge=1)
    """Optimiser steps in one pass over an iteration."""
    inner_epochs: int = Field(1, ge=1)
    """Passes over one iteration."""
    learning_rate: float = Field(6e-5, ge=0.0)
    """Peak of the schedule."""
    warmup_iterations: int | None = Field(None, ge=0)
    """The rate climbs from a tenth of its peak over this many iterations. Unset: an eighth of all,
    at least one, at most the paper's ten."""
    value_learning_rate: float = Field(1e-4, ge=0.0)
    """Of the value model, constant."""
    value_only_iterations: int = Field(2, ge=0)
    """Passes of the value model over the first rollouts before the policy moves."""
    value_frozen_share: Fraction = 0.5
    """Share of the value model's layers, from the bottom, that stay those of the reward model."""
    lora_rank: int = Field(0, ge=0, le=1024)
    """Rank of LoRA adapters, which then learn in place of the weights, for what does not fit: 16 is
    usual, and wants about ten times the learning rates. Released are whole weights all the same.
    0: all weights learn, as in the paper."""
    lora_alpha: Positive = 32.0
    """What adapters say counts `lora_alpha` / `lora_rank` times."""
    lora_targets: tuple[str, ...] = ()
    """Linear layers that get an adapter, by the last parts of their names, such as `q_proj`; none
    named: all of attention and feed-forward."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """Of Adam."""
    adam_eps: Positive = 1e-5
    """Of Adam; larger than the default tames the first steps."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    clip_ratio: Positive = 0.2
    """Of the policy loss."""
    value_clip: Positive = 0.2
    """Of the value loss."""
    discount: Fraction = 1.0
    """Of rewards; 1 because the reward comes at the end."""
    gae_lambda: Fraction = 1.0
    """Of generalised advantage estimation."""
    kl_coef: float = Field(0.05, ge=0.0)
    """beta of equation 2, per token, as k1 in the reward."""
    adaptive_kl_target: float | None = None
    """Nats per answer that the adaptive controller aims at; unset keeps beta fixed."""
    adaptive_kl_horizon: int | None = Field(None, ge=1)
    """Episodes over which the adaptive controller acts. Unset: half of the run's, at most 10,000
    (those of the paper's predecessor)."""
    stop_kl_per_token: Positive = 0.15
    """The run ends before the next update once its answers are this far from the anchor."""
    ptx_coef: float | None = Field(None, ge=0.0)
    """gamma of equation 2. Unset: calibrated once so that the pretraining gradient's norm is
    `ptx_gradient_share` of PPO's, then frozen and recorded. 0 is plain PPO."""
    ptx_gradient_share: float = Field(0.3, ge=0.0)
    """Norm of the pretraining gradient as a share of PPO's, for the calibration."""
    ptx_sequences: int = Field(12, ge=0)
    """Pretraining sequences in one iteration, spread over its optimiser steps."""
    ptx_sequence_tokens: int = Field(64, ge=2)
    """Tokens in one pretraining sequence."""
    temperature: Positive = 1.0
    """Of sampling."""
    max_new_tokens: int = Field(40, ge=1)
    """Longest answer."""
    missing_eos_score: float | None = None
    """Replaces the score of an answer that did not end; unset turns the rule off."""
    stop_update_kl: Positive | None = 0.02
    """Nats per token between the policy and the one that wrote the answers, beyond which the
    iteration makes no further step; unset: all steps are made."""
    checkpoints_kept: int = Field(3, ge=1)
    """Last iterations whose weight averages may be released, beside the last weights themselves and
    the points on the lines between. 1: the average of the last iteration, unasked, as in the
    paper."""
    validation_prompts: int = Field(32, ge=1)
    """Held-out users' prompts that choose among them: within `stop_kl_per_token`, by score less
    beta times KL."""
    importance_cap: Positive = 2.0
    """C of the truncated importance correction between engine and trainer."""
    ema_half_life_fraction: Fraction = 0.1
    """Half-life of the weight average as a share of all optimiser steps."""
    ema_max_decay: Fraction = 0.992
    """Largest decay of the weight average (the paper has 0.992)."""
    token_budget: int = Field(1024, ge=64)
    """Tokens in one packed row; memory grows with it."""
    checkpoint_every: int = Field(3, ge=1)
    """Iterations between checkpoints."""


class EvaluationSettings(Group):
    """How a candidate is compared with its parent on held-out users' prompts."""

    prompts: int = Field(100, ge=1)
    """Most prompts of held-out users."""
    answers_per_policy: int = Field(2, ge=1, le=4)
    """Answers of each policy to a prompt, in one labeling task."""
    temperature: float = Field(1.0, ge=0.0)
    """Of sampling."""
    max_new_tokens: int = Field(40, ge=1)
    """Longest answer."""
    votes_wait_seconds: int = Field(600, ge=0)
    """How long the gate waits for the votes of held-out raters; then it judges by what there is."""
    best_of: int = Field(8, ge=2)
    """N of best-of-N, the ceiling that the reward model promises."""


class GateSettings(Group):
    """What a candidate must show. Every verdict gives its reasons."""

    min_users: int = Field(40, ge=2)
    """Fewer users cannot carry an interval: not enough data."""
    require_votes: bool = True
    """Whether people have to have voted on prompts of so many users. Where they need not, the
    reward model, whose own taste the candidate has learned, stands in for them."""
    alpha: Positive = 0.05
    """Spent over repeated attempts on the same parent: attempt n gets alpha / 2**n."""
    min_win_rate: Fraction = 0.5
    """The lower bound of the win rate over the parent must exceed this."""
    max_kl_per_token: Positive = 0.3
    """Nats per token from the anchor."""
    min_win_rate_vs_anchor: Fraction = 0.5
    """And of that over the anchor, where the parent is a later version: beating the last one must
    not hide that the first was better."""
    max_retention_change: Fraction = 0.01
    """Share of the anchor's loss on text that was never in the pretraining mix. A rise beyond it
    fails; a fall beyond it is learning, not retention, and is remarked."""
    suites: tuple[Path, ...] = ()
    """JSONL files of regression items, run beside the bundled suite (docs/decisions/0014-gate.md)
    by candidate and parent."""
    max_regression: Fraction = 0.05
    """Share of a suite's items by which the candidate may be worse than its parent. More fails,
    where it is also more than chance."""
    regression_alpha: Positive = 0.05
    """Level of the one-sided paired tests behind regressions and toxicity."""
    lm_eval_tasks: tuple[str, ...] = ()
    """Tasks of lm-eval, run as further suites: needs lm-eval and the tasks' data installed."""
    lm_eval_limit: int = Field(100, ge=1)
    """Items of each of those."""
    max_toxicity_rise: Fraction = 0.02
    """Rise over the parent in the share of answers with words of abuse. More fails, where it is
    also more than chance."""
    max_length_ratio: Positive = 3.0
    """Mean length of answers over that of the parent, and its inverse."""
    max_broken_share: Fraction = 0.10
    """Share of answers that are broken text."""
    bootstrap_samples: int = Field(2000, ge=100)
    """Resamples of users behind an interval."""


class LearningSettings(Group):
    """All learning groups, and how stages run."""

    enabled: bool = True
    """Whether rounds start and labeling tasks are made; `up --no-learning` and `--engine-url` say
    no. The log is kept, people erased and runs that somebody asks for done all the same."""
    launcher: str = "local"
    """`local`, or a command template for a cluster: {python}, {module}, {folder}, {processes}."""
    processes: int = Field(0, ge=0, le=64)
    """Processes of a stage that many can work at; 0 is one per GPU, and one without a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where stages compute."""
    threads: int = Field(0, ge=0)
    """OpenMP threads of a stage; 0 takes all cores."""
    idle_priority: bool = True
    """Stages run under SCHED_IDLE, so that serving comes first."""
    rollout_engine: Literal["auto", "vllm", "transformers"] = "auto"
    """What samples answers for a stage. `transformers` does so in the stage's own process, slower;
    `auto` takes it where vLLM is not installed."""
    seed: int = 0
    """Of every random choice in learning."""
    min_new_comparisons: int = Field(500, ge=1)
    """New untied pairs that start a round before its schedule."""
    interval_seconds: int = Field(86_400, ge=1)
    """A round also starts this long after the last, if anything new was said."""
    pretraining_text: Path | None = None
    """Plain text of the kind that the model was trained on, for the pretraining term of PPO and the
    anchor's mix: a file or folder of .txt, .md, .jsonl or .parquet (field `text`), where workers
    reach it. Unset: Python's reference topics, which do for small models alone."""
    anchor: str = "v0000"
    """What policies are held to, and where each reward model begins: `v0000`, or a version of
    supervised fine-tuning, whose anchor PPO then also starts from until a policy of PPO is live."""
    sft: SftSettings = SftSettings()
    reward_model: RewardModelSettings = RewardModelSettings()
    policy: PolicySettings = PolicySettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    gate: GateSettings = GateSettings()


PAPER: dict[str, Any] = {
    "sft": {
        "epochs": 16,
        "learning_rate": 9.65e-6,
        "batch_demonstrations": 32,
        "residual_dropout": 0.2,
        "anchor_learning_rate": 5e-6,
        "selection_prompts": 256,
        "max_new_tokens": 1024,
        "token_budget": 16_384,
    },
    "reward_model": {
        "epochs": 1,
        "frozen_share": 0.0,
        "learning_rate": 9e-6,
        "batch_prompts": 64,
        "normalisation": "bias",
        "rater_folds": 5,
        "token_budget": 16_384,
    },
    "policy": {
        "iterations": 500,
        "prompts_per_iteration": 512,
        "answers_per_prompt": 1,
        "minibatches": 8,
        "learning_rate": 9.65e-6,
        "warmup_iterations": 10,
        "value_learning_rate": 9e-6,
        "value_only_iterations": 0,
        "value_frozen_share": 0.0,
        "gae_lambda": 0.95,
        "kl_coef": 0.02,
        "stop_kl_per_token": 1.0,
        "stop_update_kl": None,
        "checkpoints_kept": 1,
        "ptx_coef": 27.8,
        "ptx_sequences": 4096,
        "ptx_sequence_tokens": 1024,
        "max_new_tokens": 1024,
        "missing_eos_score": -1.0,
        "token_budget": 16_384,
        "checkpoint_every": 10,
    },
    "evaluation": {"max_new_tokens": 1024, "prompts": 1000, "votes_wait_seconds": 86_400},
}
"""What the `paper` profile changes, for GPUs. The policy's peak rate is not printed in the paper;
9.65e-6 lies within its sweep for 1.3B and 6B."""
