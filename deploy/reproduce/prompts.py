"""Which prompts a seed trains on, chooses by and is tested on.

The bundled prompts come in families that share templates and topics (deploy/simulate/prompt_sets),
and each of three consecutive seeds holds another third of the families out. So three seeds test
every family once, and a family, which is what intervals count, never stands on both sides. Pure;
knows no model and no rater.
"""

import random
from collections.abc import Sequence

from core.errors import StartError
from deploy.reproduce.sizes import Size
from deploy.simulate.prompt_sets import (
    Form,
    Prompt,
    PromptSets,
    bundled_prompts,
    choose,
    deal,
    families,
)

FOLDS = 3


def prompt_sets(size: Size, form: Form, *, seed: int) -> PromptSets:
    """The prompts of a seed: no family of the test set occurs in another set.

    Raises StartError where the bundled prompts of this form are too few.
    """
    turn, fold = divmod(seed, FOLDS)
    found = families([prompt for prompt in bundled_prompts() if prompt.form == form])
    random.Random(turn).shuffle(found)
    held_out = found[fold::FOLDS]
    for family in held_out:
        random.Random(seed).shuffle(family)
    test = deal(held_out, size.test)
    if len(test) < size.test:
        raise StartError(f"{len(held_out)} families of prompts cannot give {size.test} for testing")
    rest = [prompt for family in found if family not in held_out for prompt in family]
    sets = choose(
        rest,
        seed=seed,
        form=form,
        training=size.demonstrations + size.comparisons,
        validation=size.validation,
        test=0,
    )
    return PromptSets(sets.training, sets.validation, test)


def families_of(prompts: Sequence[Prompt]) -> list[str]:
    """For each prompt its family's name, the same in every seed."""
    by_text = {
        prompt.prompt: min(one.template for one in family)
        for family in families(bundled_prompts())
        for prompt in family
    }
    return [by_text[prompt.prompt] for prompt in prompts]
