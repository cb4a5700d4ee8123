# ruff: noqa: E501 - a rule is one row of a table
"""Numbers that a state, a bank or a card scheme gave to a person, known by shape and checksum.

Checksums are python-stdnum's. Numbers whose shape is common in prose are only taken after a cue:
those rows are in `cues.py`.
"""

import re
from collections.abc import Callable, Iterator

from stdnum import iban, luhn, verhoeff
from stdnum.br import cpf as br_cpf
from stdnum.ch import ssn as ch_ssn
from stdnum.cn import ric as cn_ric
from stdnum.de import idnr as de_idnr
from stdnum.es import dni as es_dni
from stdnum.es import nie as es_nie
from stdnum.fi import hetu as fi_hetu
from stdnum.fr import nir as fr_nir
from stdnum.it import codicefiscale as it_cf
from stdnum.pl import pesel as pl_pesel
from stdnum.ro import cnp as ro_cnp
from stdnum.tr import tckimlik as tr_id
from stdnum.za import idnr as za_idnr

from feedback.pii.rules import Kind, Rule, Span, digits_of

_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ \t\-\n]?[A-Za-z0-9]){8,30}")
_IBAN_CUE = re.compile(r"iban\W{0,3}(?:\w+\W{1,3}){0,3}$", re.IGNORECASE)


def ibans(text: str) -> Iterator[Span]:
    """IBANs, trimmed from the right until the checksum holds; kept whole after the word IBAN."""
    for match in _IBAN.finditer(text):
        end = _valid_iban_end(match.group())
        if end:
            yield Span(match.start(), match.start() + end, Kind.IBAN)
        elif _IBAN_CUE.search(text, max(0, match.start() - 30), match.start()):
            yield Span(match.start(), match.end(), Kind.IBAN)


def _valid_iban_end(value: str) -> int:
    """Length of the longest beginning of `value` that is a valid IBAN; 0 for none."""
    for end in range(len(value), 14, -1):
        if value[end - 1].isalnum() and iban.is_valid(re.sub(r"[^A-Za-z0-9]", "", value[:end])):
            return end
    return 0


_GROUPED = re.compile(
    r"(?<![A-Za-z0-9])\d{4,19}(?:[ \t.-]{0,2}\n?[ \t]?\d{3,19}){0,40}(?![A-Za-z0-9])"
)
_GROUP = re.compile(r"\d+")


def cards(text: str) -> Iterator[Span]:
    """Card numbers beside other numbers: any neighbouring groups of digits that make one."""
    for run in _GROUPED.finditer(text):
        groups = [match.span() for match in _GROUP.finditer(text, run.start(), run.end())]
        first = 0
        while first < len(groups):
            last = _last_of_card(text, groups, first)
            if last is None:
                first += 1
                continue
            yield Span(groups[first][0], groups[last][1], Kind.CARD)
            first = last + 1


def _last_of_card(text: str, groups: list[tuple[int, int]], first: int) -> int | None:
    """The last of at most five groups from `first` on that together are a scheme's card."""
    digits = ""
    found = None
    for last in range(first, min(first + 5, len(groups))):
        digits += text[slice(*groups[last])]
        if len(digits) in (13, 14, 15, 16, 19) and digits[0] in "23456" and is_card(digits):
            found = last
    return found


def is_card(value: str) -> bool:
    """12 to 19 digits with a Luhn checksum, and not one digit repeated."""
    digits = digits_of(value)
    return 12 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn.is_valid(digits)


