# ruff: noqa: E501 - data, a row a line
"""Fabricated personal data by kind, and rows of text that hold it, for measuring the PII filter.

Values are drawn by a seed and share no code or list with the filter: check digits are computed here
by hand. Each list is dealt in two parts: rules may be looked at against `open`, and never against
`kept`, whose sentences are others too. Knows no filter; `pii_bench.py` does the measuring.
"""

import random
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from deploy.bench.pii_carriers import CARRIERS

Part = Literal["open", "kept"]
T = TypeVar("T")


def _words(text: str) -> list[str]:
    return text.split()


_GIVEN = _words(
    "Margarethe Desmond Ingeborg Kelechi Rosalba Vikram Solveig Theo Amara Gustavo Hedda Lorcan Yevgenia Bashir Clementine Oduya Marisol Fergus Anneke Dilnoza "
    "Ruben Philippa Takumi Esperanza Wolfgang Nasrin Cormac Bronwyn Iker Shanice Ludovic Parvati Aurelio Mirela Kwabena Josephine Benedikt Rukhsana Emil Tabitha "
    "Salma Reuben Odalys Gethin Malgosia Hiro Winifred Zoltan Delphine Abebe Laurie Imogen Pasquale Freja Rashida Ignatius Noor Cillian Adaora Wanjiru"
)
_FAMILY = _words(
    "Thornbury Adeyemi Vandenberg Castiglione Marchetti Obuya Strickland Wojtas Hjelmqvist Ramaswamy Featherstone Dumitrescu Okafor Bellweather Sorensen Kaczmarek "
    "Iglesias Tanaka McAllister Dragomir Llewellyn Hashemi Pereira Bergström Chaudhry Nwosu Hartigan Laskaris Valdés Whittaker Kirchner Mulligan Osei Desrosiers "
    "Baptiste Haraldsen Aguirre Pemberton Sithole Kovács Rousseau Blackwood Ngata Fitzgerald Mazur Delgado Appiah Vaszary"
)
_WORDS = _words(
    "bramble copper lantern saffron meadow orbit walnut thunder pickle velvet harbor comet juniper tundra falcon marble"
)
_HOSTS = _words(
    "northgate-clinic.example.org lumen.example.com postfach.example.de correo.example.es box.example.net kanzlei-x.example.at mailer.test studio9.example.io"
)
_MONTHS = _words(
    "January February March April May June July August September October November December"
)


@dataclass(frozen=True)
class Row:
    """One text and what must be gone from it: (kind, value)."""

    text: str
    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Draw:
    """Random choices of one part of the lists."""

    random: random.Random
    part: Part

    def of(self, values: Sequence[T]) -> T:
        """One of the values that belong to this part."""
        return self.random.choice(values[0 if self.part == "open" else 1 :: 2])

    def any(self, *values: T) -> T:
        """One of the values, whatever the part: forms and formats are the same in both."""
        return self.random.choice(values)

    def digits(self, count: int) -> str:
        """So many decimal digits, none of the first two a zero."""
        return str(self.random.randint(11, 99))[:count] + "".join(
            self.random.choices("0123456789", k=max(0, count - 2))
        )

    def number(self, low: int, high: int) -> int:
        """An integer of [low, high]."""
        return self.random.randint(low, high)

    def token(self, count: int, letters: str = string.ascii_letters + string.digits) -> str:
        """So many characters of the alphabet, at least one of them a digit."""
        drawn = "".join(self.random.choices(letters, k=count - 1))
        return drawn + self.random.choice("23456789")


def _luhn(digits: str) -> str:
    total = 0
    for index, digit in enumerate(reversed(digits)):
        doubled = int(digit) * (2 if index % 2 == 0 else 1)
        total += doubled - 9 if doubled > 9 else doubled
    return str(-total % 10)


def _weighted(digits: str, weights: Sequence[int]) -> int:
    return sum(int(d) * w for d, w in zip(digits, weights, strict=True))


def _person(draw: Draw) -> str:
    first, last = draw.of(_GIVEN), draw.of(_FAMILY)
    forms = (
        [f"{first} {last}"] * 9 + [first] * 3 + [last, f"{last}, {first}", f"{first[0]}. {last}"]
    )
    forms += [
        f"{first} {draw.any('A', 'J', 'R')}. {last}",
        f"{first} {last}".upper(),
        f"{first} {last}".lower(),
    ]
    return draw.any(*forms, f"{first} {last}-{draw.of(_FAMILY)}")


