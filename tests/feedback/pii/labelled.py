# ruff: noqa: E501 - data, a row a line
"""A labelled set, made here: carrier sentences by kind, filled with fabricated values by a seed.

Every row is (text, [(kind, value)]). Values are drawn by this file's own generators, which share
no code with the filter: check digits are computed here by hand. Names were written down for this
set, about half of them unlike anything on the filter's own short list.
"""

import random
import string
from collections.abc import Callable, Iterator

from deploy.bench.pii_labelled import Row


def _words(text: str) -> list[str]:
    return text.split()


GIVEN = _words(
    "Maria John Elena Robert Priya Thomas Fatima David Sarah Michael Anna James Katarzyna Pierre Laura Kenji Olga Peter "
    "Ottoline Tunde Saoirse Bjarne Xochitl Ewelina Dorian Milica Thaddeus Zuri Anselm Nomvula Caspian Ilkay Petronella "
    "Rasmus Aoife Dagny Tariq Leocadia Evander Mireille Sunniva Jovan Chiamaka Hyun-woo Zsófia Nuno Ximena Emrys Wilhelmina"
)
FAMILY = _words(
    "Okonjo Harrington Vexley Halvorsen Kowalczyk Delacroix Nakamura Petrosyan O'Malley Whitcombe Szabó Achterberg Quispe "
    "Lindqvist Brannigan Ferreira Takahashi Mbeki Rosenthal Castellanos Yilmaz Novotny Fairweather Gunnarsson Abernathy "
    "Pellegrini Khatri Zielinski Underhill Montague Smith Johnson Garcia Müller Ivanova Chen Patel Nguyen"
)


def _luhn(digits: str) -> str:
    total = 0
    for index, digit in enumerate(reversed(digits)):
        doubled = int(digit) * (2 if index % 2 == 0 else 1)
        total += doubled - 9 if doubled > 9 else doubled
    return str(-total % 10)


def _digits(draw: random.Random, count: int) -> str:
    return "".join(draw.choices("0123456789", k=count))


def _token(draw: random.Random, count: int) -> str:
    core = "".join(draw.choices(string.ascii_letters + string.digits, k=count - 3))
    return core + draw.choice("0123456789") + draw.choice("ABCXYZ") + draw.choice("456")


def person(draw: random.Random) -> str:
    first, last = draw.choice(GIVEN), draw.choice(FAMILY)
    forms = [f"{first} {last}"] * 6 + [first] * 2 + [f"{first} {draw.choice('ABCDEGHJ')}. {last}"]
    return draw.choice([*forms, f"{first[0]}. {last}"])


def email(draw: random.Random) -> str:
    first, last = draw.choice(GIVEN[:33]).lower(), draw.choice(FAMILY[:12]).lower().replace("'", "")
    user = draw.choice(
        [
            f"{first}.{last}",
            f"{first[0]}{last}{draw.randint(1, 99)}",
            f"{last}+news",
            f"{first}_{last}",
        ]
    )
    return f"{user}@{draw.choice(['mail', 'post', 'inbox', 'corp.acme', 'uni-x'])}.{draw.choice(['example.org', 'test', 'com', 'co.uk', 'de'])}"


def phone(draw: random.Random) -> str:
    def d(count: int) -> str:
        return _digits(draw, count)

    area = str(draw.randint(201, 989))
    return draw.choice([
        f"({area}) {d(3)}-{d(4)}", f"{area}-{d(3)}-{d(4)}", f"+1 {area} {d(3)} {d(4)}", f"+44 20 {d(4)} {d(4)}", f"+49 30 {d(7)}",
        f"+33 6 {d(2)} {d(2)} {d(2)} {d(2)}", f"07{d(3)} {d(6)}", f"0{draw.randint(1, 5)} {d(2)} {d(2)} {d(2)} {d(2)}", f"{area}.{d(3)}.{d(4)}", f"+91 9{d(4)} {d(5)}",
    ])  # fmt: skip


def card(draw: random.Random) -> str:
    start = draw.choice(["4", "51", "55", "37", "6011"])
    length = 15 if start == "37" else 16
    body = start + _digits(draw, length - 1 - len(start))
    number = body + _luhn(body)
    grouped = (
        " ".join(number[i : i + 4] for i in range(0, 16, 4))
        if length == 16
        else f"{number[:4]} {number[4:10]} {number[10:]}"
    )
    return draw.choice([number, grouped, grouped.replace(" ", "-")])