def _valid(check: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda value: check(re.sub(r"[\s.]", "", value))


def _row(name: str, pattern: str, check: Callable[[str], bool] | None, match: tuple[str, str],
         spare: str, kind: Kind = Kind.NATIONAL_ID) -> Rule:  # fmt: skip
    return Rule(
        name=name,
        kind=kind,
        pattern=re.compile(r"(?<![A-Za-z0-9.+-])(?:" + pattern + r")(?![A-Za-z0-9]|-\d)"),
        check=check,
        matches=(match,),
        spares=(spare,),
    )


_YYMMDD = r"\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
_DDMMYY = r"(?:0[1-9]|[12]\d|3[01])(?:0[1-9]|1[0-2])\d\d"

ID_RULES: tuple[Rule, ...] = (
    _row("card", r"\d(?:[ \t.-]{0,2}\n?\d){11,18}", is_card,
         ("pay 4111 1111 1111 1111 now", "4111 1111 1111 1111"), "order 4111 1111 1111 1112", Kind.CARD),
    _row("us-ssn", r"(?!000|666)\d{3}[-. ]\d{2}[-. ]\d{4}", None,
         ("it is 219-09-9999.", "219-09-9999"), "on 2024-01-15 at 219-0999"),
    _row("es-dni", r"\d{8}-?[A-Za-z]", _valid(lambda v: es_dni.is_valid(v)), ("soy 54362315K", "54362315K"), "lot 54362315A"),
    _row("es-nie", r"[XYZxyz]-?\d{7}-?[A-Za-z]", es_nie.is_valid, ("con X2482300W", "X2482300W"), "part X2482300A"),
    _row("it-codice-fiscale", r"(?i:[A-Z]{6}\d\d[A-Z]\d\d[A-Z]\d{3}[A-Z])", it_cf.is_valid,
         ("cf RCCMNL83S18D969H", "RCCMNL83S18D969H"), "RCCMNL83S18D969A"),
    _row("br-cpf", r"\d{3}\.\d{3}\.\d{3}-\d\d", None, ("é 390.533.447-05", "390.533.447-05"), "390.533.447"),
    _row("br-cpf-bare", r"\d{9}-\d\d", br_cpf.is_valid, ("é 390533447-05", "390533447-05"), "390533447-06"),
    _row("br-cnpj", r"\d\d\.\d{3}\.\d{3}/\d{4}-\d\d", None, ("é 16.727.230/0001-97", "16.727.230/0001-97"), "16.727.230"),
    _row("fr-nir", r"[12378] ?\d\d ?(?:0[1-9]|1[0-2]|[2-9]\d) ?\d[\dABab] ?\d{3} ?\d{3}(?: ?\d\d)", _valid(fr_nir.is_valid),
         ("sécu 2 95 10 99 126 111 93", "2 95 10 99 126 111 93"), "2 95 10 99 126 111 94"),
    _row("uk-nino", r"(?i:[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?-?\d\d[ -]?\d\d[ -]?\d\d[ -]?[A-D])", None,
         ("NI AB 12 34 56 C", "AB 12 34 56 C"), "room AB 12 34 Q"),
    _row("in-pan", r"[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z]", None, ("pan ACUPA7085R", "ACUPA7085R"), "ACUXA7085R"),
    _row("in-aadhaar", r"[2-9]\d{3}[ -]\d{4}[ -]\d{4}", lambda v: verhoeff.is_valid(digits_of(v)),
         ("it is 2341 2341 2346", "2341 2341 2346"), "2341 2341 2347"),
    _row("cl-rut", r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]", None, ("rut 12.531.909-2", "12.531.909-2"), "12.531.909"),
    _row("mx-curp", r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[A-Z\d]\d", None, ("es BOXW310820HNERXN09", "BOXW310820HNERXN09"), "BOXW310820"),
    _row("mx-rfc", r"[A-ZÑ&]{4}\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])[A-Z\d]{3}", None,
         ("rfc GODE561231GR8", "GODE561231GR8"), "GODE561331GR8"),
    _row("pl-pesel", r"\d{2}[0-389]\d[0-3]\d{6}", pl_pesel.is_valid, ("to 44051401359", "44051401359"), "44051401358"),
    _row("se-personnummer", r"(?:19|20)?" + _YYMMDD + r"[-+]\d{4}", lambda v: luhn.is_valid(digits_of(v)[-10:]),
         ("är 880320-0016", "880320-0016"), "880320-0017"),
    _row("fi-hetu", _DDMMYY + r"[-+A-FU-Y]\d{3}[0-9A-Y]", fi_hetu.is_valid, ("on 131052-308T", "131052-308T"), "131052-308U"),
    _row("dk-cpr", _DDMMYY + r"-\d{4}", None, ("er 211062-5629", "211062-5629"), "421062-5629"),
    _row("be-nn", r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d", None, ("is 85.07.30-033.28", "85.07.30-033.28"), "85.07.30"),
    _row("de-idnr", r"\d\d ?\d{3} ?\d{3} ?\d{3}", _valid(de_idnr.is_valid), ("ist 36 574 261 809", "36 574 261 809"), "36 574 261 890"),
    _row("ch-ahv", r"756\.?\d{4}\.?\d{4}\.?\d\d", ch_ssn.is_valid, ("AHV 756.9217.0769.85", "756.9217.0769.85"), "756.9217.0769.84"),
    _row("cn-ric", r"[1-9]\d{5}(?:19|20)\d{9}[\dXx]", cn_ric.is_valid, ("是 360426199101010071", "360426199101010071"), "360426199101010072"),
    _row("kr-rrn", _YYMMDD + r"-[1-8]\d{6}", None, ("no 971013-1019902", "971013-1019902"), "971313-1019902"),
    _row("sg-nric", r"[STFGMstfgm]\d{7}[A-Za-z]", lambda v: _sg_nric(v.upper()), ("is S1234567D", "S1234567D"), "S1234567A"),
    _row("hk-id", r"[A-Z]{1,2}\d{6} ?\([\dA]\)", None, ("id G123456(A)", "G123456(A)"), "G123456"),
    _row("tw-id", r"[A-Z][12]\d{8}", lambda v: _tw_id(v), ("id A123456789", "A123456789"), "A123456788"),
    _row("za-id", _YYMMDD + r"\d{4}[012]\d\d", za_idnr.is_valid, ("id 7503305044089", "7503305044089"), "7503305044088"),
    _row("ro-cnp", r"[1-8]" + _YYMMDD + r"\d{6}", ro_cnp.is_valid, ("cnp 1630615123457", "1630615123457"), "1630615123458"),
    _row("tr-id", r"[1-9]\d{10}", tr_id.is_valid, ("no 17291716060", "17291716060"), "17291716050"),
    _row("ca-sin", r"[1-79]\d\d[- ]\d{3}[- ]\d{3}", lambda v: luhn.is_valid(digits_of(v)), ("sin 123-456-782", "123-456-782"), "123-456-783"),
    _row("passport-mrz", r"[PIAC][A-Z<][A-Z]{3}[A-Z<]{3,36}[A-Z0-9<]{3,}|[A-Z0-9<]{9}[0-9<][A-Z<]{3}\d{6}[\d<][MFX<]\d{6}[\d<][A-Z0-9<]{2,18}",
         lambda v: "<<" in v or len(v) >= 28, ("L898902C36UTO7408122F1204159ZE184226B<<<<<10", "L898902C36UTO7408122F1204159ZE184226B<<<<<10"),
         "ALLCAPSWORDS AND MORE", Kind.PASSPORT),
)  # fmt: skip


def _sg_nric(value: str) -> bool:
    """Singapore's weighted sum; its letters differ for citizens and foreigners."""
    total = sum(w * int(d) for w, d in zip((2, 7, 6, 5, 4, 3, 2), value[1:8], strict=True))
    total += 4 if value[0] in "TG" else 3 if value[0] == "M" else 0
    letters = {"S": "JZIHGFEDCBA", "F": "XWUTRQPNMLK", "M": "KLJNPQRTUWX"}
    row = letters[{"T": "S", "G": "F"}.get(value[0], value[0])]
    return row[total % 11] == value[8]


def _tw_id(value: str) -> bool:
    """Taiwan's weighted sum over the letter's number and nine digits."""
    number = "ABCDEFGHJKLMNPQRSTUVXYWZIO".index(value[0]) + 10
    digits = [number // 10, number % 10, *map(int, value[1:])]
    weights = (1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1)
    return sum(w * d for w, d in zip(weights, digits, strict=True)) % 10 == 0
