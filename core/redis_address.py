"""What a URL of Redis says: one server, Sentinels that know the master, or nodes of a Cluster.

    redis://, rediss:// (TLS), unix://                     as redis-py reads them
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST.../SERVICE[/DATABASE][?OPTION=VALUE&...]
    rediss+sentinel://...                                  TLS to the Sentinels and to Redis
    redis+cluster://[USER:PASSWORD@]HOST[:PORT],HOST...[/0][?OPTION=VALUE&...]
    rediss+cluster://...                                   TLS to all nodes

USER and PASSWORD are those of Redis; the Sentinels' own are the options `sentinel_username` and
`sentinel_password`. Settings about TLS and replicas are put into the URL as options, so that one
string says all that a process needs. Knows URLs and opens nothing; core/redis_client.py connects.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from core.errors import StartError
from core.settings import Settings

SENTINEL_SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
CLUSTER_SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
_OTHERS_CLUSTER_SCHEMES = ("rediscluster", "redis-cluster", "rediss-cluster", "valkey+cluster")
_SENTINEL_PORT, _PORT = 26379, 6379
_HOST = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.%]+)\]|(?P<name>[^\[\]:,]+))(?::(?P<port>\d{1,5}))?")
_SENTINEL_FORM = "redis+sentinel://[USER:PASSWORD@]HOST:PORT,HOST:PORT/SERVICE/DATABASE"
_CLUSTER_FORM = "redis+cluster://[USER:PASSWORD@]HOST:PORT,HOST:PORT"
NODE_OF_CLUSTER = (
    "this Redis is a node of a Cluster, where one node after the other may have our keys: name "
    f"several as INSTRUCTLOOP_REDIS_URL={_CLUSTER_FORM} (rediss+cluster:// for TLS)"
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
    """As redis-py reads it; with Sentinels or a Cluster its host means nothing."""
    sentinels: tuple[tuple[str, int], ...] = ()
    nodes: tuple[tuple[str, int], ...] = ()
    """Of a Cluster, those that are asked who owns our slot."""
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
    """Take a URL apart. Raises StartError for one that cannot be."""
    scheme, (netloc, path), options = _split(url)
    said = Address(
        url="",
        login=_login(netloc),
        wait=Wait(int(options.pop("wait_replicas", 0)), float(options.pop("wait_seconds", 1.0))),
    )
    if scheme in SENTINEL_SCHEMES:
        said = _sentinels(said, scheme, netloc, path, options)
    elif scheme in CLUSTER_SCHEMES:
        said = _cluster(said, scheme, netloc, path, options)
    else:
        said = replace(said, url=_joined(scheme, netloc, path, options))
    return replace(said, tls={k: v for k, v in options.items() if k.startswith("ssl_")})


def _sentinels(
    said: Address, scheme: str, netloc: str, path: str, options: dict[str, str]
) -> Address:
    userinfo, at, hosts = netloc.rpartition("@")
    named = re.fullmatch(r"/(?P<service>[^/]+)(?:/(?P<database>\d*))?", path)
    if named is None:
        raise StartError(f"the URL of Redis names no service of Sentinel: {_SENTINEL_FORM}")
    database = int(named["database"] or options.pop("db", 0))
    login = options.pop("sentinel_username", None), options.pop("sentinel_password", None)
    return replace(
        said,
        url=_joined(SENTINEL_SCHEMES[scheme], f"{userinfo}{at}sentinel", f"/{database}", options),
        sentinels=_hosts(hosts, "Sentinel", _SENTINEL_PORT, _SENTINEL_FORM),
        service=unquote(named["service"]),
        database=database,
        sentinel_login=login,
    )


def _cluster(
    said: Address, scheme: str, netloc: str, path: str, options: dict[str, str]
) -> Address:
    userinfo, at, hosts = netloc.rpartition("@")
    if path not in ("", "/", "/0") or options.pop("db", "0") != "0":
        raise StartError(f"a Redis Cluster has no database but 0: {_CLUSTER_FORM}")
    return replace(
        said,
        url=_joined(CLUSTER_SCHEMES[scheme], f"{userinfo}{at}cluster", "/0", options),
        nodes=_hosts(hosts, "node", _PORT, _CLUSTER_FORM),
    )


def with_settings(url: str, settings: Settings) -> str:
    """The URL with what the settings say about TLS; what it says itself comes first."""
    if not url.startswith(("rediss://", "rediss+sentinel://", "rediss+cluster://")):
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
    if parts.scheme in _OTHERS_CLUSTER_SCHEMES:
        raise StartError(f"the URL of a Redis Cluster is {_CLUSTER_FORM}, not {parts.scheme}://")
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


def _hosts(said: str, what: str, port: int, form: str) -> tuple[tuple[str, int], ...]:
    found = []
    for text in said.split(","):
        match = _HOST.fullmatch(text)
        if match is None:
            raise StartError(
                f"the URL of Redis has a {what} that is no HOST:PORT (a password with one of "
                f"/ ? # @ has to be percent-encoded): {form}"
            )
        found.append((match["six"] or match["name"], int(match["port"] or port)))
    return tuple(found)


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
