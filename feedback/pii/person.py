# ruff: noqa: E501 - a rule is one row of a table
"""Birth dates and user names, by cue and by shape.

A full date of 1915 to 2014 without a cue counts only beside another personal item, which `scan.py`
decides with `DATES`. Names of people are in `names.py`.
"""

import re

from feedback.pii.rules import Kind, Rule
from feedback.pii.words import word_set

_MONTH = (
    r"(?:jan(?:uary|vier|uar|eiro)?|feb(?:ruary|ruar|rero)?|févr?(?:ier)?|mar(?:ch|s|zo|ço)?|märz|apr(?:il|ile)?|avr(?:il)?|abr(?:il)?|may|mai|maj|mayo|maggio|"
    r"june?|juni|juin|junio|giugno|july?|juli|juillet|julio|luglio|aug(?:ust)?|août|agosto|sep(?:t|tember|tembre)?|septiembre|settembre|"
    r"oct(?:ober|obre)?|okt(?:ober)?|octubre|ottobre|nov(?:ember|embre|iembre)?|dec(?:ember)?|déc(?:embre)?|dez(?:ember)?|dic(?:iembre|embre)?)\.?"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th|er|\.|º)?"
_NUMERIC = r"\d{4}\s?[-/.]\s?\d{1,2}\s?[-/.]\s?\d{1,2}|\d{1,2}\s?[-/. ]\s?\d{1,2}\s?[-/. ]\s?(?:\d{4}|\d\d)"
_WORDED = (
    rf"{_MONTH}\s+{_DAY},?\s+(?:of\s+)?\d{{4}}|{_DAY}[\s-]+(?:of\s+|de\s+)?{_MONTH}[,\s-]+(?:de\s+|del\s+)?\d{{2,4}}|"
    rf"\d{{4}}[\s,-]+{_MONTH}[\s-]+{_DAY}|\d{{4}}年\d{{1,2}}月\d{{1,2}}日"
)
_DATE = rf"(?:{_WORDED}|{_NUMERIC})(?![\w-])"
_BORN = (
    r"(?:\bborn|\bd\.?\s?o\.?\s?b\b\.?|birth[\s_-]?(?:date|day)s?|date[\s_-]of[\s_-]birth|b[\s_-]?day|\bgeboren|geburts(?:datum|tag)|\bgeb\.|\bnée?\b|naissance|nacid[oa]|"
    r"nacimiento|nascid[oa]|nascimento|\bnat[oa] il|data di nascita|geboortedatum|född|født|urodzon[yae]|data urodzenia|рожд|родил|出生|生年月日|生日|\bb\.(?=\s?\d|\s(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)))"
)
_BETWEEN = r"(?:[\s\"':=(,>.-]|\b(?:on|in|the|is|was|of|at|le|am|el|il|em|den|dnia|at|a|her|his|my|their|and|as|[A-Za-z]{2,12}(?:'s)?)\b){0,8}?"

DATES = re.compile(
    rf"(?<![\w/.-])(?:{_WORDED}|(?:19\d\d|20[01]\d)[-/.]\d{{1,2}}[-/.]\d{{1,2}}|"
    rf"\d{{1,2}}[-/.]\d{{1,2}}[-/.](?:19\d\d|20[01]\d))(?![\w-]|\.\d)",
    re.IGNORECASE,
)
_YEAR = re.compile(r"(?:19\d\d|20[01]\d)")


def is_birth_year(value: str) -> bool:
    """Whether the date's year is one in which a living person may have been born."""
    year = _YEAR.search(value)
    return bool(year) and 1915 <= int(year.group()) <= 2014 if year else False


_COMMON_ACCOUNTS = word_set(
    """
    name names root admin administrator user username users password id email login the a an
    your you is and or not none null true false string str test guest me my public default
    shared ubuntu ec2-user runner app www-data home field input value required unique must
    should can will with for from in on at to of this that it as by enter here anonymous
    unknown everyone owner account page form button screen people person handle validation
    interface experience input story stories data details info session manager management
    model class object type who that which has was node postgres mysql git jenkins vagrant pi
    debian centos opt usr var mnt media foo bar baz
    """
)


def is_username(value: str) -> bool:
    """Not a word that stands for any account, and not an expression of a program."""
    value = value.strip(".,;:'\"`")
    return len(value) >= 2 and value.lower() not in _COMMON_ACCOUNTS and not value.isdigit()


def _is_handle(value: str) -> bool:
    """A handle without a cue: a digit or underscore in it, and no word of a language's syntax."""
    return (
        is_username(value)
        and bool(re.search(r"[a-z].*[\d_]", value, re.IGNORECASE))
        and "." not in value
    )


