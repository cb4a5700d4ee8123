"""A few answers of each iteration with their rewards, for people who watch a run.

Lines of `samples.jsonl` beside the stage's other output. They name the prompt's user, so that an
erasure finds them. Bounded by the number of iterations.
"""

import json
import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from learning.policy.experience import Experience
from learning.training.rollouts import Prompt
from learning.training.stage import SAMPLES

SHOWN = 4
"""Prompts of an iteration, the first answer to each."""


def sample_rows(
    experience: Experience,
    prompts: list[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    iteration: int,
) -> list[dict[str, Any]]:
    """The first answers to the first prompts: text, score and KL from the anchor in nats."""
    rollouts = experience.rollouts
    each = rollouts.num_answers // len(rollouts.groups)
    kl = ((experience.logprobs - experience.ref_logprobs) * experience.mask).sum(dim=1)
    return [
        {
            "iteration": iteration,
            "prompt_id": prompt.prompt_id,
            "user": prompt.user,
            "messages": prompt.messages,
            "text": str(tokenizer.decode(list(group.answers[0]), skip_special_tokens=True)),
            "score": float(experience.scores[number * each]),
            "kl": float(kl[number * each]),
        }
        for number, (prompt, group) in enumerate(
            zip(prompts[:SHOWN], rollouts.groups[:SHOWN], strict=True)
        )
    ]


def write_samples(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Add an iteration's lines to the file in a folder, which is made where it is missing.

    What an earlier process wrote of this iteration and later ones goes: they are sampled anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, beside = folder / SAMPLES, folder / f".{SAMPLES}.tmp"
    before = file.read_text().splitlines(keepends=True) if file.exists() else []
    first = min(row["iteration"] for row in rows)
    kept = [line for line in before if json.loads(line)["iteration"] < first]
    beside.write_text("".join(kept + [json.dumps(row) + "\n" for row in rows]))
    os.replace(beside, file)