def iban(draw: random.Random) -> str:
    country, length = draw.choice([("DE", 18), ("NL", 0), ("ES", 20), ("PL", 24), ("FR", 23)])
    if country == "NL":
        body = draw.choice(["INGB", "ABNA", "RABO"]) + _nl_account(draw)
    elif country == "ES":
        body = _spanish_account(draw)
    elif country == "PL":
        body = _digits(draw, 24)
    elif country == "FR":
        body = _french_account(draw)
    else:
        body = _digits(draw, length)
    number = int("".join(str(int(c, 36)) for c in body + country + "00"))
    value = f"{country}{98 - number % 97:02d}{body}"
    return draw.choice([value, " ".join(value[i : i + 4] for i in range(0, len(value), 4))])


def _nl_account(draw: random.Random) -> str:
    return "0" + _digits(draw, 9)


def _spanish_account(draw: random.Random) -> str:
    bank, account = _digits(draw, 8), _digits(draw, 10)
    weights = (1, 2, 4, 8, 5, 10, 9, 7, 3, 6)
    checks = []
    for part in ("00" + bank, account):
        check = 11 - sum(w * int(c) for w, c in zip(weights, part, strict=True)) % 11
        checks.append(str({11: 0, 10: 1}.get(check, check)))
    return bank + "".join(checks) + account


def _french_account(draw: random.Random) -> str:
    body = _digits(draw, 21)
    return body + f"{97 - int(body + '00') % 97:02d}"


def ssn(draw: random.Random) -> str:
    return f"{draw.randint(101, 665)}-{draw.randint(10, 99)}-{draw.randint(1000, 9999)}"


def national_id(draw: random.Random) -> str:
    number = draw.randint(10000000, 99999999)
    nino = f"{draw.choice(['AB', 'JK', 'SR', 'WE'])} {_digits(draw, 2)} {_digits(draw, 2)} {_digits(draw, 2)} {draw.choice('ABCD')}"
    cpf = f"{_digits(draw, 3)}.{_digits(draw, 3)}.{_digits(draw, 3)}-{_digits(draw, 2)}"
    return draw.choice([f"{number}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}", nino, cpf])


def passport(draw: random.Random) -> str:
    return draw.choice(
        [
            draw.choice("CXKAL") + _digits(draw, 8),
            _digits(draw, 9),
            draw.choice(["GB", "EA", "YB"]) + _digits(draw, 7),
        ]
    )


def ip(draw: random.Random) -> str:
    v4 = f"{draw.choice([5, 23, 81, 93, 145, 203, 217])}." + ".".join(
        str(draw.randint(1, 254)) for _ in range(3)
    )
    return draw.choice(
        [
            v4,
            v4,
            f"2a0{draw.randint(1, 9)}:{_digits(draw, 3)}:{draw.randint(1, 9)}::{draw.choice(['1', 'ab:7', 'dead:beef'])}",
        ]
    )


def secret(draw: random.Random) -> str:
    hexes = "".join(draw.choices("0123456789abcdef", k=32))
    return draw.choice([
        "sk-" + _token(draw, 40), "ghp_" + _token(draw, 36), "AKIA" + "".join(draw.choices(string.ascii_uppercase + "234567", k=16)), "xoxb-" + _digits(draw, 11) + "-" + _token(draw, 24),
        "glpat-" + _token(draw, 20), "SG." + _token(draw, 22) + "." + _token(draw, 43), "hf_" + _token(draw, 34), "AIza" + _token(draw, 35), _token(draw, 32), "SK" + hexes,
        "eyJhbGciOiJIUzI1NiJ9." + _token(draw, 30) + "." + _token(draw, 43), "npm_" + _token(draw, 36),
    ])  # fmt: skip


def url_token(draw: random.Random) -> str:
    return draw.choice(
        [_token(draw, 24), "".join(draw.choices("0123456789abcdef", k=20)), _token(draw, 12)]
    )


