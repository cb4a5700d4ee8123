"""A PPO loop on a tiny model, with an engine that samples from the same weights."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from core.engine.client import Sample
from core.hyperparameters import PolicySettings
from learning.policy import train as train_policy
from learning.policy.experience import row_logprobs
from learning.policy.run import PolicyRun, load_models, new_run, whole_policy
from learning.policy.setup import Setup
from learning.policy.updates import ptx_batch
from learning.training.models import init_reward_model, save_reward_model
from learning.training.packing import Group, pack
from learning.training.rollouts import Prompt
from learning.training.stage import Stage
from tests.learning.packing_cases import VOCABULARY, tiny_llama

END = 2
SETTINGS = PolicySettings(
    iterations=3,
    prompts_per_iteration=4,
    answers_per_prompt=3,
    minibatches=2,
    inner_epochs=1,
    learning_rate=1e-2,
    value_learning_rate=1e-2,
    value_only_iterations=1,
    warmup_iterations=1,
    max_new_tokens=6,
    ptx_sequences=3,
    ptx_sequence_tokens=5,
    token_budget=64,
    stop_kl_per_token=100.0,
    stop_update_kl=None,
    checkpoint_every=100,
)


class Spelling:
    """As much of a tokeniser as the loop needs."""

    eos_token_id = END

    def decode(self, ids, **options) -> str:
        return " ".join(f"word{chr(97 + i % 26)}" for i in ids if i != END)


class SamplingEngine:
    """Samples with the weights that were loaded last, token by token, like the real engine."""

    def __init__(self, model) -> None:
        self.model = model
        self.loads: list[str] = []

    def load_model(self, model, *, version: str) -> None:
        self.model.load_state_dict(model.state_dict())
        self.loads.append(version)

    def load_folder(self, folder: Path, *, version: str) -> None:
        tensors = load_file(folder / "model.safetensors")
        self.model.load_state_dict(tensors, strict=False)  # a tied matrix is written once
        self.loads.append(version)

    @torch.no_grad()
    def generate(self, prompts, *, n, max_tokens, temperature, seed) -> list[list[Sample]]:
        generator = torch.Generator().manual_seed(seed)
        return [
            [self._answer(list(ids), max_tokens, temperature, generator) for _ in range(n)]
            for ids in prompts
        ]

    def answers(self, prompts, **options):
        yield from enumerate(self.generate(prompts, **options))

    def _answer(self, ids, max_tokens, temperature, generator) -> Sample:
        start = len(ids)
        while len(ids) < start + max_tokens and (len(ids) == start or ids[-1] != END):
            logits = self.model(torch.tensor([ids])).logits[0, -1].float() / temperature
            ids.append(int(torch.multinomial(logits.softmax(-1), 1, generator=generator)))
        answer = ids[start:]
        (row,) = pack([Group(prompt=ids[:start], answers=[answer])], token_budget=99)
        logprobs, _ = row_logprobs(self.model, row, temperature=temperature)
        return Sample(answer, logprobs.tolist(), "stop" if answer[-1] == END else "length")


def write_models(root: Path) -> dict[str, Path]:
    """A policy and a reward model with opinions."""
    model = tiny_llama(seed=4)
    with torch.no_grad():  # larger numbers, so that most answers are not sampled by pure chance
        model.model.norm.weight.mul_(0.5)
    model.to(torch.bfloat16).save_pretrained(root / "policy")
    reward_model = init_reward_model(root / "policy", head_init_std=0.3, seed=5)
    save_reward_model(reward_model, root / "reward", tokenizer_from=root / "policy")
    return {"policy": root / "policy", "reward": root / "reward"}


def make_setup(**changes) -> Setup:
    generator = torch.Generator().manual_seed(9)
    text = torch.randint(3, VOCABULARY, (50, 5), generator=generator).tolist()
    return Setup(
        settings=SETTINGS.model_copy(update=changes),
        seed=11,
        tokenizer=Spelling(),
        prompts=[Prompt(f"p{i}", f"u{i}", "[]", (5 + i, 9, 30 - i)) for i in range(7)],
        ptx_sequences=text,
        retention=ptx_batch(text[:4], token_budget=40),
    )


def make_run(folders: dict[str, Path], setup: Setup) -> PolicyRun:
    models = load_models(
        parent=folders["policy"],
        anchor=folders["policy"],
        reward_model=folders["reward"],
        settings=setup.settings,
    )
    return new_run(models, setup.settings)


def go(stage: Stage, setup: Setup, run: PolicyRun, *, until: int | None = None) -> SamplingEngine:
    """All iterations that are left, or those up to a number."""
    engine = SamplingEngine(tiny_llama().to(torch.bfloat16))
    engine.model.load_state_dict(whole_policy(run).state_dict())
    while run.iteration < (until or setup.settings.iterations) and run.stopped is None:
        train_policy._iterate(stage, setup, run, engine)
    return engine


def weights(run: PolicyRun) -> torch.Tensor:
    tensors = [*run.policy_optimiser.masters, *run.value_optimiser.masters, *run.average]
    return torch.cat([t.detach().flatten() for t in tensors])


def stage_in(folder: Path) -> Stage:
    folder.mkdir()
    return Stage(folder=folder, inputs={})
