# ruff: noqa: E501 - a pattern is easier to read on one line
"""What street addresses are made of in the languages we know: words, postcodes, tokens.

`address_seeds.py` finds a street beside a number in the tokens, `addresses.py` grows it.
"""

import re
from dataclasses import dataclass

from feedback.pii.words import word_set

TOKEN = re.compile(
    r"\d+(?:[-/]\d+)?[A-Za-z]?(?!\w)|\d+(?:st|nd|rd|th)\b|[^\W_]+(?:['-][^\W_]+)*|\n|[^\w\s]"
)

TYPES = word_set(
    """
    street st road rd avenue ave lane ln drive dr court ct boulevard blvd way place pl square
    sq terrace ter close crescent cres highway hwy parkway pkwy circle cir trail trl row walk
    gardens gdns grove mews alley plaza route loop ridge hill heights turnpike pike quay wharf
    crossing bend run path point cove glen manor expressway freeway broadway esplanade parade
    causeway embankment rise vale view
    """
)
SURE_TYPES = word_set(
    """
    street road avenue ave lane ln drive boulevard blvd court terrace crescent highway hwy
    parkway rd st
    """
)
SUFFIXES = (
    "strasse", "straße", "str", "gasse", "allee", "gatan", "vägen", "straat", "laan", "katu", "vej",
    "veien", "gade", "weg", "platz", "plein", "gracht", "kade", "damm", "ufer", "tie",
)  # fmt: skip
PREFIXES = word_set(
    """
    rue avenue av boulevard bd place chemin allée allee impasse quai cours calle avenida avda
    plaza paseo carrera carretera camino via viale piazza corso vicolo largo rua travessa
    praça alameda estrada rodovia ul ulica al aleja plac os osiedle strada bulevardul utca
    ulitsa prospekt jalan jl улица ул проспект rambla ronda glorieta
    """
)
PARTICLES = word_set(
    """
    de la le les des du d l del della dei degli di da do dos das los las el y e und am an der
    den den von van zum zur in
    """
)
UNITS = word_set(
    """
    apt apartment suite ste unit flat floor fl room rm building bldg block lot piso bloque
    escalera interior depto etage app top stiege appartement bâtiment int house po box
    """
)
STATES = word_set(
    """
    al ak az ar ca co ct de fl ga hi id il in ia ks ky la me md ma mi mn ms mo mt ne nv nh nj
    nm ny nc nd oh ok or pa ri sc sd tn tx ut vt va wa wv wi wy dc on qc bc ab mb sk ns nb nl
    pe nsw vic qld act tas uk us usa
    """
)
NOT_STREET_WORDS = word_set(
    """
    the a an of to in on at for and or but is are was were it this that these those with from
    by as my your his her their our we you i he she they minutes minute hours hour days day
    miles mile km meters metres feet times years year months month weeks week percent people
    steps ways different other per one two three more lines points items units cups grams
    degrees km/h mph go take turn walk drive run
    """
)
COUNTRIES = word_set(
    """
    usa us uk america kingdom england scotland wales ireland canada australia zealand germany
    deutschland france spain españa italy italia portugal poland polska netherlands nederland
    belgium switzerland schweiz austria österreich sweden sverige norway norge denmark danmark
    finland suomi brazil brasil mexico méxico argentina chile colombia india japan china
    singapore korea
    """
)
LOWER_PLACE = re.compile(
    r"[a-z.'-]+(?: [a-z.'-]+){0,2},? (?:[a-z]{2},? )?(?:\d{5}(?:-\d{4})?|[a-z]{1,2}\d[a-z\d]? ?\d[a-z]{2})(?!\w)"
)
YEAR = re.compile(r"(?:1[5-9]|20)\d\d")
YEAR_BEFORE = word_set("in since during around circa")
POSTCODE = re.compile(
    r"(?:[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}|[A-Z]\d[A-Z][ -]?\d[A-Z]\d|\d{5}-\d{3,4}|\d{2}-\d{3}|\d{3} \d{2}|\d{4} ?[A-Z]{2}(?![a-z])|"
    r"(?:[A-Z]{1,2}-)?\d{4,6}|〒?\d{3}-\d{4})(?![A-Za-z0-9])",
    re.IGNORECASE,
)


POSTCODE_CUE = re.compile(
    r"\b(?:zip(?:[ _-]?code)?|post(?:al)?[ _-]?code|plz|postleitzahl|code postal|código postal|cap)\b[\"']?\s{0,2}(?:is|[:=]|ist|est|es)?\s{0,2}[\"']?"
    r"(?P<v>[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}|[A-Z]\d[A-Z][ -]?\d[A-Z]\d|\d{4,6}(?:-\d{3,4})?)(?![\w])",
    re.IGNORECASE,
)
BOX = re.compile(
    r"\b(?:p\.?\s?o\.?\s?box|post office box|postfach|apartado|casella postale|boîte postale|bp)\s*(?:no\.?\s*)?\d{1,7}",
    re.IGNORECASE,
)
HINT = re.compile(r"\d|corner|box", re.IGNORECASE)
CORNER = re.compile(
    r"\b(?:corner|intersection|junction) of (?:[A-Z0-9][\w'.]*\s?){1,4}(?:and|&) (?:[A-Z0-9][\w'.]*\s?){1,4}"
)
COMPASS = word_set("n s e w nw ne sw se north south east west")


@dataclass(frozen=True, slots=True)
class Token:
    text: str
    start: int
    end: int

    @property
    def lower(self) -> str:
        return self.text.lower().rstrip(".")

    @property
    def is_number(self) -> bool:
        return self.text[:1].isdigit()

    @property
    def is_capital(self) -> bool:
        return self.text[:1].isupper()


def tokenised(text: str) -> list[Token]:
    """Words, numbers, line ends and marks, with where they stand."""
    return [Token(match.group(), match.start(), match.end()) for match in TOKEN.finditer(text)]


_END = Token("", -1, -1)


def at(tokens: list[Token], index: int) -> Token:
    """The token at `index`, or one that is nothing beyond either end."""
    return tokens[index] if 0 <= index < len(tokens) else _END