def _user(name: str, pattern: str, match: tuple[str, str], *spares: str, check: object = is_username,
          hints: tuple[str, ...] = (), cue: str = "") -> Rule:  # fmt: skip
    return Rule(
        name=name,
        kind=Kind.USERNAME,
        pattern=re.compile(pattern, re.IGNORECASE),
        hints=hints,
        cue=re.compile(cue, re.IGNORECASE) if cue else None,
        check=check if callable(check) else None,
        matches=(match,),
        spares=spares,
    )


_NAME = r"(?P<v>[^\W_][\w.-]{1,38}[^\W])"
_END = r"(?![\w@(\[])"

PERSON_RULES: tuple[Rule, ...] = (
    Rule(name="birth-date", kind=Kind.BIRTH_DATE,
         pattern=re.compile(_BORN + _BETWEEN + rf"(?P<v>{_DATE}|(?<=\D)(?:19|20)\d{{6}}(?!\d)|\d{{1,2}}\.?\s+(?:de\s+|of\s+)?[^\W\d]{{3,10}}\.?,?\s+(?:de\s+|del\s+)?(?:19|20)\d\d)", re.IGNORECASE),
         hints=("born", "b", "geb", "n", "рож", "род", "出生", "生", "ur", "f"),
         matches=(("She was born on 3 March 1984.", "3 March 1984"), ("dob=1984-03-02", "1984-03-02"), ("né le 12 mars 1984", "12 mars 1984"), ("(b. March 3, 1984)", "March 3, 1984")),
         spares=("the meeting of 3 March 2024", "born in 1879")),
    Rule(name="date-then-born", kind=Kind.BIRTH_DATE,
         pattern=re.compile(rf"(?<![\w/.-])(?P<v>{_DATE})\s?[\w\s,()]{{0,16}}\b(?:birthday|birthdate|date of birth|dob|was born)\b", re.IGNORECASE),
         hints=("birth", "dob", "born"), matches=(("03/02/1984 is my birthday", "03/02/1984"),), spares=("on 03/02/1984 it rained; a birthday cake",)),
    _user("user-cue", r"\b(?:user[\s_-]?(?:name|id)?|login(?:[\s_-]?(?:name|id))?|handle|nick(?:name)?|screen[\s_-]?name|account[\s_-]?name|gamer[\s_-]?tag|"
          r"discord|telegram|instagram|insta|twitter|snapchat|tiktok|skype|github|steam|reddit|psn|xbox|benutzer(?:name)?|usuario|utilisateur|gebruiker|nutzername)"
          r"(?:\s(?:name|id|handle|account|user|tag|(?:on|for|at) (?:the |my )?\w{2,12}))?[\"'`]?\s{0,3}(?:is\s+now|is|was|to|ist|es|est|\s+as)\s{0,3}[\"'`@(]{0,2}" + _NAME + _END,
          ("my username is quietfox", "quietfox"), "the user is interested", "the user is a fox",
          check=lambda value: is_user_value(value),
          hints=("user", "login", "handle", "nick", "name", "tag", "discord", "telegram", "insta", "twitter", "snap", "tiktok", "skype", "github", "steam", "reddit", "psn", "xbox", "usuario", "nutzer", "gebruiker", "utilisateur")),
    _user("user-set", r"\b(?:user[\s_-]?(?:name|id)?|login(?:[\s_-]?(?:name|id))?|handle|nick(?:name)?|screen[\s_-]?name|account[\s_-]?name|gamer[\s_-]?tag|"
          r"discord|telegram|instagram|insta|twitter|snapchat|tiktok|skype|github|steam|reddit|psn|xbox|benutzer(?:name)?|usuario|utilisateur|gebruiker|nutzername)"
          r"(?:\s(?:name|id|handle|account|user|tag|(?:on|for|at) (?:the |my )?\w{2,12}))?[\"'`]?\s{0,3}(?:=>|->|:=|={1,2}|:)\s{0,3}[\"'`@(]{0,2}" + _NAME + _END,
          ("nickname = starling", "starling"), "username: string(20)", "user = User(1)",

          hints=("user", "login", "handle", "nick", "name", "tag", "discord", "telegram", "insta", "twitter", "snap", "tiktok", "skype", "github", "steam", "reddit", "psn", "xbox", "usuario", "nutzer", "gebruiker", "utilisateur")),
    _user("user-did", r"\buser\s[\"'`]?" + _NAME + r"[\"'`]?\s(?:logged|signed|connected|disconnected|failed|authenticated|from|has (?:logged|failed)|created|deleted|posted|joined|requested)\b",
          ("User quietfox logged in", "quietfox"), "the user data from here", "a user who has logged in", check=lambda value: is_user_value(value), hints=("user ",)),
    _user("sshd", r"\b(?:failed|accepted)\s(?:password|publickey|none|keyboard-interactive\S{0,8})\sfor\s(?:invalid\suser\s)?(?P<v>[\w.-]{2,38})\sfrom\b",
          ("Failed password for invalid user quietfox from 10.0.0.4", "quietfox"), "Failed password for root from 10.0.0.4", hints=(" for ",)),
    _user("logged-in-as", r"\b(?:log(?:ged)?[\s-]?in|sign(?:ed)? in|known|connect(?:ed)?|authenticated|registered|posting|play(?:ing)?|add me|find me|follow(?: me)?|dm|ping)\s+(?:on\s\w{2,12}\s+)?"
          r"(?:as|at|under|@)\s*[\"'`@]?" + _NAME + _END, ("logged in as fox_77", "fox_77"), "logged in as a user", "known as photosynthesis",
          check=lambda value: _is_odd(value), hints=("as", "at", "under", "@")),
    _user("mention", r"(?<![\w@/.])(?:(?<=[\w:,.!?'\")] )|(?<=\()|(?=@[\w.-]+[ ,:!?]\s?\w))@(?P<v>[A-Za-z0-9_][\w.-]{2,37}\w)(?![\w@/(])", ("thanks @quiet_fox7", "quiet_fox7"), "@app.route and @media and @property",
          check=_is_handle, hints=("@",)),
    _user("mention-cued", r"(?<![\w@/.])(?:(?<=[\w:,.!?'\")] )|(?<=\()|(?=@[\w.-]+[ ,:!?]\s?\w))@(?P<v>[A-Za-z0-9_][\w.]{1,37}\w)(?![\w@(])", ("follow me at @quietfox", "quietfox"), "use @property here",
          hints=("@",), cue=r"follow|twitter|insta|telegram|discord|tiktok|handle|tweet|\bdm\b|\bping\b|snap|mastodon|account|\bby\b|thread|tag(?:ged)?\b|cc\b|assigned"),
    _user("mention-of-a-network", r"(?<![\w@/.])@(?P<v>[A-Za-z0-9_][\w.]{1,37}\w)(?=\s(?:on|via|at)\s(?:twitter|x\b|insta|telegram|discord|tik|mastodon|threads|bluesky|github|reddit|slack))",
          ("I am @thalia on Twitter", "thalia"), "@media on small screens", hints=("@",)),
    _user("home-folder", r"(?:/home/|/Users/|(?:[A-Z]:)?\\{1,2}Users\\{1,2}|Documents and Settings\\{1,2}|~)(?P<v>[A-Za-z][\w.-]{1,38}\w)(?=[/\\\"'\s:;,)]|$)",
          ("cd /home/qfox/src", "qfox"), "/home/user/src and /Users/Shared", check=lambda value: is_username(value) and value.lower() != "shared",
          hints=("/home/", "users", "~", "settings")),
    _user("ssh", r"\b(?:ssh|scp|rsync|sftp)\b[^\n@]{0,80}?\s(?P<v>[A-Za-z_][\w.-]{1,38})@(?=[\w.-]+)", ("ssh -p 22 qfox@build7", "qfox"), "ssh root@build7",
          hints=("ssh", "scp", "rsync", "sftp")),
    _user("profile-url", r"(?:linkedin\.com/in|twitter\.com|\bx\.com|instagram\.com|\bt\.me|facebook\.com|tiktok\.com|reddit\.com/u(?:ser)?|medium\.com|keybase\.io|snapchat\.com/add|mastodon\.social|"
          r"soundcloud\.com|twitch\.tv|steamcommunity\.com/id|(?:^|\s)/?u)/@?(?P<v>[\w.-]{2,39}\w)", ("see linkedin.com/in/quiet-fox", "quiet-fox"), "example.com/in/print", hints=("/",)),
    _user("tagged-number", r"(?<![\w#])(?P<v>[A-Za-z][\w.]{2,31}#\d{4})(?!\w)", ("I am QuietFox#1234 there", "QuietFox#1234"), "issue #1234 and C#1234", hints=("#",)),
    _user("command", r"(?:\b(?:mysql|psql|pg_dump|mongo|sqlcmd)\b[^\n]{0,80}?\s-[uU]\s?|\b(?:useradd|adduser|usermod|passwd|chown|su -|su|sudo -u|-user|--user(?:name)?)[ =]+(?:-\w+ )*|\buser\.name\s+[\"']?|\bUSER(?:NAME)?=)"
          r"(?P<v>[A-Za-z][\w.-]{1,38}\w)(?![\w(/])", ("psql -h db -U qfox app", "qfox"), "mysql -u root -p",
          hints=("mysql", "psql", "pg_dump", "mongo", "sqlcmd", "user", "passwd", "chown", "su")),
)  # fmt: skip


def _is_odd(value: str) -> bool:
    """Shaped like no word: a digit, an underscore or a dot inside, or capitals within."""
    return is_username(value) and bool(re.search(r"\w[\d_.]|[a-z][A-Z]", value))


def is_user_value(value: str) -> bool:
    """A value after `username is`: no common account, no verb or adjective of a sentence."""
    return is_username(value) and not re.fullmatch(
        r"[a-z]+(?:ed|ing|able|ible|ful|ly|ous|ive)", value
    )
