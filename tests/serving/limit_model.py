"""What core/lua/lease_limits.lua should do, written from its description in another way."""

import math
from dataclasses import dataclass, field

LIVE, GONE = 3000, 10_000


@dataclass
class Pool:
    """One budget as Redis keeps it; times in milliseconds."""

    limit: float
    fill: float
    """Per millisecond; 0 for places."""
    level: float = 0.0
    at: float | None = None
    holders: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    """Slice, what was said, when."""

    def lease(
        self, who: str, now: float, said: float, before: float = 0.0, want: float = 0.0
    ) -> tuple[float, float]:
        """The slice for `who`, and what is left in all."""
        if self.at is None:
            self.level, self.at = self.limit, now
        gone = [name for name, (_, _, seen) in self.holders.items() if now - seen > GONE]
        for name in gone:
            if name != who:
                self.level += self.holders.pop(name)[0]
        held, known, _ = self.holders.pop(who, (0.0, before, now))
        others = list(self.holders.values())
        live = 1 + sum(1 for *_, seen in others if now - seen <= LIVE)
        shares = 1 if live == 1 else live + 1
        taken = sum(slice_ for slice_, _, _ in others)
        if not self.fill:
            free = max(0.0, self.limit - said - sum(open_ for _, open_, _ in others))
            fair = said + max(math.ceil(free / shares), want)
            slice_ = max(0.0, min(self.limit - taken, fair))
            if want >= 0:
                self.holders[who] = (max(slice_, said), said, now)
            return slice_, free
        level = self.level + self.fill * (now - self.at) + held - (said - known)
        level = min(level, max(0.0, self.limit - taken))
        pool = level + taken
        slice_ = max(0.0, min(level, max(math.ceil(pool / shares), want)))
        if want < 0:
            slice_ = 0.0
            pool = level if level < 0 else pool
        else:
            self.holders[who] = (slice_, said, now)
        self.level, self.at = level - slice_, now
        return slice_, pool
