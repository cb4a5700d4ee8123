"""What a URL of Redis says: one server, or Sentinels that know where the master is.

    redis://, rediss:// (TLS), unix://                     as redis-py reads them
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST.../SERVICE[/DATABASE][?OPTION=VALUE&...]
    rediss+sentinel://...                                  TLS to the Sentinels and to Redis

USER and PASSWORD are those of Redis; the Sentinels' own are the options `sentinel_username` and
`sentinel_password`. Settings about TLS and replicas are put into the URL as options, so that one
string says all that a process needs. Knows URLs and opens nothing; core/redis_client.py connects.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from core.errors import StartError
from core.settings import Settings

SENTINEL_SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster", "rediscluster", "redis-cluster")
_SENTINEL_PORT = 26379
_HOST = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.%]+)\]|(?P<name>[^\[\]:,]+))(?::(?P<port>\d{1,5}))?")
_FORM = "redis+sentinel://[USER:PASSWORD@]HOST:PORT,HOST:PORT/SERVICE/DATABASE"
NO_CLUSTER = (
    "a Redis Cluster cannot hold the records: each step of the service writes keys that would lie "
    "on different nodes. Use one Redis, or one with replicas and Sentinels "
    f"(INSTRUCTLOOP_REDIS_URL={_FORM})"
)


@dataclass(frozen=True, slots=True)
class Wait:
    """How many replicas must have what a reply promises, and how long is waited for them."""

    replicas: int = 0
    seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class Address:
    """A URL, taken apart."""

    url: str
    """As redis-py reads it; with Sentinels its host means nothing."""
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    database: int = 0
    login: tuple[str | None, str | None] = (None, None)
    """User and password of Redis."""
    sentinel_login: tuple[str | None, str | None] = (None, None)
    tls: Mapping[str, str] = field(default_factory=dict)
    """Options about TLS by redis-py's names."""
    wait: Wait = Wait()

    @property
    def is_tls(self) -> bool:
        """Whether lines to it are encrypted."""
        return self.url.startswith("rediss://")


def read_address(url: str) -> Address:
    """Take a URL apart. Raises StartError for one that cannot be, and for a Cluster."""
    scheme, (netloc, path), options = _split(url)
    wait = Wait(int(options.pop("wait_replicas", 0)), float(options.pop("wait_seconds", 1.0)))
    user, password = options.pop("sentinel_username", None), options.pop("sentinel_password", None)
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    kind = SENTINEL_SCHEMES.get(scheme)
    if kind is None:
        plain = _joined(scheme, netloc, path, options)
        return Address(plain, login=_login(netloc), tls=tls, wait=wait)
    userinfo, _, hosts = netloc.rpartition("@")
    said = re.fullmatch(r"/(?P<service>[^/]+)(?:/(?P<database>\d*))?", path)
    if said is None:
        raise StartError(f"the URL of Redis names no service of Sentinel: {_FORM}")
    database = int(said["database"] or options.pop("db", 0))
    nowhere = f"{userinfo}@sentinel" if userinfo else "sentinel"
    return Address(
        _joined(kind, nowhere, f"/{database}", options),
        sentinels=tuple(_host(text) for text in hosts.split(",")),
        service=unquote(said["service"]),
        database=database,
        login=_login(netloc),
        sentinel_login=(user, password),
        tls=tls,
        wait=wait,
    )


def with_settings(url: str, settings: Settings) -> str:
    """The URL with what the settings say about TLS; what it says itself comes first."""
    if not url.startswith(("rediss://", "rediss+sentinel://")):
        return url
    files = {
        "ssl_ca_certs": settings.redis_ca_file,
        "ssl_certfile": settings.redis_certificate_file,
        "ssl_keyfile": settings.redis_key_file,
    }
    return with_options(url, {name: str(path) for name, path in files.items() if path})


def with_options(url: str, more: Mapping[str, str]) -> str:
    """The URL with further options; those that it has stay."""
    scheme, rest, options = _split(url)
    return _joined(scheme, *rest, {**more, **options}) if more else url


def _split(url: str) -> tuple[str, tuple[str, str], dict[str, str]]:
    """Scheme, then all before and in the path, then the options."""
    parts = urlsplit(url)
    if parts.scheme in CLUSTER_SCHEMES:
        raise StartError(NO_CLUSTER)
    return parts.scheme, (parts.netloc, parts.path), dict(parse_qsl(parts.query))


def _joined(scheme: str, netloc: str, path: str, options: Mapping[str, str]) -> str:
    if scheme == "unix" and not netloc:  # urlunsplit would leave the slashes out
        query = f"?{urlencode(options)}" if options else ""
        return f"unix://{path}{query}"
    return urlunsplit((scheme, netloc, path, urlencode(options), ""))


def _login(netloc: str) -> tuple[str | None, str | None]:
    userinfo, at, _ = netloc.rpartition("@")
    if not at:
        return None, None
    user, colon, password = userinfo.partition(":")
    return unquote(user) or None, unquote(password) if colon else None


def _host(text: str) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is None:
        raise StartError(
            "the URL of Redis has a Sentinel that is no HOST:PORT (a password with one of / ? # @ "
            f"has to be percent-encoded): {_FORM}"
        )
    return match["six"] or match["name"], int(match["port"] or _SENTINEL_PORT)


def tls_options_of(address: Address) -> dict[str, str | bool]:
    """The options about TLS as arguments of redis-py, which reads those of a URL itself."""
    options: dict[str, str | bool] = {"ssl_cert_reqs": "required", **address.tls}
    if "ssl_check_hostname" in address.tls:
        said = address.tls["ssl_check_hostname"].lower()
        options["ssl_check_hostname"] = said not in ("0", "f", "false", "n", "no")
    return options


def login_of(address: Address) -> str:
    """`USER:PASSWORD@` as a URL spells it, or nothing."""
    user, password = address.login
    if user is None and password is None:
        return ""
    said = "" if password is None else f":{quote(password, safe='')}"
    return f"{quote(user or '', safe='')}{said}@"
