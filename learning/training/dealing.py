"""Rows and tables among processes: who computes which, and how all get to know what was found.

Groups are dealt so that all processes have about as many tokens. Processes compute a layer
together, so each needs as many rows as the others: who has fewer takes part with rows that count
for nothing. A process alone has all rows, in order. Knows packed rows and
learning/training/distributed.py, no losses and no folders.
"""

from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from learning.training.distributed import largest, num_processes, of_all, rank, through
from learning.training.packing import Group, Packed, pack

Model = TypeVar("Model", bound=nn.Module)
P = ParamSpec("P")


def dealt(sizes: Sequence[int], hands: int) -> list[list[int]]:
    """Places of `sizes` for each of so many hands: the largest first, to who has least so far."""
    held: list[list[int]] = [[] for _ in range(hands)]
    sums = [0] * hands
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        hand = sums.index(min(sums))
        held[hand].append(place)
        sums[hand] += sizes[place]
    return [sorted(places) for places in held]


def own_places(groups: Sequence[Group]) -> list[int]:
    """The places of the groups that are this process's."""
    return dealt([one.num_tokens for one in groups], num_processes())[rank()]


def own_rows(groups: Sequence[Group], *, token_budget: int) -> list[tuple[Packed, list[int]]]:
    """This process's rows of some groups, each with the places of its groups.

    Every process gets as many rows: those that only fill up have no places.
    """
    own = own_places(groups)
    rows: list[tuple[Packed, list[int]]] = []
    first = 0
    for row in pack([groups[place] for place in own], token_budget=token_budget):
        count = len(row.group_lengths)
        rows.append((row, own[first : first + count]))
        first += count
    return rows + [(row_of_nothing(), []) for _ in range(rows_missing(len(rows)))]


def rows_missing(have: int) -> int:
    """How many rows fewer than the process with the most this one has."""
    return int(largest(have)) - have


def row_of_nothing() -> Packed:
    """A row of two tokens, for who takes part in what others compute."""
    return pack([Group(prompt=[0], answers=[[0]])], token_budget=2)[0]


def take_part(
    model: Model,
    compute: Callable[Concatenate[Model, Packed, P], Tensor | tuple[Tensor, ...]],
    times: int,
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> None:
    """`compute` on so many rows that count for nothing, and their backward passes where there are
    gradients: theirs are 0."""
    for _ in range(times):
        found = through(model, compute, row_of_nothing(), *args, **kwargs)
        if torch.is_grad_enabled():
            flat = found if isinstance(found, Tensor) else found[0]
            torch.autograd.backward(0.0 * flat.sum())


def share(table: Tensor, own: Tensor) -> None:
    """Write into the tables of all what each has in its own rows of it, (rows of its own,)."""
    if num_processes() > 1:
        for places, numbers in of_all([(own, table[own])]):
            table[places] = numbers
