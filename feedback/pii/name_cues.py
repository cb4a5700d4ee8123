# ruff: noqa: E501 - a rule is one row of a table
"""Cues that give a name away: "my name is", "Dear", "Mr", `author =`, "lunch with", "X said".

The table is `NAME_RULES`; what to make of its matches is `names.py`'s business.
"""

import re

from feedback.pii.rules import Kind, Rule
from feedback.pii.words import MAYBE_NAMES, NOT_PEOPLE, STARTERS, word_set

_CAP = r"(?-i:[^\W\d_a-zß-ÿ][^\W\d_]*(?:['-][^\W\d_]+)*)"
_LINK = r"(?:(?:van|von|der|den|de|la|del|di|da|dos|bin|al|el|ter|le|du|st)\.? ){0,2}"
_FULL = rf"{_CAP}(?:[ \t]{{1,2}}(?:{_LINK}{_CAP}|(?-i:[A-Z])\.)){{0,3}}"
_ANY = r"[^\W\d_]{2,20}(?:['-][^\W\d_]{2,20})?"
WORD = re.compile(r"[^\W\d_]+(?:['-](?!s\b)[^\W\d_]+)*")
_VERBS = word_set(
    """
    not just only looking trying working writing going having getting sorry glad happy sure
    afraid fine good well here there from in at on the a an my your very really so also
    currently interested new using making doing learning building planning thinking having
    able unable about to and or but who what how when where why if that this it is was with
    for of by as be been being do does did done one some any no yes confused curious tired
    sick hungry ready done stuck lost free busy late older younger old married single unknown
    none null string given first last full required optional
    """
)


def _row(
    name: str,
    pattern: str,
    match: tuple[str, str],
    *spares: str,
    hints: tuple[str, ...] = (),
    loose: bool = False,
) -> Rule:
    return Rule(
        name=name,
        kind=Kind.PERSON,
        pattern=re.compile(pattern, re.IGNORECASE | re.MULTILINE),
        hints=hints,
        check=_could_be_said_name if loose else could_be_name,
        matches=(match,),
        spares=spares,
    )


def could_be_name(value: str) -> bool:
    """Whether at least one word of the value may be a person's."""
    words = [word.lower() for word in WORD.findall(value)]
    return any(word not in NOT_PEOPLE and word not in STARTERS for word in words)


def _could_be_said_name(value: str) -> bool:
    words = [word.lower() for word in WORD.findall(value)]
    return (
        bool(words)
        and words[0] not in _VERBS
        and (words[0] not in STARTERS or words[0] in MAYBE_NAMES)
    )


_FAMILY = (
    r"(?:wife|husband|son|daughter|mother|father|brother|sister|friend|girlfriend|boyfriend|partner|boss|colleague|co-?worker|manager|neighbou?r|doctor|"
    r"therapist|cousin|nephew|niece|uncle|aunt|teacher|professor|roommate|landlord|ex|fiancée?|assistant|lawyer|nurse|supervisor|client|tenant|patient|student|employee)"
)
_FIELD = (
    r"(?:(?:first|last|full|given|family|middle|maiden|sur|user_?full|display|contact|customer|client|patient|employee|account|card|holder|cardholder|billing|shipping|sender|"
    r"recipient|author|student)[ _-]?name|surname|fullname|patient|customer|client|cardholder|account holder|beneficiary|tenant|applicant|candidate|attendee|"
    r"author|assignee|reviewer|reported by|signed by|prepared by|approved by|recipient|sender|emergency contact|next of kin|attn|"
    r"contact person|name|nom|prénom|nombre|apellidos?|nome|vorname|nachname|committer|maintainer|employee|interviewer|interviewee|witness|plaintiff|defendant)"
)
_INTRODUCED = (
    r"(?:my (?:full |real |legal |last |first |maiden )?name(?: is|'s|:)|(?:his|her|their|whose|the patient's|client's) (?:full |last |first )?name (?:is|was)|call me|me llamo|mi nombre es|"
    r"je m'appelle|je suis|mon nom est|ich hei(?:ß|ss)e|mein name ist|mi chiamo|il mio nome è|meu nome é|me chamo|jag heter|jeg heter|mijn naam is|ik heet|nazywam się|"
    r"mam na imię|меня зовут|this is|i go by|name me)"
)