def password(draw: random.Random) -> str:
    word = draw.choice(
        ["tiger", "Sommer", "blueberry", "qwerty", "Liverpool", "moonlight", "Dragon"]
    )
    return draw.choice(
        [
            f"{word}{draw.randint(1, 2030)}",
            f"{word}!{draw.randint(10, 99)}",
            f"{word[:3]}@{word[3:]}#{draw.randint(1, 9)}",
            _token(draw, 10),
            f"P{word}$$",
        ]
    )


def birth_date(draw: random.Random) -> str:
    year, month, day = draw.randint(1940, 2009), draw.randint(1, 12), draw.randint(1, 28)
    name = _words(
        "January February March April May June July August September October November December"
    )[month - 1]
    return draw.choice(
        [
            f"{year}-{month:02d}-{day:02d}",
            f"{day:02d}/{month:02d}/{year}",
            f"{name} {day}, {year}",
            f"{day} {name} {year}",
            f"{month}/{day}/{year % 100:02d}",
            f"{day}.{month}.{year}",
            f"{day}th of {name} {year}",
        ]
    )


def username(draw: random.Random) -> str:
    word = draw.choice(["quietfox", "starling", "mapleleaf", "neonrider", "jvexley", "thalia"])
    return draw.choice(
        [
            f"{word}{draw.randint(1, 999)}",
            f"{word}_{draw.choice(['x', 'dev', '88'])}",
            word,
            f"{word[:4]}.{word[4:]}",
            word.title() + "99",
        ]
    )


def address(draw: random.Random) -> str:
    n, name = (
        draw.randint(1, 4999),
        draw.choice(
            [
                "Maple",
                "Long Oak",
                "St. Martin",
                "Ferry",
                "Whitmore",
                "Old Mill",
                "5th",
                "Harbour View",
            ]
        ),
    )
    city = draw.choice(["Springfield", "Dayton", "Ashford", "New Haven", "Little Falls"])
    kind = draw.choice(["Street", "Road", "Ave", "Lane", "Blvd", "Drive", "Court"])
    return draw.choice([
        f"{n} {name} {kind}, {city}, {draw.choice(['IL', 'OH', 'TX'])} {_digits(draw, 5)}", f"{n} {name} {kind}, Apt {draw.randint(1, 40)}B, {city}", f"{n % 200 + 1} {name} {kind}, {city} {draw.choice(['BS1 4ST', 'M4 1HQ', 'SW1A 2AA'])}",
        f"{draw.choice(['Lindenstraße', 'Gartenweg', 'Bahnhofstr.'])} {n % 90 + 1}, {_digits(draw, 5)} {draw.choice(['Berlin', 'Köln'])}", f"{n % 90 + 1} rue {draw.choice(['de la Paix', 'Victor Hugo'])}, 7500{draw.randint(1, 9)} Paris",
        f"Calle {draw.choice(['Mayor', 'del Sol'])} {n % 90 + 1}, 280{draw.randint(10, 55)} Madrid", f"P.O. Box {n}, {city}, {draw.choice(['NV', 'OR'])} {_digits(draw, 5)}", f"{n} {name.lower()} {kind.lower()}",
    ])  # fmt: skip


GENERATORS: dict[str, Callable[[random.Random], str]] = {
    "person": person, "email": email, "phone": phone, "card": card, "iban": iban, "ssn": ssn, "national_id": national_id, "passport": passport, "ip": ip,
    "secret": secret, "url_token": url_token, "password": password, "birth_date": birth_date, "username": username, "address": address,
}  # fmt: skip


def rows(templates: dict[str, tuple[str, ...]], *, per_template: int, seed: int) -> Iterator[Row]:
    """Every template filled `per_template` times; `{kind}` and `{kind2}` are slots."""
    draw = random.Random(seed)
    for carriers in templates.values():
        for carrier in carriers:
            for _ in range(per_template):
                yield _filled(carrier, draw)


def _filled(carrier: str, draw: random.Random) -> Row:
    labels = []
    text = []
    for literal, slot, _, _ in string.Formatter().parse(carrier):
        text.append(literal)
        if slot:
            kind = slot.rstrip("2")
            value = GENERATORS[kind](draw)
            labels.append((kind, value))
            text.append(value)
    return Row("".join(text), tuple(labels))
