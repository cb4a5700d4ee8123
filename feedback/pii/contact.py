# ruff: noqa: E501 - a rule is one row of a table
"""How a person is reached or found on a network: e-mail, phone, IP and MAC addresses.

No test whether a phone number is assigned: fake, mistyped and reserved numbers are hidden too.
Private, loopback and unspecified IP addresses say nothing of a person and stay.
"""

import ipaddress
import re
from collections.abc import Iterator

from feedback.pii.rules import Kind, Rule, Span, apply, digits_of

_LOCAL = r"[^\W_](?:[\w+%'-]| ?\. ?(?=\w)){0,63}"
_HOST = r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\s?\.\s?){1,5}[^\W\d_]{2,24}"
_KEPT_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "224.0.0.0/3",
        "::/127",
        "fe80::/10",
        "fc00::/7",
        "ff00::/8",
    )  # fmt: skip
)
_VERSION = re.compile(
    r"(?:\bv|versions?|ver\.?|release|firmware|build|rev)[\s:=]{0,3}$", re.IGNORECASE
)


def is_personal_ip(value: str) -> bool:
    """Whether the value is an IP address that is not private, loopback or unspecified."""
    try:
        address = ipaddress.ip_address(value.split("%")[0].split("/")[0].strip("."))
    except ValueError:
        return False
    return not any(address in network for network in _KEPT_NETWORKS)


def _is_ipv6(value: str) -> bool:
    return value.count(":") >= 2 and len(digits_of(value)) >= 1 and is_personal_ip(value)


EMAIL_RULES: tuple[Rule, ...] = (
    Rule(name="email", kind=Kind.EMAIL, hints=("@",),
         pattern=re.compile(r"(?<![\w.+%-])(?<!\w')\w(?:[\w.+%-]|'(?=\w)){0,128}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,6}[^\W\d_][\w-]{1,23}"),
         matches=(("write to ann.b+x@mail.example.org.", "ann.b+x@mail.example.org"),),
         spares=("a decorator @app.route and x @ y",)),
    Rule(name="email-tail", kind=Kind.EMAIL, hints=("@",),
         pattern=re.compile(r"[\w.+%-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,6}[^\W\d_][\w-]{1,23}"),
         matches=(("x" * 80 + "@mail.example.org", "x" * 64 + "@mail.example.org"),),
         spares=("@mail.example.org",)),
    Rule(name="email-quoted", kind=Kind.EMAIL, hints=("@",),
         pattern=re.compile(r"\"[^\"\n@]{1,64}\"@(?:[\w-]{1,63}\.){1,6}[^\W\d_]{2,24}|[\w.+-]{1,64}@\[\d{1,3}(?:\.\d{1,3}){3}\]"),
         matches=(('"ann b"@mail.example.org', '"ann b"@mail.example.org'),), spares=('"quoted" @word',)),
    Rule(name="email-spaced", kind=Kind.EMAIL, hints=("@",),
         pattern=re.compile(r"(?<![\w.])" + _LOCAL + r"\s{0,2}@\s{0,2}" + _HOST),
         check=lambda value: bool(re.search(r"\s?\.\s?(?:com|org|net|edu|io|co|de|fr|es|it|uk|us|info|gov|me|dev|ai|eu|nl|pl|se|ch|example|test)$", value.lower())),
         matches=(("ann.b @ mail . com", "ann.b @ mail . com"),), spares=("x @ y. Then we go",)),
    Rule(name="email-spoken", kind=Kind.EMAIL, hints=("at", "dot"),
         pattern=re.compile(r"(?<![\w.])[\w+-]{1,40}(?:(?:\.|\s?[\[(]dot[\])]\s?|\sdot\s)[\w+-]{1,40}){0,4}\s{0,2}(?:[\[({<]\s?(?:at|@)\s?[\])}>]|\sat\s|_at_)\s{0,2}"
                            r"[\w-]{1,60}(?:\s{0,2}(?:[\[({<]\s?(?:dot|\.)\s?[\])}>]|\sdot\s|_dot_)\s{0,2}[\w-]{2,24}){1,4}|"
                            r"(?<![\w.])[\w.+-]{1,40}\s?[\[({]\s?(?:at|@)\s?[\])}]\s?(?:[\w-]{1,60}\.){1,4}[a-z]{2,24}", re.IGNORECASE),
         matches=(("ann (at) mail (dot) org", "ann (at) mail (dot) org"), ("ann[at]mail.org", "ann[at]mail.org")),
         spares=("look at this, the dot is at the end",)),
)  # fmt: skip

_PHONE_CUE = re.compile(
    r"(?:\b(?:tele)?phones?|\btel[ée]?fono?n?|\btel\b|\bcall|\bcell|\bmobil\w*|\bfax|whats\s?app|\btext(?:ed)?\b|\breach|\bsms\b|\bring\b|\bdial|\bcontact|\bhandy\b|"
    r"\bm[óo]vil|\bportable\b|\bcelular|\btelefon\w*|\bnumber\b|\bnummer|\bhotline|\bviber|\bsignal\b|\bph\b|\bmob\b|\bphone_?\w*|телефон|电话|手机|\bext)",
    re.IGNORECASE,
)
_EDGE = r"(?<![\w.*^%=+/$€£#-])"
_NO_MORE = r"(?![\w*^%])(?!\s?[*^%=])(?!\.\d)"