def _email(draw: Draw) -> str:
    first, last = draw.of(_GIVEN).lower(), draw.of(_FAMILY[:20]).lower()
    user = draw.any(
        f"{first}.{last}",
        f"{first}{draw.number(1, 99)}",
        f"{last}_{first[0]}",
        f"{first}.{last}+bills",
        f"{draw.of(_WORDS)}{draw.number(1, 999)}",
        f"{first}-{last}",
    )
    return f"{user}@{draw.of(_HOSTS)}"


def _phone(draw: Draw) -> str:
    d, area = draw.digits, draw.number(201, 989)
    return draw.any(
        f"({area}) {d(3)}-{d(4)}", f"{area}-{d(3)}-{d(4)}", f"+1-{area}-{d(3)}-{d(4)}", f"+44 7{d(3)} {d(6)}", f"+49 (0)89 {d(6)}", f"+34 6{d(2)} {d(3)} {d(3)}",
        f"0{draw.number(1, 9)} {d(2)} {d(2)} {d(2)} {d(2)}", f"+61 4{d(2)} {d(3)} {d(3)}", f"+55 11 9{d(4)}-{d(4)}", f"020 {d(4)} {d(4)}", f"{area} {d(3)} {d(4)}", f"+234 80{d(1)} {d(3)} {d(4)}",
        f"1.{area}.{d(3)}.{d(4)}", f"+81-3-{d(4)}-{d(4)}", f"({area}) {d(3)} {d(4)} ext. {d(3)}", f"+1{area}{d(7)}", f"0{draw.number(151, 179)} {d(8)}",
    )  # fmt: skip


def _card(draw: Draw) -> str:
    start = draw.any("4", "4", "52", "54", "2221", "34", "6011", "3530")
    length = 15 if start == "34" else 16
    body = start + draw.digits(length - 1 - len(start))
    number = body + _luhn(body)
    cuts = (4, 10, 15) if length == 15 else (4, 8, 12, 16)
    groups = [number[a:b] for a, b in zip((0, *cuts), cuts, strict=False)]
    return draw.any(number, " ".join(groups), "-".join(groups))


def _iban(draw: Draw) -> str:
    country, body = draw.any(
        ("DE", draw.digits(18)), ("GB", draw.any("NWBK", "BARC", "HBUK") + draw.digits(14)), ("PT", _portuguese(draw)),
        ("CH", draw.digits(17)), ("DK", draw.digits(14)), ("AT", draw.digits(16)), ("IE", "AIBK" + draw.digits(14)),
    )  # fmt: skip
    checks = 98 - int("".join(str(int(c, 36)) for c in f"{body}{country}00")) % 97
    value = f"{country}{checks:02d}{body}"
    return draw.any(value, " ".join(value[i : i + 4] for i in range(0, len(value), 4)))


def _portuguese(draw: Draw) -> str:
    body = draw.digits(19)
    return body + f"{98 - int(body + '00') % 97:02d}"


def _ssn(draw: Draw) -> str:
    gap = draw.any("-", "-", " ")
    return f"{draw.number(101, 665)}{gap}{draw.number(10, 99)}{gap}{draw.number(1000, 9999)}"


def _national_id(draw: Draw) -> str:
    d = draw.digits
    birth = f"{draw.number(40, 99)}{draw.number(1, 12):02d}{draw.number(1, 28):02d}"
    pesel = birth + d(4)
    swede = birth + d(3)
    french = f"{draw.number(1, 2)}{draw.number(40, 99)}{draw.number(1, 12):02d}{draw.number(10, 89)}{d(6)}"
    foreign = d(7)
    return draw.any(
        pesel + str(-_weighted(pesel, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) % 10), f"{birth}-{swede[6:]}{_luhn(swede)}",
        french + f"{97 - int(french) % 97:02d}", f"Y{foreign}{'TRWAGMYFPDXBNJZSQVHLCKE'[int('1' + foreign) % 23]}",
        f"{draw.any('CE', 'HN', 'PX', 'TW')}{d(6)}{draw.any('A', 'C', 'D')}", f"{d(2)}.{d(3)}.{d(3)}-{draw.any('K', '4')}", f"{draw.any('BNZ', 'AFK')}P{draw.any('M', 'S')}{d(4)}Q",
        f"{draw.number(1, 28):02d}{draw.number(1, 12):02d}{draw.number(40, 99)}-{d(4)}", f"{birth}-{draw.number(1, 4)}{d(6)}", f"{d(3)}.{d(3)}.{d(3)}-{d(2)}",
    )  # fmt: skip


