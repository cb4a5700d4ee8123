"""Columns of delimited text whose header says what they hold: `id,name,email` and the rows below.

Only simple lines are read (no delimiter inside quotes); a row with another number of fields ends
the table.
"""

import re
from collections.abc import Iterator

from feedback.pii.rules import Kind, Span
from feedback.pii.words import word_set

_COLUMNS: dict[Kind, frozenset[str]] = {
    Kind.PERSON: word_set(
        """
    name first_name last_name full_name firstname lastname fullname surname given_name
    family_name customer customer_name patient employee employee_name contact_name nom nombre
    vorname nachname
    """
    ),
    Kind.SECRET: word_set(
        """
    password passwd pwd pass secret token api_key apikey pin
    """
    ),
    Kind.USERNAME: word_set(
        """
    username user_name login handle userid user_id nickname
    """
    ),
    Kind.BIRTH_DATE: word_set(
        """
    dob birth_date birthdate date_of_birth birthday
    """
    ),
    Kind.ADDRESS: word_set(
        """
    address street street_address home_address postcode zip
    """
    ),
    Kind.PHONE: word_set(
        """
    phone phone_number mobile tel telephone cell fax
    """
    ),
    Kind.NATIONAL_ID: word_set(
        """
    ssn national_id nif dni tax_id driver_license
    """
    ),
}
_KIND_OF = {column: kind for kind, columns in _COLUMNS.items() for column in columns}
_DELIMITERS = (",", ";", "\t", "|")
_EMPTY = frozenset({"", "null", "none", "nan", "n/a", "-", "---"})


def columns(text: str) -> Iterator[Span]:
    """Values of the columns whose header names something personal."""
    if "\n" not in text:
        return
    header: dict[int, Kind] = {}
    delimiter, width = ",", 0
    for match in re.finditer(r"[^\n]+", text):
        line = match.group()
        if header and line.count(delimiter) == width:
            yield from _values(line, match.start(), delimiter, header)
            continue
        delimiter = max(_DELIMITERS, key=line.count)
        width = line.count(delimiter)
        header = _header(line, delimiter) if width else {}


def _header(line: str, delimiter: str) -> dict[int, Kind]:
    """Kind by index of the personal columns; empty unless every field may be a column's name."""
    fields = [
        re.sub(r"[\s-]+", "_", field.strip(" \"'\t`").lower()) for field in line.split(delimiter)
    ]
    if not all(re.fullmatch(r"\w{0,30}", field) for field in fields):
        return {}
    return {index: _KIND_OF[field] for index, field in enumerate(fields) if field in _KIND_OF}


def _values(line: str, offset: int, delimiter: str, header: dict[int, Kind]) -> Iterator[Span]:
    position = offset
    for index, field in enumerate(line.split(delimiter)):
        value = field.strip(" \"'\t`")
        start = position + field.find(value)
        if index in header and value.lower() not in _EMPTY and any(c.isalnum() for c in value):
            yield Span(start, start + len(value), header[index])
        position += len(field) + len(delimiter)