def _is_phone(value: str) -> bool:
    digits = digits_of(value)
    return 7 <= len(digits) <= 15 and len(set(digits)) > 2


def _shape(name: str, pattern: str, match: tuple[str, str], *spares: str) -> Rule:
    return Rule(name=name, kind=Kind.PHONE, pattern=re.compile(_EDGE + r"(?P<v>" + pattern + _EXT + ")" + _NO_MORE, re.IGNORECASE),
                check=_is_phone, matches=(match,), spares=spares)  # fmt: skip


_S = r"[ \t.\-/]{0,2}"
_EXT = r"(?:[ ,]{0,2}(?:x|ext\.?|extension) ?\d{1,6})?"

PHONE_RULES: tuple[Rule, ...] = (
    Rule(name="phone-plus", kind=Kind.PHONE, hints=("+",), check=_is_phone,
         pattern=re.compile(r"(?<![\w*^%+)\]])(?<![^\w]=)(?P<v>\(?\+ ?\(?\d{1,3}\)?(?:[ \t.\-/]{0,2}\(?\d{1,5}\)?){2,7}" + _EXT + ")(?![\\w*^%])"),
         matches=(("at +44 (0)20 7946 0958 today", "+44 (0)20 7946 0958"),), spares=("1 + 200 = 201 and C++20",)),
    _shape("phone-00", r"00[1-9]\d{0,2}(?:" + _S + r"\d{1,5}){2,6}", ("ring 0049 30 1234567", "0049 30 1234567"), "frame 0012"),
    _shape("phone-brackets", r"(?:1[ .-]?)?\(0?\d{2,4}\)" + _S + r"\d{2,4}(?:" + _S + r"\d{2,4}){1,3}", ("(212) 555-0142", "(212) 555-0142"), "f(212) - 5"),
    _shape("phone-334", r"(?:1[ .-])?\d{3}([ .-])\d{3}[ .-]\d{4}", ("212-555-0142", "212-555-0142"), "2024-01-15", "123 456 789"),
    _shape("phone-zero", r"0\d{1,4}[ \-/]\d{2,4}(?:[ \-]?\d{2,4}){1,3}", ("020 7946 0958", "020 7946 0958"), "0 12 3"),
    _shape("phone-pairs", r"0\d(?:[ .-]\d\d){4}", ("06 12 34 56 78", "06 12 34 56 78"), "06 12 34"),
    _shape("phone-zero-solid", r"0[1-9]\d{8,9}", ("tel 07700900123", "07700900123"), "0x12345678", "0.1234567890"),
    _shape("phone-india", r"[6-9]\d{4}[ -]\d{5}", ("98765 43210", "98765 43210"), "12345 67890"),
    Rule(name="phone-cue", kind=Kind.PHONE, cue=_PHONE_CUE, check=_is_phone,
         pattern=re.compile(r"(?<![\w.*^%+])(?P<v>\(?\d{1,5}\)?(?:[ \t.\-/]{0,2}\(?\d{1,5}\)?){1,6}" + _EXT + r")(?![\w*^%])"),
         matches=(("call me on 7123 45678", "7123 45678"),), spares=("we counted 7123 45678 sheep",)),
)  # fmt: skip

NETWORK_RULES: tuple[Rule, ...] = (
    Rule(name="ipv4", kind=Kind.IP, pattern=re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)"), check=is_personal_ip,
         matches=(("from 203.0.113.7:443", "203.0.113.7"),), spares=("at 192.168.1.5 and 127.0.0.1, 1.2.3.4.5",)),
    Rule(name="ipv4-dashed", kind=Kind.IP, pattern=re.compile(r"\b(?:ip|ec2|host|client)-(?P<v>(?:\d{1,3}-){3}\d{1,3})\b", re.IGNORECASE),
         check=lambda value: is_personal_ip(value.replace("-", ".")), hints=("ip-", "ec2-", "host-", "client-"),
         matches=(("ip-203-0-113-7", "203-0-113-7"),), spares=("ip-10-0-0-1",)),
    Rule(name="ipv6", kind=Kind.IP, hints=(":",), pattern=re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{1,39}(?:(?<=:)(?:\d{1,3}\.){3}\d{1,3})?(?:%\w{1,10})?(?![\w:])"),
         check=_is_ipv6, matches=(("from 2001:db8::8a2e:370:7334 now", "2001:db8::8a2e:370:7334"),), spares=("at 12:30:45 in a::b or ::1",)),
    Rule(name="mac", kind=Kind.IP, pattern=re.compile(r"(?<![\w:-])[0-9A-Fa-f]{2}(?:([:-])[0-9A-Fa-f]{2})(?:\1[0-9A-Fa-f]{2}){4}(?![\w:-])|(?<![\w.])[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}(?![\w.])"),
         matches=(("mac 00:1A:2B:3C:4D:5E", "00:1A:2B:3C:4D:5E"),), spares=("2024-01-15-10-20", "ff:ff")),
)  # fmt: skip


def networks(text: str) -> Iterator[Span]:
    """IP and MAC addresses, but no version numbers."""
    lowered = text.lower()
    for rule in NETWORK_RULES:
        for span in apply(rule, text, lowered):
            if not _VERSION.search(text, max(0, span.start - 12), span.start):
                yield span