NAME_RULES: tuple[Rule, ...] = (
    _row("introduced", _INTRODUCED + r"\s{1,3}[\"'*]{0,2}(?P<v>" + _FULL + ")", ("my name is Ottoline Vex", "Ottoline Vex"), "my name is on it", "this is Python"),
    _row("introduced-lower", r"(?:my (?:full |real )?name is|my name's|call me|me llamo|je m'appelle|ich heiße|mi chiamo|meu nome é|i go by|mein name ist|mi nombre es)\s{1,3}(?P<v>" + _ANY
         + r"(?: (?!and\b|or\b|but\b|i\b|from\b|at\b|in\b|on\b|to\b|the\b|with\b|who\b|my\b|is\b|are\b|y\b|et\b|und\b|e\b|please\b|for\b|because\b|when\b|if\b|so\b|by\b|as\b|can\b|am\b)" + _ANY + r"){0,2})(?=[\s.,;!?\"')]|$)",
         ("hi, my name is ottoline vex and i", "ottoline vex"), "my name is not important", loose=True),
    _row("i-am", r"\b(?:i am|i'm|im)\s(?P<v>" + _CAP + r"(?:[ \t]" + _CAP + r"){0,2})(?=\s?(?:[,.!\n]|and\b|from\b|the\b|a\b|an\b|your\b|$))",
         ("Hi, I'm Ottoline, a nurse", "Ottoline"), "I'm French, and", "I am going", hints=("i am", "i'm", "im ")),
    _row("title", r"\b(?:(?-i:M(?:r|rs|s|x|iss|me|lle)|Dr|Prof|Sr|Sra|Srta|Herr|Frau|Monsieur|Madame|Señora?|Signora?|Doña?|Rabbi|Pastor|Sgt|Capt|Lt|Col|Judge|Professor|Doctor|Senator|Officer|Detective|Nurse|"
         r"MR|MRS|MS|DR|PROF|Sir|Lady|Dame|Councillor|Aunt|Uncle|Auntie)|(?:mr|mrs|ms|dr)(?=\.? [a-z]))\.?[ \t]{1,2}(?P<v>" + _FULL + r"|(?<=mr )" + _ANY + r"|(?<=mrs )" + _ANY + r"|(?<=ms )" + _ANY + r"|(?<=mr\. )" + _ANY + ")",
         ("ask Dr. Vexworth today", "Vexworth"), "the Dr will see you", "Sir Newton"),
    _row("greeting", r"(?:^|[\n.>!\"'] ?|\b)(?:dear|hi|hello|hey|hallo|hola|bonjour|liebe[rs]?|cher|chère|querid[oa]|estimad[oa]|ciao|good (?:morning|afternoon|evening))[ ,]{1,2}(?P<v>" + _FULL + r")(?=\s*[,!.:;\n]|\s+-|$)",
         ("Dear Ottoline,", "Ottoline"), "Hello World!", "Dear Sir or Madam,", hints=("dear", "h", "bonjour", "liebe", "cher", "quer", "estim", "ciao", "good")),
    _row("signed", r"(?:regards|sincerely|faithfully|truly|cheers|thanks|thank you|best(?: wishes)?|love|yours|warmly|respectfully|signed|grüße|gruß|cordialement|saludos|atentamente|saluti)(?: (?:again|so|very|much|a lot|in advance|and)){0,3}[,.!]?[ \t]*\n{1,3}[ \t]*[-–]{0,2} ?(?P<v>"
         + _FULL + r")[ \t]*(?=\n|$|,|\.)", ("Best regards,\nOttoline Vex", "Ottoline Vex"), "Thanks,\nthe team", hints=("\n",)),
    _row("signed-inline", r"(?:regards|sincerely|cheers|love|best wishes|best|yours|signed|thanks),[ \t]{1,2}(?P<v>" + _FULL + r")[ \t]*[.!]?(?=\n|$)", ("Cheers, Ottoline", "Ottoline"), "the best, Then we went on"),
    _row("family", r"\b(?:my|our|his|her|their|the|new|old|best|ex)[- ](?:\w+ )?" + _FAMILY + r"(?:,| named| called| is|'s name is| and \w+)?,?[ \t](?P<v>" + _FULL + ")", ("my sister Ottoline Vex said", "Ottoline Vex"), "my doctor said", "my friend The"),
    _row("family-lower", r"\b(?:my|our) " + _FAMILY + r" (?P<v>" + _ANY + r")(?= (?:is|was|has|had|says|said|wants|asked|told|keeps|and i\b|'s))", ("my sister ottoline said", "ottoline"), "my doctor just said", "my boss who is", loose=True),
    _row("named", r"\b(?:named|called|nicknamed|met with|spoke (?:to|with)|talked to|talk to|email(?:ed)?|emailing|texted|married to|met|meet|meeting with|hired|fired|contact|asked|invited?|cc|ping|remind|tell|ask)[ \t](?:up )?(?P<v>" + _CAP + r"(?:[ \t]" + _CAP + r"){1,2})",
         ("we hired Ottoline Vex", "Ottoline Vex"), "tell me Why", "named after"),
    _row("header", r"^[ \t>*-]{0,4}(?:from|to|cc|bcc|attendees?|participants?|present|host|guests?|by|signed|attn|ref|re)[ \t]{0,2}:[ \t]{0,3}(?P<v>" + _FULL + r"(?:(?:,|;| and| &) " + _FULL + "){0,8})",
         ("From: Ottoline Vex\nTo: us", "Ottoline Vex"), "To: the team", hints=(":",)),
    _row("role", r"\b(?:patient|client|customer|employee|tenant|witness|colleague|neighbou?r|candidate|nurse|applicant|landlord|landlady|coworker|roommate|suspect|defendant|attendees?)s?,? (?P<v>" + _FULL + r")(?=[ ,.;:!?')\n]|$)",
         ("Patient Ottoline was seen", "Ottoline"), "Customer Service was slow", "the customer Data"),
    _row("given-to", r"\b(?:lunch|dinner|coffee|drinks|breakfast|meeting|call|date|chat|appointment|argument|fight|talk|interview|conversation|spoken|spoke|speak|lives?|living|broke up|working|work|session|compare) with (?P<v>" + _FULL + r")(?=[ ,.;:!?')\n]|$)",
         ("lunch with Ottoline today", "Ottoline"), "working with Python and meeting with The team", hints=(" with ",)),
    _row("written-to", r"\b(?:reminder|message|e-?mail|letter|gift|card|present|note|invitation|apology|reference|text|toast|speech|poem|eulogy|reply|response|thank-?you|recommendation|surprise|party|flowers|according|attendees|interviewed|hired|fired|married|divorced|dating|texted|emailed|invited)(?: to| for| from|) (?P<v>" + _FULL + r")(?=[ ,.;:!?')\n]|$)",
         ("a card for Ottoline Vex, who", "Ottoline Vex"), "a letter to French readers", "a message from The team"),
    _row("and-theirs", r"(?<![\w.])(?P<v>" + _FULL + r") and (?:her|his|my|their|our) ", ("so Ottoline and her dog", "Ottoline"), "Python and its libraries", hints=(" and ",)),
    _row("before-placeholder", r"(?:^|[\n;:,(|])[ \t]{0,4}(?P<v>" + _FULL + r")(?:, ?|;| ?\| ?| \(| - |\n)<(?:ADDRESS|PHONE|EMAIL|BIRTH_DATE|PASSPORT|NATIONAL_ID|USERNAME|SECRET)_\d",
         ("Ottoline, <ADDRESS_1>", "Ottoline"), "Mobile, <PHONE_1>", hints=("_",)),
    _row("by", r"\b(?:written|authored|created|made|reviewed|signed|approved|prepared|posted|sent|edited|reported|managed|led|owned|contributed|taught|referred|treated) by (?P<v>" + _FULL + r")(?=[ ,.;:!?')\n]|$)",
         ("# written by Ottoline, 2023", "Ottoline"), "made by Google in", hints=(" by ",)),
    _row("after-person", r"<PERSON_\d{1,6}>(?:,? and|,| &|;) (?P<v>" + _FULL + r")(?=[,.;:!?)\n]|$| and\b)", ("with <PERSON_1>, Ottoline.", "Ottoline"), "<PERSON_1>, Boston and", hints=("<person",)),
    _row("signature", r"\n[ \t]*(?P<v>" + _FULL + r")[ \t]*\n[ \t]*(?:(?:senior|junior|chief|vice|deputy|assistant|associate|managing|general|lead|principal) )?(?:head|ceo|cto|cfo|coo|manager|director|engineer|president|officer|analyst|consultant|professor|developer|designer|"
         r"secretary|sales|partner|attorney|nurse|physician|accountant|administrator|coordinator|founder|editor|teacher|phd|md)\b", ("Bye!\nOttoline Vex\nHead of Sales", "Ottoline Vex"), "a\nThe team\nManager", hints=("\n",)),
    _row("before-person", r"(?<![\w.])(?P<v>" + _FULL + r"),? (?:and|&|or|with) <PERSON_\d", ("for Ottoline and <PERSON_1>", "Ottoline"), "Boston and <PERSON_1>", hints=("<person",)),
    _row("clause", r"\b(?:that|if|why|because|but|whether|since|and) (?P<v>(?-i:[A-Z][a-zß-ÿ]{2,}(?: [A-Z][a-zß-ÿ]{2,})?)) (?:does|did|doesn't|didn't|never|always|wants?|told|keeps|will not|won't|hates|loves|refuses?|and I|and me|and my)\b",
         ("normal that Ottoline does not call", "Ottoline"), "that Python does not", "and Mars never"),
    _row("field", r"(?<![\w.])[\"'`]?" + _FIELD + r"[\"'`]?\]?[ \t]{0,3}(?:=>|:=|={1,2}|:)[ \t]{0,3}[\"'`*]{0,2}(?P<v>" + _FULL + r"|(?-i:[A-Z]{2,20}(?:[ ,]{1,2}[A-Z]{2,20}){1,3}))",
         ('"full_name": "Ottoline Vex"', "Ottoline Vex"), "name: The", "author = self.author"),
    _row("field-lower", r"(?<![\w.])[\"'`]?(?:first|last|full|given|family|middle|maiden|sur)[ _-]?name[\"'`]?[ \t]{0,3}(?:=|:)[ \t]{0,3}[\"'`]?(?P<v>" + _ANY + r"(?: " + _ANY + r"){0,2})(?=[\"'`,;\n&}]|$)", ("first_name=ottoline&x", "ottoline"), "last_name: string", loose=True),
    _row("chat-line", r"^[ \t]*[\[(]?\d{1,2}:\d\d(?::\d\d)?(?: ?[ap]m)?[\])]?[ \t]*(?:[-|][ \t]*)?<?(?P<v>" + _FULL + r")>?:[ \t]", ("[10:02] Ottoline: who broke it?", "Ottoline"), "10:02 Boston: departure", "at 10:02 we left", hints=(":",)),
    _row("sql-values", r"\b(?:values\s*\(\s*(?:\d+\s*,\s*)?|name\s*(?:=|like)\s*)'(?P<v>" + _FULL + ")'", ("VALUES (7, 'Ottoline Vex', 3)", "Ottoline Vex"), "VALUES ('new')"),
    _row("before-mail", r"(?<![\w<>])(?P<v>" + _FULL + r")[ \t]{1,2}[<(\[](?=[\w.+-]{1,64}@)", ("Ottoline Vex <o@vex.org>", "Ottoline Vex"), "Contact (x@vex.org)", hints=("@", "<email")),
    _row("initialled", r"(?<![\w.'])(?P<v>(?-i:[A-Z]\. ?(?:[A-Z]\. ?)?(?:(?:van|von|de|der) ){0,2}[A-Z][^\W\d_]{2,}(?:-[A-Z][^\W\d_]+)?))", ("as J. Vexworth wrote", "J. Vexworth"), "E. coli in a dish", "A. The first"),
    _row("said", r"(?<![\w.])(?P<v>" + _FULL + r") (?:said|asked|replied|told|wrote|called|emailed|texted|works|lives|wants|was born|is my|and I\b|thinks|says|left|joined|resigned|will call|has been)",
         ("and Ottoline said no", "Ottoline"), "The paper said", "Python works"),
    _row("possessive", r"(?<![\w.])(?P<v>" + _FULL + r")'s (?:house|phone|email|number|birthday|recommendation|speech|funeral|grades?|homework|medication|bank|signature|passport|address|party|wedding|salary|account|husband|wife|mother|father|mom|dad|son|daughter|office|team|car|job|report|surgery|diagnosis|contract|performance|password|laptop|lawyer|landlord|boss|kids|children|dog|cat|name|flat|apartment|letter|message|reply|resume|cv|bio|case|claim|will|salary|behaviou?r|desk|visa)",
         ("at Ottoline's house", "Ottoline"), "Today's report", hints=("'s ",)),
    _row("chinese", r"(?:我叫|我是|姓名[:：]?)(?P<v>[\u4e00-\u9fff]{2,3})(?![\u4e00-\u9fff])", ("我叫王小明,", "王小明"), "我叫"),
    _row("russian", r"(?:меня зовут|фио:?)\s+(?P<v>[А-ЯЁ][а-яё]+(?:\s[А-ЯЁ][а-яё]+){0,2})", ("Меня зовут Ольга Петрова.", "Ольга Петрова"), "зовут"),
)  # fmt: skip
