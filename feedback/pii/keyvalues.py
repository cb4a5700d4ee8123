# ruff: noqa: E501 - a rule is one row of a table
"""Secrets known by what stands before them: `password = ...`, Bearer, URL userinfo, plain words.

A value that is only a placeholder or an expression of a program (`os.environ[...]`,
`get_token()`) is left alone. The shapes of tokens themselves are in `secrets.py`.
"""

import re

from feedback.pii.rules import Kind, Rule
from feedback.pii.secrets import looks_random
from feedback.pii.words import word_set

_PLACEHOLDER_VALUE = re.compile(
    r"<.*|\$[({A-Z_].*|\$\d?|\*{3,}|[xX]{4,}|\.{3,}|%\(?\w*\)?s|\{\{.*|\{\w*\}?|\[.*|#.*|@\w+|"
    r"(?i:your\b.*|your[_-].*|my[_-](?:pass|secret|token|key).*|change[_-]?me|changeit|"
    r"redacted|placeholder|(?:the|a|an)[_-].*|insert.*|enter.*|todo|"
    r"none|null|nil|undefined|true|false|str|string|string\?|int|bytes|text|varchar.*|optional.*|"
    r"required.*|bool|boolean|number|object|self\..*|this\..*|process\.env.*|os\.(?:environ|getenv).*|"
    r"env\..*|config\..*|settings\..*|req\..*|request\..*|args\..*|params\..*|props\..*|input\b.*)"
)
_CALL = re.compile(r"[A-Za-z_][\w.]*(?:\(|\[)")
_DOTTED = re.compile(r"[a-z_]\w*(?:\.[a-z_]\w*)+", re.IGNORECASE)
_IDENTIFIER = re.compile(r"[A-Z]?[a-z]+(?:[A-Z][a-z]+)+|[a-z]+(?:_[a-z]+)+")
_ODD = re.compile(r"[^A-Za-z']")
_PLAIN_WORDS = word_set(
    """
    a about again all allowed already also always an and any are as at authentication back be
    because been before being blank both but by can cannot case change changed character
    characters compromised correct could default do does done each easy either empty encrypted
    enough every expired far field for forgotten from generated given good hard hashed have
    hidden how i if important in incorrect instead invalid is it its just kept key left less
    long longer lost made manager managers match may message missing more most must my needed
    never new no not now of old on once one only optional or our out over policy protected
    provided public really required reset safe same secret secure sent set shared short should
    simple so still stored strength strong strongly such taken that the their them then there
    these they this though to token too typically unique up used user usually valid very
    visible was weak well were what when where which while why will with without wrong yet you
    your authentication handling something anything everything nothing available accepted
    rejected different
    """
)


def is_secret_value(value: str) -> bool:
    """Whether what follows `password =` is a value and not a placeholder or a piece of program."""
    value = value.strip("\"'`,;")
    if len(value) < 3 or _PLACEHOLDER_VALUE.fullmatch(value):
        return False
    if _CALL.match(value) or _DOTTED.fullmatch(value) or _IDENTIFIER.fullmatch(value):
        return False
    return value.lower() not in _PLAIN_WORDS


def is_token_value(value: str) -> bool:
    """The same for `key =`, `token =`: also long or mixed enough not to be a word."""
    if not is_secret_value(value) or len(value) < 6:
        return False
    has_digit = any(character.isdigit() for character in value)
    return has_digit if len(value) < 20 else has_digit or bool(_ODD.search(value))


def is_spoken_password(value: str) -> bool:
    """Whether a word after "password is" is the password: odd somehow, or no common word."""
    if not is_secret_value(value):
        return False
    return bool(_ODD.search(value)) or len(value) >= 5


def _rule(name: str, pattern: str, check: object, match: tuple[str, str], *spares: str,
          hints: tuple[str, ...] = (), flags: int = re.IGNORECASE) -> Rule:  # fmt: skip
    return Rule(
        name=name,
        kind=Kind.SECRET,
        pattern=re.compile(pattern, flags),
        hints=hints,
        check=check if callable(check) else None,
        matches=(match,),
        spares=spares,
    )


_SET = r"[\"'`\]]{0,2}[ \t]{0,4}(?:=>|->|:=|={1,2}|:)[ \t]{0,4}"
_QUOTED = r"(?:[rbf]?(?:\\?[\"'`])(?P<v>[^\"'`\n\\]{3,300})\\?[\"'`])"
_BARE = r"(?P<v>[^\s\"'`,;<>(){}\[\]|&]{3,300})"
_PASS = (
    r"(?:(?<![a-z])(?:pass|pin(?:_?code)?|pw)|(?-i:(?<=[a-z])P(?:ass|w|in))|"
    r"(?:db|user|admin|root|my|ftp|smtp|mysql|pg|login|sudo|wifi|new|old)pass|"
    r"pass(?:word|wd|phrase|code|wort)|passw|pwd|contrase(?:ñ|n)a|kennwort|senha|mot_?de_?passe|wachtwoord)"
)
_KEYWORD = (
    r"(?:secret|token|api[_-]?key|apikey|(?:access|private|secret|account|encryption|signing|master|auth|license|"
    r"shared|client|subscription|storage|service|ssh|deploy|admin|stripe|aws|openai)[_-]?key(?:[_-]?id)?|"
    r"auth(?!or)|credentials?|(?<![a-z])sig(?:nature)?(?![a-z])|sess(?:ion)?(?:[_-]?id)?|sid|cookie|jwt|salt|connectionstring)"
)
_IS = r"(?:\s+(?:is|was|are|to|be|=|es|ist|est|é|e'|lautet|now)){1,3}\s*:?\s*|\s*[:=]\s*|\s+(?=[\"'`])"

