# ruff: noqa: E501 - a rule is one row of a table
"""Secrets that give themselves away by their shape: key blocks, issuers' prefixes, high entropy.

The table `PREFIXES` has a row per issuer: name, pattern, literal that must be present, and a
fabricated sample. Secrets that are known by what stands before them are in `keyvalues.py`.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator

from feedback.pii.rules import Kind, Rule, Span

_PEM_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}(?:PRIVATE KEY|OPENSSH)[A-Z ]{0,20}-----")
_PEM_BODY = re.compile(r"(?:[A-Za-z0-9+/=\s\\,:]|-(?!----)|\"\s*\+?\s*\")*")
_PEM_END = re.compile(r"-----END [A-Z0-9 ]{0,60}-----")
_HEX = re.compile(r"[0-9a-fA-F-]+")
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_SEGMENT = re.compile(r"[A-Za-z0-9]+")


def key_blocks(text: str) -> Iterator[Span]:
    """PEM private keys, also those whose end is missing. Runs over whole texts, in linear time."""
    position = 0
    while begin := _PEM_BEGIN.search(text, position):
        body = _PEM_BODY.match(text, begin.end())
        stop = body.end() if body else begin.end()
        end = _PEM_END.match(text, stop)
        stop = end.end() if end else stop
        yield Span(begin.start(), stop, Kind.SECRET)
        position = stop


def entropy(value: str) -> float:
    """Shannon entropy in bits per character."""
    total = len(value)
    return -sum(n / total * math.log2(n / total) for n in Counter(value).values())


def looks_random(value: str) -> bool:
    """Whether some unbroken piece of the value mixes letters and digits as only machines do."""
    if _HEX.fullmatch(value):
        return False
    return any(_random_piece(piece) for piece in _SEGMENT.findall(value))


def _random_piece(piece: str) -> bool:
    if len(piece) < 14 or _HEX.fullmatch(piece) or entropy(piece) < 3.2:
        return False
    if piece.isalpha() or piece.isdigit():
        return False
    # Words, camel case and numbers come in long pieces; what a machine drew does not.
    parts = _PART.findall(piece)
    return len(parts) >= 5 and len(parts) * 3 >= len(piece)


_L = r"(?<![A-Za-z0-9])"
_A20 = "abcdefGHIJ0123456789"
_X = "0123456789abcdef" * 4

# (issuer, pattern, literal in lower case, sample)
PREFIXES: tuple[tuple[str, str, str, str], ...] = (
    ("openai-style", r"sk-[A-Za-z0-9_-]{16,}", "sk-", "sk-proj-" + _A20 * 2),
    ("stripe", r"[srp]k_(?:live|test)_[A-Za-z0-9]{10,}", "k_", "sk_live_" + _A20),
    ("webhook", r"whsec_[A-Za-z0-9+/=]{16,}", "whsec_", "whsec_" + _A20),
    ("github", r"gh[pousr]_[A-Za-z0-9]{16,}", "gh", "ghp_" + _A20 * 2),
    ("github-fine", r"github_pat_\w{20,}", "github_pat_", "github_pat_" + _A20 * 3),
    ("gitlab", r"gl[a-z]{2,5}-[\w-]{16,}", "gl", "glpat-" + _A20),
    ("aws", r"A(?:KIA|SIA|GPA|ROA|IDA|NPA|NVA|BIA|CCA)[A-Z0-9]{16}", "a", "AKIA" + "Q7RT" * 4),
    ("slack", r"xox[a-z]-[\w-]{10,}|xapp-\d-[\w-]{10,}", "x", "xoxb-" + "12345-" + _A20),
    ("slack-hook", r"hooks\.slack\.com/[\w/]{12,}", "hooks.slack", "hooks.slack.com/services/T0/B0/x9"),
    ("google", r"AIza[\w-]{25,}", "aiza", "AIza" + "SyB-" + _A20 * 2),
    ("google-oauth", r"GOCSPX-[\w-]{16,}|ya29\.[\w-]{16,}|1//0[\w-]{20,}", "", "ya29." + _A20),
    ("sendgrid", r"SG\.[\w-]{12,}\.[\w-]{12,}", "sg.", "SG." + _A20 + "." + _A20),
    ("twilio", r"(?:SK|AC|AP)[0-9a-f]{32}", "", "SK" + _X[:32]),
    ("npm", r"npm_[A-Za-z0-9]{20,}", "npm_", "npm_" + _A20 * 2),
    ("pypi", r"pypi-[\w-]{16,}", "pypi-", "pypi-" + _A20 * 2),
    ("hugging-face", r"(?:hf|api_org)_[A-Za-z0-9]{20,}", "_", "hf_" + _A20 * 2),
    ("databricks", r"dapi[0-9a-f]{32}", "dapi", "dapi" + _X[:32]),
    ("digitalocean", r"do[opr]_v1_[0-9a-f]{32,}", "_v1_", "dop_v1_" + _X),
    ("shopify", r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{20,}", "shp", "shpat_" + _X[:32]),
    ("jwt", r"eyJ[\w-]{8,}(?:\.[\w-]*){1,4}|eyJ[\w-]{36,}", "eyj", "eyJhbGciOiJI." + _A20 + "." + _A20),
    ("vault", r"hv[sbr]\.[\w-]{20,}", "hv", "hvs." + _A20 * 2),
    ("groq", r"gsk_[A-Za-z0-9]{20,}", "gsk_", "gsk_" + _A20 * 2),
    ("replicate", r"r8_[A-Za-z0-9]{20,}", "r8_", "r8_" + _A20 * 2),
    ("grafana", r"gl(?:sa|c)_[\w=+/-]{20,}", "gl", "glsa_" + _A20 * 2),
    ("telegram", r"\d{8,10}:[A-Za-z0-9_-]{30,}", ":", "123456789:AA" + _A20 * 2),
    ("discord", r"[MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,}", ".", "M" + _A20 + "abcd.Xy12_z." + _A20 * 2),
    ("discord-hook", r"discord(?:app)?\.com/api/webhooks/[\w/-]{20,}", "webhooks", "discord.com/api/webhooks/1/" + _A20),
    ("mailgun", r"key-[0-9a-f]{32}", "key-", "key-" + _X[:32]),
    ("mailchimp", r"[0-9a-f]{32}-us\d{1,2}", "-us", _X[:32] + "-us14"),
    ("square", r"sq0[a-z]{3}-[\w-]{20,}|EAAA[\w-]{40,}", "", "sq0atp-" + _A20 + "ab"),
    ("facebook", r"EAA[A-Z][A-Za-z0-9]{30,}", "eaa", "EAAC" + _A20 * 2),
    ("new-relic", r"NR(?:AK|JS|II|RA)-[A-Za-z0-9]{15,}", "nr", "NRAK-" + "Q7RT" * 6),
    ("atlassian", r"AT[A-Z]{3}3[\w=-]{20,}", "at", "ATATT3" + _A20 * 2),
    ("postman", r"PMAK-[0-9a-f-]{20,}", "pmak-", "PMAK-" + _X[:24] + "-" + _X[:34]),
    ("doppler", r"dp\.[a-z]{2,5}\.[A-Za-z0-9]{20,}", "dp.", "dp.pt." + _A20 * 2),
    ("notion", r"(?:ntn|secret)_[A-Za-z0-9]{20,}", "_", "ntn_" + _A20 * 2),
    ("airtable", r"pat[A-Za-z0-9]{14}\.[0-9a-f]{32,}", "pat", "patAbC123xYz45678." + _X),
    ("terraform", r"[A-Za-z0-9]{14}\.atlasv1\.[\w-]{20,}", "atlasv1", "abc123ABC456de.atlasv1." + _A20 * 3),
    ("age", r"AGE-SECRET-KEY-1[A-Z0-9]{20,}", "age-secret", "AGE-SECRET-KEY-1" + "QPZRY9X8GF2TVDW0" * 3),
    ("dropbox", r"sl\.[\w-]{40,}", "sl.", "sl." + _A20 * 3),
    ("docker", r"dckr_(?:pat|oat)_[\w-]{16,}", "dckr_", "dckr_pat_" + _A20 * 2),
    ("alibaba", r"LTAI[A-Za-z0-9]{12,}", "ltai", "LTAI" + _A20),
    ("flutterwave", r"FLW(?:SECK|PUBK)[\w-]{12,}", "flw", "FLWSECK-" + _A20),
    ("tailscale", r"tskey-[\w-]{16,}", "tskey-", "tskey-auth-" + _A20),
    ("planetscale", r"pscale_[a-z]{2,6}_[\w.=-]{20,}", "pscale_", "pscale_tkn_" + _A20 * 2),
    ("putty", r"(?:ssh-(?:rsa|ed25519)|ecdsa-sha2-\w+) [A-Za-z0-9+/=]{40,}", "ss", "ssh-rsa " + "AAAAB3" + _A20 * 3),
    ("bitcoin", r"(?:[5KL][1-9A-HJ-NP-Za-km-z]{50,51}|xprv[1-9A-HJ-NP-Za-km-z]{100,})", "", "K" + "wDiBf89Qg" * 5 + "bEhKn6"),
)  # fmt: skip

_MARKED_TAIL = Rule(
    name="word-then-random-tail",
    kind=Kind.SECRET,
    pattern=re.compile(
        _L + r"[A-Za-z][A-Za-z0-9]{1,15}(?:[_-][a-z0-9]{2,8}){0,2}[_-][A-Za-z0-9]{16,}"
    ),
    check=lambda value: _random_tail(value),
    matches=(("use acme_live_" + "a8Kd02mXq9Lz71Pw", "acme_live_" + "a8Kd02mXq9Lz71Pw"),),
    spares=("call test_initialisationsequence", "branch fix-0123456789abcdef0123"),
)
_RANDOM = Rule(
    name="random-token",
    kind=Kind.SECRET,
    pattern=re.compile(r"(?<![\w/.+-])[A-Za-z0-9][A-Za-z0-9+/_.-]{14,400}={0,2}(?![A-Za-z0-9])"),
    check=looks_random,
    matches=(("deploy with q8Zr1LmX0vTn5KbY2 now", "q8Zr1LmX0vTn5KbY2"),),
    spares=(
        "commit 9fceb02d0ae598e95dc970b74767f19372d61af8",
        "id 123e4567-e89b-12d3-a456-426614174000",
        "getElementsByClassName2 and test_v2_migration_2024_01",
    ),
)


def _random_tail(value: str) -> bool:
    tail = re.split(r"[_-]", value)[-1]
    mixed = any(c.isdigit() for c in tail) and any(c.isalpha() for c in tail)
    return mixed and not _HEX.fullmatch(tail) and entropy(tail) >= 3.2


def _row(name: str, pattern: str, hint: str, sample: str) -> Rule:
    return Rule(
        name=name,
        kind=Kind.SECRET,
        pattern=re.compile(_L + "(?:" + pattern + ")"),
        hints=(hint,) if hint else (),
        matches=((f"here: {sample} ok", sample),),
        spares=("the task-runner, risk-free, and a plain sentence about keys",),
    )


SECRET_RULES: tuple[Rule, ...] = (*(_row(*row) for row in PREFIXES), _MARKED_TAIL, _RANDOM)
