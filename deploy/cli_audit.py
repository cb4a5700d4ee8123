"""`instructloop audit`: who changed what, shown and proven."""

import json
from typing import Annotated, Any

import typer

from core import audit_log, registry
from core.audit_log import AuditBroken, check, compare, mirror, read_lines
from core.keyring import Keyring
from core.redis_client import Redis
from deploy.cli_loop import with_redis
from deploy.options import RedisUrl, StateDir, settings_from
from deploy.terminal import listing, show

_SHOWN = ("at", "action", "who", "why", "from", "to")


def audit(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Prove that nothing was changed.")] = (
        False
    ),
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Show the audit log: promotions, roll backs, erasures, keys, and who did it why.

    Example: instructloop audit --verify
    """
    settings = settings_from(state_dir, redis_url)
    keyring = Keyring(settings.secrets)
    path = settings.state_dir / audit_log.FILE

    async def prove(redis: Redis) -> int:
        if path.exists():  # before anything is added, which would hide what was cut off
            check(read_lines(path), keyring.public_key())
        await mirror(redis, keyring, settings.state_dir)
        lines = read_lines(path)
        check(lines, keyring.public_key())
        await compare(redis, lines)
        return len(lines)

    if verify:
        try:
            count = with_redis(settings, prove)
        except AuditBroken as error:
            raise AuditBroken(f"{error.message}: compare it with a backup of {path}") from None
        print(f"{count} entries: none was changed, taken out or put in")
        return
    _print(with_redis(settings, registry.history), as_json=as_json)


def _print(entries: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        for entry in entries:
            print(json.dumps(entry, sort_keys=True))
        return
    table = listing(*_SHOWN[:-2], "about", whole=2)
    for entry in entries:
        about = " ".join(f"{k}={v}" for k, v in entry.items() if k not in _SHOWN)
        moved = f"{entry.get('from', '')} → {entry['to']} " if "to" in entry else ""
        table.add_row(*(str(entry.get(name, "")) for name in _SHOWN[:-2]), moved + about)
    show(table)