KEY_VALUE_RULES: tuple[Rule, ...] = (
    _rule("password-quoted", _PASS + r"(?:[_.-]\w{1,24})?" + _SET + _QUOTED,
          is_secret_value, ('dbPass = "winter snow"', "winter snow"), 'password = "<your password>"',
          'compass: "north"', hints=("pass", "pwd", "kennwort", "senha", "wachtwoord", "contrase", "pin")),
    _rule("password-bare", _PASS + r"(?:[_.-]\w{1,24})?" + _SET + _BARE,
          is_secret_value, ("DB_PASSWORD=tr0ub4dor", "tr0ub4dor"), "password = os.environ['PW']",
          "password: str", "password = getpass.getpass()", "mapping: one",
          hints=("pass", "pwd", "kennwort", "senha", "wachtwoord", "contrase", "pin")),
    _rule("token-quoted", _KEYWORD + r"[\w.-]{0,30}" + _SET + _QUOTED, is_token_value,
          ('"client_secret": "k3kQ-19fja"', "k3kQ-19fja"), 'token = "word"', 'author: "A. Smith 1999"',
          hints=("secret", "token", "key", "auth", "credential", "sig", "sess", "sid", "cookie", "jwt", "salt")),
    _rule("token-bare", _KEYWORD + r"[\w.-]{0,30}" + _SET + _BARE, is_token_value,
          ("API_KEY=9f3kd83jd9", "9f3kd83jd9"), "token = tokens[12]", "the secret: 3 eggs", "signal: 12345678",
          hints=("secret", "token", "key", "auth", "credential", "sig", "sess", "sid", "cookie", "jwt", "salt")),
    _rule("hex-after-cue", r"(?:secret|token|key|credential|session|auth|license|apikey)\b[^\n]{0,40}?(?<![\w-])"
          r"(?P<v>[0-9a-f]{32,128}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?![\w-])", None,
          ("the api key, I think, is " + "0a1b2c3d" * 4, "0a1b2c3d" * 4), "commit " + "0a1b2c3d" * 5,
          hints=("secret", "token", "key", "credential", "session", "auth", "license")),
    _rule("bearer", r"\b(?:bearer|basic|token|apikey)\s+(?P<v>(?=[A-Za-z0-9._~+/=-]{0,200}[0-9=])[A-Za-z0-9._~+/=-]{12,2000})",
          lambda value: sum(c.isdigit() for c in value) >= 2 or value.endswith("="),
          ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA=="), "basic understanding of things",
          hints=("bearer", "basic", "token", "apikey")),
    _rule("url-userinfo", r"[a-z][a-z0-9+.-]{1,20}://(?P<v>[^\s/\"'<>:]{1,200}(?::[^\s\"'<>]{0,200})?)@(?=[\w\[.-])", None,
          ("postgres://bob:p@ss/w@db.local/x", "bob:p@ss/w"), "https://example.org/@someone",
          hints=("://",)),
    _rule("query", r"[?&;](?:[\w-]{0,24}(?:token|passw(?:or)?d|pwd|secret|signature|credential|session|api_?key)[\w-]{0,12}|"
          r"pass|auth|key|sig|sid|jwt|code|access_key|x-amz-security-token|se?ssid|otp|invite|reset|ticket)="
          r"(?P<v>[^\s&#\"'<>`)\]]{4,2000})", is_secret_value,
          ("https://a.b/c?x=1&access_token=abcd1234", "abcd1234"), "https://a.b/c?page=1000&sort=name", hints=("=",)),
    _rule("path-token", r"https?://[^\s\"'<>?]{3,120}/(?:reset|verify|confirm|invite|activate|token|unsubscribe|magic|share|s|d)/"
          r"(?P<v>[A-Za-z0-9_~.=-]{12,300})", lambda value: any(c.isdigit() for c in value),
          ("https://a.example/reset/8f7d6a5c4b3e2d1c", "8f7d6a5c4b3e2d1c"), "https://a.example/share/photographs-of-us",
          hints=("://",)),
    _rule("command-line", r"(?:\bmysql\w{0,8}\b[^\n]{0,80}?\s-p|\bsshpass\s+-p\s*|\bredis-cli\b[^\n]{0,60}?\s-a\s+|"
          r"--(?:\w{1,20}-)?(?:password|passwd|token|secret|api-key|pass)(?:=|\s+)|\bnet use\b[^\n]{0,60}?\s/user:\S+\s+|"
          r"\b-P\s|\b(?:curl|wget|http)\b[^\n]{0,120}?\s(?:-u|--user|-a)[ =]?[\"']?[\w.@-]{1,60}:)[\"']?(?P<v>[^\s\"']{3,200})",
          is_secret_value, ("curl -u ann:hunter2 https://a.b", "hunter2"), "tool --password $PASS",
          hints=("mysql", "sshpass", "redis-cli", "--", "curl", "wget", "http", "net use")),
    _rule("sql-and-calls", r"(?:identified\s+by|identified\s+with\s+\w+\s+by|with\s+(?:encrypted\s+)?password|"
          r"\blogin\(\s*[^,()\n]{1,60},|authenticate\(\s*[^,()\n]{1,60},|\.auth\s*=?\s*\(\s*[^,()\n]{1,60},|auth=\(\s*[^,()\n]{1,60},)\s*"
          r"[\"'](?P<v>[^\"'\n]{3,200})[\"']", is_secret_value,
          ("CREATE USER x IDENTIFIED BY 'blue fish'", "blue fish"), "login(user, password)",
          hints=("identified", "password", "login(", "authenticate(", "auth")),
    _rule("netrc", r"\b(?:login|user)\s+\S{2,60}\s+password\s+(?P<v>\S{3,200})", is_secret_value,
          ("machine a login ann password s3same", "s3same"), "login page password field", hints=("password",)),
    _rule("spoken", r"\b(?:pass(?:word|phrase|code|wd|wort)?|pw|pwd|pin(?: code| number)?|contraseña|senha|mot de passe|wachtwoord|kennwort|parola)"
          r"(?:\s+(?:for|to|of|on|at|del?|für|pour)\s+[\w' .-]{1,40}?)?(?:" + _IS + r")[\"'`“(]?(?P<v>[^\s\"'`<>]{3,64}?)(?=[.,;:!?)\"'`]*(?:\s|$))",
          is_spoken_password, ("my wifi password for the cabin is hunter2!", "hunter2"),
          "the password is required", "a password was not set", hints=("pass", "pw", "pin", "senha", "contrase", "wachtwoord", "kennwort")),
    _rule("password-then-odd", r"\b(?:password|passphrase|passcode|passwort|pwd|pw|pin)\s+[\"'`(]?(?P<v>[^\s\"'`<>()]{4,64}?)(?=[.,;:!?)\"'`]*(?:\s|$))",
          lambda value: looks_typed(value), ("and password tig!er7, then", "tig!er7"), "password rules", "the pin 12mm and password_field",
          hints=("pass", "pwd", "pw", "pin")),
    _rule("changed", r"\b(?:password|passcode|pin|pwd|passphrase)\b[^\n.]{0,40}?\bfrom\s+[\"'`]?(?P<v>\S{3,64}?[\"'`]?\s+to\s+[\"'`]?[^\s\"'`]{3,64}?)"
          r"(?=[.,;!?\"'`]*(?:\s|$))", lambda value: bool(_ODD.search(value.replace(" ", ""))),
          ("changed my password from Blue42 to Green43.", "Blue42 to Green43"), "password moved from here to there",
          hints=("password", "passcode", "pin", "pwd", "passphrase")),
    _rule("credentials", r"\b(?:credentials?|creds|login|log in|sign in)\b[^\n/|:]{0,30}?[\s:(]\s*(?P<v>[\w.@+-]{2,40}\s*[/|:]\s*[^\s/|\"'`]{4,60}?)(?=[.,;)]*(?:\s|$))",
          lambda value: looks_like_pair(value), ("Credentials: admin / Zx81!kk", "admin / Zx81!kk"),
          "login and/or registration", hints=("cred", "log", "sign in")),
    _rule("pair-then-credentials", r"(?<![\w/])(?P<v>[\w.@+-]{2,40}\s*[/|:]\s*[^\s/|\"'`]{4,60})\s+(?:credentials?|creds|login)\b",
          lambda value: looks_like_pair(value), ("use admin / Zx81!kk credentials", "admin / Zx81!kk"),
          "a client/server login", hints=("cred", "login")),
)  # fmt: skip


def looks_typed(value: str) -> bool:
    """A password by its looks alone: five characters, with digits or marks among the letters."""
    has_letter = any(character.isalpha() for character in value)
    has_digit = any(character.isdigit() for character in value)
    has_mark = any(character in "!@#$%^&*+=?~" for character in value)
    return len(value) >= 5 and is_secret_value(value) and has_letter and (has_digit or has_mark)


def looks_like_pair(value: str) -> bool:
    """Whether the right side of `user / password` is odd enough to be a password."""
    right = re.split(r"[/|:]", value, maxsplit=1)[-1].strip()
    digit = any(character.isdigit() for character in right)
    mark = any(character in "!@#$%^&*" for character in right)
    return looks_random(right) or (digit and any(c.isalpha() for c in right)) or mark
