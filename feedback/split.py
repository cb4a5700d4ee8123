"""Who is trained on and who is only tested on: train, validation and test, by keyed hash.

Whole users go to one split, so that a policy is judged on people it has not seen (the paper,
section 3.2). With very few users that would leave a split empty; then prompts are split instead,
and the snapshot says so. Also when two prompts count as the same. Pure: no store, no secrets.
"""

import unicodedata
from typing import Any, Literal

from core.records import Split
from core.setting_groups import LogSettings
from feedback.texts import Messages, texts_of

MIN_RATERS_TO_HOLD_OUT = 5
"""With fewer raters none is held out by share: their word is needed for training."""
SplitBy = Literal["user", "prompt"]
_HEX_DIGITS = 13  # 52 bits, which a float holds exactly


def share_of(digest: str) -> float:
    """A keyed hash (hex) as a number in [0, 1), uniform over digests."""
    return float(int(digest[:_HEX_DIGITS], 16) / 16**_HEX_DIGITS)


def split_by(num_users: int, log: LogSettings) -> SplitBy:
    """What is split when this many users have been seen."""
    return "prompt" if num_users < log.split_by_prompt_under_users else "user"


def split_of(digest: str, log: LogSettings) -> Split:
    """The split of a user or prompt, given as a keyed hash. It never changes with time."""
    share = share_of(digest)
    if share < log.test_share:
        return "test"
    return "validation" if share < log.test_share + log.validation_share else "train"


def prompt_opening(messages: Messages, chars: int) -> str:
    """What two prompts must share to count as duplicates: the first `chars` of what was asked.

    Instructions of the application (system messages) are left out, since they are the same for
    all of its prompts; case, width and white space make no difference.
    """
    asked: Any = messages
    if isinstance(messages, list):
        asked = [m for m in messages if m.get("role") not in ("system", "developer")] or messages
    text = unicodedata.normalize("NFKC", "\n".join(texts_of(asked))).casefold()
    return " ".join(text.split())[:chars]
