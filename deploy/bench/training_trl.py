"""TRL's trainers in a measurement: `python -m deploy.bench.training_trl SPECIFICATION`.

Runs in .venv-peers-training with nothing of ours but the line to the measurement. Weights are bf16,
which is the fastest that TRL does (no fp32 masters are kept), attention is PyTorch's, gradient
checkpointing is off, nothing is logged or saved. PPO's sampling is replaced by given answers and
one forward pass for their logits: what is measured is the update.
"""

import importlib
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from deploy.bench.training_line import Line, Words

_FOREVER = 100_000
_BATCH_PAIRS = 12
Library = Any  # TRL, torch, transformers and datasets of an environment that our checks do not see


def _library(name: str) -> Library:
    return importlib.import_module(name)


def reward(specification: Words, line: Line) -> None:
    """Train on pairs, one turn after the other."""
    torch, transformers = _library("torch"), _library("transformers")
    pairs = specification["pairs"]
    accumulate = round(specification["step_pairs"] / _BATCH_PAIRS)
    turns = _turns(transformers.TrainerCallback, line, accumulate * _BATCH_PAIRS)
    model = _classifier(specification["model"], specification["dtype"])
    trainer = _reward_trainer(
        model,
        pairs,
        specification,
        max_steps=_FOREVER,
        accumulate=accumulate,
        callbacks=[turns],
    )
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    line.tell({"ready": True})
    trainer.train()


def learned(specification: Words, line: Line) -> None:
    """One epoch over all pairs with TRL's own rate, then what is right, by held-out prompt."""
    torch = _library("torch")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = _classifier(specification["model"], specification["dtype"])
    pairs = list(specification["pairs"])
    random.Random(0).shuffle(pairs)
    trainer = _reward_trainer(model, pairs, specification, max_steps=-1, accumulate=1, callbacks=[])
    line.tell({"ready": True})
    line.next()
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    line.tell({"seconds": seconds} | _accuracy(torch, model, specification["heldout"]))
    line.next()


def _accuracy(torch: Library, model: Library, heldout: list[Words]) -> Words:
    right, pairs = [], []
    model.train(False)
    with torch.no_grad():
        for group in heldout:
            ids = torch.tensor([group["prompt"] + answer for answer in group["answers"]])
            scores = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0].tolist()
            ranked = list(zip(scores, group["ranks"], strict=True))
            found = [a > b for a, rank in ranked for b, other in ranked if rank < other]
            right.append(sum(found))
            pairs.append(len(found))
    return {"right": right, "pairs": pairs}


def _classifier(model: str, dtype: str) -> Library:
    torch, transformers = _library("torch"), _library("transformers")
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=1, dtype=getattr(torch, dtype), local_files_only=True
    )


def _reward_trainer(
    model: Library,
    pairs: list[list[list[int]]],
    specification: Words,
    *,
    max_steps: int,
    accumulate: int,
    callbacks: list[Library],
) -> Library:
    trl, datasets, transformers = map(_library, ("trl", "datasets", "transformers"))
    columns = {"chosen_ids": [p[0] for p in pairs], "rejected_ids": [p[1] for p in pairs]}
    arguments = trl.RewardConfig(
        output_dir="trl",
        per_device_train_batch_size=_BATCH_PAIRS,
        gradient_accumulation_steps=accumulate,
        max_steps=max_steps,
        num_train_epochs=1,
        **_quiet(),
    )
    return trl.RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=transformers.AutoTokenizer.from_pretrained(specification["model"]),
        callbacks=callbacks,
    )


def _quiet() -> Words:
    return {
        "bf16": True,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def _turns(base: Library, line: Line, comparisons: int) -> Library:
    """Waits for its turn before each optimiser step, and says how long the step took."""

    class Turns(base):  # type: ignore[misc]  # a class of the peer's environment
        began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            line.next()
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds = time.perf_counter() - self.began
            line.tell({"seconds": seconds, "comparisons": comparisons})

    return Turns()


def policy(specification: Words, line: Line) -> None:
    """One PPO update after the other on the same answers."""
    torch, transformers, datasets = map(_library, ("torch", "transformers", "datasets"))
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    ppo = _library("trl.experimental.ppo.ppo_trainer")
    config = _library("trl.experimental.ppo").PPOConfig
    answers = torch.tensor(specification["answers"])  # (episodes, answer tokens)
    dtype, model = getattr(torch, specification["dtype"]), specification["model"]

    def load() -> Library:
        return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype)

    tokenizer = transformers.AutoTokenizer.from_pretrained(model, padding_side="left")
    episodes = len(answers)
    arguments = config(
        output_dir="trl",
        per_device_train_batch_size=episodes,
        gradient_accumulation_steps=1,
        num_mini_batches=specification["minibatches"],
        num_ppo_epochs=1,
        total_episodes=episodes * _FOREVER,
        local_rollout_forward_batch_size=specification["forward_batch"],
        num_sample_generations=0,
        response_length=answers.shape[1],
        temperature=1.0,
        kl_coef=0.05,
        learning_rate=0.0,
        **_quiet(),
    )
    trainer = ppo.PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=load(),
        ref_model=load(),
        reward_model=_classifier(model, specification["dtype"]),
        value_model=_classifier(model, specification["dtype"]),
        train_dataset=datasets.Dataset.from_dict({"input_ids": specification["prompts"]}),
    )
    ppo.batch_generation = _given(torch, answers, line)
    line.tell({"ready": True})
    trainer.train()


def _given(torch: Library, answers: Library, line: Line) -> Library:
    """In place of sampling: ends the last update's time and begins the next one's."""
    began: list[float] = []

    def batch_generation(
        model: Library, queries: Library, forward_batch: int, *_: Any
    ) -> tuple[Library, Library]:
        if began:
            line.tell({"seconds": time.perf_counter() - began.pop(), "episodes": len(answers)})
        line.next()
        began.append(time.perf_counter())
        whole = torch.cat((queries, answers), dim=1)
        logits = []
        with torch.no_grad():
            for at in range(0, len(whole), forward_batch):
                output = model(input_ids=whole[at : at + forward_batch])
                logits.append(output.logits[:, queries.shape[1] - 1 : -1].clone())
        return whole, torch.cat(logits)

    return batch_generation


def main(path: str) -> None:
    """Load, say so, and answer requests."""
    line = Line()
    specification = json.loads(Path(path).read_text())
    {"reward": reward, "learned": learned, "policy": policy}[specification["role"]](
        specification, line
    )


if __name__ == "__main__":
    main(sys.argv[1])
