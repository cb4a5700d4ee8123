"""Prompts for demonstrations, and how they are split so that a test measures what was learned.

The bundled set is of our own writing: small families of prompts, each with templates, topics and
users that no other family has. So whole families go to training, validation or test, and a test
prompt shares neither template nor topic nor user with anything that was trained on. Pure but for
`read_prompts`; knows no service and no judge. deploy/simulate/run.py asks these prompts.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from core.errors import StartError

BUNDLED = Path(__file__).with_name("prompts.jsonl")
Form = Literal["open", "short"]
_FORMS = ("open", "short")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, who asks it, and what it was made from."""

    prompt: str
    user: str
    topic: str
    template: str
    form: Form
    """`short`: the answer is meant to end within a sentence. `open`: it may go on."""

    def with_user(self, user: str) -> "Prompt":
        """The same prompt, asked by somebody else."""
        return replace(self, user=user)


@dataclass(frozen=True, slots=True)
class PromptSets:
    """Prompts for three purposes; no user, topic or template occurs in two of them."""

    training: tuple[Prompt, ...]
    validation: tuple[Prompt, ...]
    test: tuple[Prompt, ...]


def bundled_prompts() -> list[Prompt]:
    """The prompts that come with the project."""
    return read_prompts(BUNDLED)


def read_prompts(path: Path) -> list[Prompt]:
    """Read JSON lines `{"prompt", "user"?, "topic"?, "template"?, "form"?}`.

    A row without user, topic or template gets one of its own. Raises StartError with the line
    that is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"cannot read the prompts in {path}: {error}") from None
    prompts = [_read_line(path, i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise StartError(f'{path} holds no prompts: write one {{"prompt": "..."}} a line')
    return prompts


def _read_line(path: Path, number: int, line: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise StartError(f"{path} line {number} is not JSON: {error}") from None
    text = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise StartError(f'{path} line {number} needs a "prompt" that is a text')
    own = f"line-{number}"
    fields = {name: row.get(name, own) for name in ("user", "topic", "template")}
    form = row.get("form", "open")
    if form not in _FORMS or not all(isinstance(v, str) and v for v in fields.values()):
        raise StartError(
            f'{path} line {number}: "form" is "open" or "short"; "user", "topic" and "template" '
            "are texts"
        )
    return Prompt(prompt=text, form=form, **fields)


def choose(
    prompts: Sequence[Prompt],
    *,
    seed: int,
    form: Form,
    training: int,
    validation: int,
    test: int,
) -> PromptSets:
    """Draw three sets of the given sizes; the same arguments give the same sets.

    The test set takes as few families as hold it, so that training sees as many kinds of prompts
    as can be. Raises StartError when the prompts of that form do not suffice.
    """
    generator = random.Random(seed)
    found = families([prompt for prompt in prompts if prompt.form == form])
    generator.shuffle(found)
    for family in found:
        generator.shuffle(family)
    for_test, rest = _take(found, test)
    share = validation / max(validation + training, 1)
    at_least = _needed(rest, validation)
    count = max(at_least, math.floor(share * len(rest)))
    chosen = PromptSets(
        training=deal(rest[count:], training),
        validation=deal(rest[:count], validation),
        test=deal(for_test, test),
    )
    wanted = {"training": training, "validation": validation, "test": test}
    for name, size in wanted.items():
        if len(getattr(chosen, name)) < size:
            raise StartError(
                f"{len(prompts)} prompts with {len(found)} families of form {form!r} cannot be "
                f"split into {wanted}: ask for fewer, or add prompts with templates, topics and "
                "users of their own"
            )
    return chosen


def families(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Groups of prompts such that no user, topic or template occurs in two groups."""
    leader: dict[tuple[str, str], tuple[str, str]] = {}

    def find(name: tuple[str, str]) -> tuple[str, str]:
        while leader.setdefault(name, name) != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    for prompt in prompts:
        home = find(("user", prompt.user))
        leader[find(("topic", prompt.topic))] = home
        leader[find(("template", prompt.template))] = home
    groups: dict[tuple[str, str], list[Prompt]] = {}
    for prompt in sorted(prompts, key=lambda p: (p.prompt, p.user)):
        groups.setdefault(find(("user", prompt.user)), []).append(prompt)
    return list(groups.values())


def _needed(families: Sequence[list[Prompt]], size: int) -> int:
    """How many of the first families hold `size` prompts."""
    total = count = 0
    while total < size and count < len(families):
        total += len(families[count])
        count += 1
    return count


def _take(
    families: Sequence[list[Prompt]], size: int
) -> tuple[list[list[Prompt]], list[list[Prompt]]]:
    count = _needed(families, size)
    return list(families[:count]), list(families[count:])


def deal(families: Sequence[list[Prompt]], size: int) -> tuple[Prompt, ...]:
    """At most `size` prompts, one from each family in turn."""
    most = max((len(family) for family in families), default=0)
    rounds = [family[i] for i in range(most) for family in families if i < len(family)]
    return tuple(rounds[:size])
