"""How much the heads disagree about logged prompts that nobody has ranked yet.

Reads those prompts with their answers from the snapshot, writes `disagreement.jsonl` beside the
model. It goes to Redis (learning/reward_model/labeling_worth.py), where the stock of labeling tasks
is filled by it (feedback/labeling_supply.py).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as parquet
from transformers import PreTrainedTokenizerBase

from learning.reward_model.disagreement import Heads, disagreement
from learning.reward_model.labeling_worth import FILE
from learning.reward_model.loop import score_all
from learning.training.distributed import is_first
from learning.training.encoding import encode_answer, encode_prompt
from learning.training.models import RewardModel
from learning.training.packing import Group
from learning.training.stage import Stage


def score_unranked(
    stage: Stage,
    model: RewardModel,
    heads: Heads,
    tokenizer: PreTrainedTokenizerBase,
    *,
    most: int,
    token_budget: int,
) -> int:
    """Write the disagreement about at most so many prompts; how many. Raises Interrupted."""
    named = unranked(stage.path("snapshot"), tokenizer, most=most, longest=token_budget)
    values = disagreements(stage, model, heads, [g for _, g in named], token_budget=token_budget)
    lines = [
        json.dumps({"prompt_id": name, "disagreement": value}) + "\n"
        for (name, _), value in zip(named, values, strict=True)
    ]
    if is_first():
        (stage.partial / FILE).write_text("".join(lines))
    return len(lines)


def unranked(
    snapshot: Path, tokenizer: PreTrainedTokenizerBase, *, most: int, longest: int
) -> list[tuple[str, Group]]:
    """Tokens and groups of the newest prompts that have no ranking and at most `longest` tokens."""
    path = snapshot / "unranked.parquet"
    rows = parquet.read_table(path).to_pylist() if path.is_file() else []
    found: list[tuple[str, Group]] = []
    for row in sorted(rows, key=lambda row: (-row["created_at"], row["prompt_id"])):
        if len(found) == most:
            break
        answers = [encode_answer(text, tokenizer) for text in row["texts"]]
        group = Group(prompt=encode_prompt(row["messages"], tokenizer), answers=answers)
        if group.num_tokens <= longest:
            found.append((row["prompt_id"], group))
    return found


def disagreements(
    stage: Stage, model: RewardModel, heads: Heads, groups: Sequence[Group], *, token_budget: int
) -> list[float]:
    """Of each group, in order; raises Interrupted if asked to leave."""
    found = score_all(stage, model, groups, token_budget=token_budget, heads=heads)
    return [disagreement(of_heads) for _, of_heads in found if of_heads is not None]
