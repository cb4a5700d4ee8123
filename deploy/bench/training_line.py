"""How a measurement talks with the processes that train for it: one line of JSON each way.

    python -m deploy.bench.training_child SPECIFICATION     (ours; and training_trl, a peer's)

The child says that it is ready, then answers each request. Whatever libraries print goes to the
log. Standard library only: a peer runs it in an environment of its own.
"""

import json
import os
import resource
import sys
from typing import Any

Words = dict[str, Any]  # a request or a reply, as JSON has it


class Line:
    """The child's end."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def next(self) -> Words:
        """The next request; leaves this process when nobody asks any more."""
        line = sys.stdin.readline()
        if not line:
            self._out.close()
            sys.exit(0)
        read: Words = json.loads(line)
        return read

    def tell(self, words: Words) -> None:
        """Answer, with the most memory that this process ever held."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(words | {"peak_bytes": peak}), file=self._out, flush=True)