def _passport(draw: Draw) -> str:
    return draw.any(
        draw.any("P", "N", "G", "E") + draw.digits(8),
        draw.digits(9),
        draw.any("AA", "FR", "ZX") + draw.digits(7),
        draw.digits(2) + draw.any("AB", "CK") + draw.digits(5),
        "C01X" + draw.digits(5),
    )


def _ip(draw: Draw) -> str:
    n = draw.number
    v4 = f"{draw.of([13, 34, 46, 62, 88, 104, 151, 185, 198, 212])}.{n(0, 255)}.{n(0, 255)}.{n(1, 254)}"
    return draw.any(
        v4,
        v4,
        f"2001:{n(400, 999)}:{n(1, 9)}a:{n(1, 99)}::{n(1, 99)}",
        f"2a02:8{n(100, 999)}:b{n(10, 99)}f:1200:fc1{n(1, 9)}:3ab:7{n(10, 99)}:1e{n(0, 9)}",
        f"{draw.token(2, 'abcdef0')}:1a:{n(10, 99)}:c4:{n(10, 99)}:9f",
    )


_HEX = "0123456789abcdef"


def _secret(draw: Draw) -> str:
    t = draw.token
    upper = string.ascii_uppercase + string.digits
    return draw.any(
        "sk-ant-api03-" + t(48), "ghs_" + t(36), "ASIA" + t(16, upper), "sk_live_" + t(24), "AIza" + t(35), "glpat-" + t(20), "xoxp-" + draw.digits(12) + "-" + t(26), "npm_" + t(36),
        "hf_" + t(34), "dop_v1_" + t(64, _HEX), "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9." + t(60) + "." + t(43), "SG." + t(22) + "." + t(43), t(40), t(24), "whsec_" + t(32),
        "github_pat_" + t(22) + "_" + t(50), "pypi-AgEIcHlwaS5vcmc" + t(40), "hvs." + t(24), "gsk_" + t(40), t(20) + "/" + t(19), "tskey-auth-" + t(12) + "-" + t(20),
        "-----BEGIN RSA PRIVATE KEY-----\n" + t(64) + "\n" + t(64) + "\n-----END RSA PRIVATE KEY-----",
    )  # fmt: skip


def _url_token(draw: Draw) -> str:
    return draw.any(
        draw.token(32),
        draw.token(40, _HEX),
        draw.token(10),
        draw.token(22) + "%3D%3D",
        draw.token(8) + "-" + draw.token(12),
    )


def _password(draw: Draw) -> str:
    word, other = draw.of(_WORDS), draw.of(_WORDS)
    return draw.any(
        f"{word.title()}{draw.number(10, 2030)}",
        f"{word}-{other}-{draw.number(2, 99)}",
        f"{word.title()}_{other}!",
        draw.token(12),
        f"{word[:2]}$${word[2:]}{draw.number(1, 99)}",
        f"{word}{other}",
        f"!{word.upper()}{draw.number(100, 999)}",
    )


def _birth_date(draw: Draw) -> str:
    year, month, day = draw.number(1938, 2011), draw.number(1, 12), draw.number(1, 28)
    name = _MONTHS[month - 1]
    return draw.any(
        f"{year}-{month:02d}-{day:02d}",
        f"{day:02d}.{month:02d}.{year}",
        f"{month}/{day}/{year}",
        f"{name} {day}, {year}",
        f"{day} {name[:3]} {year}",
        f"{name} {day} {year}",
        f"{day:02d}-{month:02d}-{year}",
        f"{day}/{month}/{year % 100:02d}",
        f"{year}/{month:02d}/{day:02d}",
        f"{day}th of {name} {year}",
    )


def _username(draw: Draw) -> str:
    word, other = draw.of(_WORDS), draw.of(_WORDS)
    return draw.any(
        f"{word}_{other}",
        f"{word}{draw.number(1, 9999)}",
        f"{word}.{other}",
        f"x{word.title()}{other.title()}x",
        f"{draw.of(_GIVEN).lower()}{draw.number(50, 99)}",
        f"{word}-{draw.number(1, 99)}",
        word + other,
    )


def _address(draw: Draw) -> str:
    n, d = draw.number, draw.digits
    street = draw.of(
        [
            "Kelvin",
            "Sycamore",
            "North Hill",
            "Abbey",
            "Windmill",
            "St James's",
            "Quarry",
            "Orchard",
            "Magnolia",
            "Lower Marsh",
        ]
    )
    city = draw.of(
        [
            "Leeds",
            "Tucson",
            "Galway",
            "Perth",
            "Reading",
            "Boise",
            "Exeter",
            "Mobile",
            "Bath",
            "Akron",
        ]
    )
    kind = draw.any(
        "Road", "St", "Avenue", "Terrace", "Crescent", "Way", "Grove", "Close", "Place", "Boulevard"
    )
    return draw.any(
        f"{n(1, 299)} {street} {kind}, {city}", f"Flat {n(1, 9)}, {n(1, 99)} {street} {kind}, {city} LS{n(1, 9)} {n(1, 9)}QT", f"{n(1000, 9999)} N {street} {kind} Unit {n(100, 900)}, {city}, {draw.any('AZ', 'ID', 'AL')} {d(5)}",
        f"{draw.of(['Hauptstraße', 'Ringstr.', 'Mühlenweg', 'Goetheplatz'])} {n(1, 120)}{draw.any('', 'a')}, {d(5)} {draw.of(['Leipzig', 'Graz', 'Ulm', 'Bonn'])}", f"{n(1, 90)} avenue {draw.of(['Foch', 'Jean Jaurès', 'de Verdun', 'Gambetta'])}, {d(5)} Lyon",
        f"Via {draw.of(['Garibaldi', 'Roma', 'Dante Alighieri', 'Mazzini'])} {n(1, 90)}, {d(5)} Torino", f"ul. {draw.of(['Puławska', 'Długa', 'Krucza', 'Polna'])} {n(1, 90)}/{n(1, 40)}, {d(2)}-{d(3)} Warszawa", f"{draw.of(['Keizersgracht', 'Prinsenstraat', 'Dorpsweg', 'Molenlaan'])} {n(1, 400)}, {n(1011, 1099)} DW Amsterdam",
        f"{draw.of(['Drottninggatan', 'Storgatan', 'Kungsgatan', 'Parkvägen'])} {n(1, 90)}, {d(3)} {d(2)} Stockholm", f"Rua {draw.of(['Augusta', 'das Flores', 'do Carmo', 'Direita'])}, {n(1, 2000)}", f"{n(1, 400)} {street.lower()} {draw.any('road', 'street', 'avenue')}, {city.lower()}",
        f"PO Box {n(10, 9999)}, {city}", f"Unit {n(1, 40)}/{n(1, 200)} {street} {draw.any('St', 'Rd')}, {city} NSW {n(2000, 2999)}",
    )  # fmt: skip


GENERATORS: dict[str, Callable[[Draw], str]] = {
    "person": _person, "email": _email, "phone": _phone, "card": _card, "iban": _iban, "ssn": _ssn, "national_id": _national_id, "passport": _passport, "ip": _ip,
    "secret": _secret, "url_token": _url_token, "password": _password, "birth_date": _birth_date, "username": _username, "address": _address,
}  # fmt: skip


def rows(part: Part, *, per_carrier: int, seed: int) -> Iterator[Row]:
    """Every sentence of the part filled `per_carrier` times; `{kind}` and `{kind2}` are slots."""
    draw = Draw(random.Random(seed), part)
    for carrier in CARRIERS[part]:
        for _ in range(per_carrier):
            yield _filled(carrier, draw)


def _filled(carrier: str, draw: Draw) -> Row:
    labels: list[tuple[str, str]] = []
    text: list[str] = []
    for literal, slot, _, _ in string.Formatter().parse(carrier):
        text.append(literal)
        if slot:
            kind = slot.rstrip("23")
            value = GENERATORS[kind](draw)
            labels.append((kind, value))
            text.append(value)
    return Row("".join(text), tuple(labels))
