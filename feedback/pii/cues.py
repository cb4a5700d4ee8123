# ruff: noqa: E501 - a rule is one row of a table
"""Numbers that only their cue gives away: "passport no.", "DNI", "account number", "MRN".

A row is a name, the cue's words in the languages we know them in, and samples. The value is what
follows: letters and digits of which at least three are digits. Numbers with a telling shape or a
checksum are in `ids.py`.
"""

import re

from feedback.pii.rules import Kind, Rule, words_pattern

_LINK = (
    r"(?:[\s\"'_.:#=(-]{0,4}(?:number|numbers|num|numero|número|numéro|nummer|nr|no|nº|n°|id|code|is|are|was|es|ist|est|è|é|"
    r"er|card|my|the|ends?|ending|in|on|file|of|for|и|номер|号码|号|[A-Z]?[a-z]{2,10}'s)(?![A-Za-z])){0,5}"
    r"[\s\"'_.:#=>(-]{0,5}"
)
_VALUE = (
    r"(?P<v>(?:(?-i:[A-Z]{1,4}) )?(?=[A-Za-z./-]{0,8}\d)[A-Za-z0-9]"
    r"(?:[A-Za-z0-9]|[./-](?=[A-Za-z0-9])| (?=[A-Z0-9]*\d)){2,29})(?![A-Za-z0-9])"
)
_SHAPE_YEAR = re.compile(r"(?:19|20)\d\d")


def has_number(value: str) -> bool:
    """At least three digits, and not a year alone."""
    digits = sum(character.isdigit() for character in value)
    return digits >= 3 and not _SHAPE_YEAR.fullmatch(value)


def _long_number(value: str) -> bool:
    return sum(character.isdigit() for character in value) >= 5


def _row(
    kind: Kind, name: str, words: str, match: tuple[str, str], spare: str, long: bool = False
) -> Rule:
    cue = words_pattern(words)
    return Rule(
        name=name,
        kind=kind,
        pattern=re.compile(
            r"(?<![A-Za-z])"
            + cue
            + r"(?:s|(?-i:No|Nr|Num|Number|Id|ID|Code))?(?![A-Za-z])"
            + _LINK
            + _VALUE,
            re.IGNORECASE,
        ),
        hints=tuple(sorted({word.split("_")[0] for word in words.split()})),
        check=_long_number if long else has_number,
        matches=(match,),
        spares=(spare,),
    )


_ID, _ACCOUNT = Kind.NATIONAL_ID, Kind.ACCOUNT

CUE_RULES: tuple[Rule, ...] = (
    _row(Kind.PASSPORT, "passport", "passport passeport pasaporte reisepass passaporto passaporte paspoort pass-nr paszport паспорт 护照 pasaport",
         ("My passport number is X1234567.", "X1234567"), "passport photos cost 15"),
    _row(_ID, "social-security", "ssn social_security social_security_number social_insurance sin sozialversicherungsnummer sécurité_sociale itin ein tin",
         ("SSN: 219099999", "219099999"), "sin(x) at 0.5", True),
    _row(_ID, "national-id", "national_id national_identity identity_card identity_number id_number id_no id_card government_id citizen_id resident_id "
         "personalausweis ausweis ausweisnummer dni nie nif cédula cedula documento_de_identidad carte_d'identité cni carta_d'identità cpf cnpj rg "
         "codice_fiscale curp rfc rut run bsn burgerservicenummer pesel dowód personnummer henkilötunnus cpr fødselsnummer kennitala aadhaar aadhar "
         "pan nric fin hkid rrn egn jmbg oib isikukood asmens_kodas cnp tckn tc_kimlik kimlik emirates_id nino ni_number national_insurance "
         "insee nir инн снилс 身份证 身份证号", ("Mi DNI es 12345678Z", "12345678Z"), "run 100 tests with pan-fried fish", True),
    _row(_ID, "tax-id", "tax_id taxpayer_id tax_number tax_file_number tfn steuer-id steueridentifikationsnummer steuernummer vat vat_id utr tax_reference "
         "partita_iva siret siren", ("Steuer-ID 36574261809", "36574261809"), "VAT is 20 percent", True),
    _row(_ID, "driver-licence", "driver's_license driver's_licence drivers_license drivers_licence driver_license driver_licence driving_licence driving_license "
         "dl license_number licence_number führerschein permis_de_conduire patente licencia_de_conducir rijbewijs prawo_jazdy",
         ("driver's license D1234567", "D1234567"), "the driver's license test takes 45 minutes"),
    _row(_ID, "health", "nhs medicare medicaid mrn medical_record medical_record_number patient_id patient_number health_card health_insurance hospital_number "
         "insurance_id insurance_number versichertennummer krankenversicherungsnummer mbi chart_number prescription_number rx",
         ("MRN 00482913", "00482913"), "medicare covers people over 65"),
    _row(_ID, "member", "member_id membership_number membership policy_number policy_no employee_id employee_number emp_id staff_id student_id student_number matriculation "
         "matrikelnummer badge_number customer_id customer_number kundennummer loyalty_number frequent_flyer claim_number case_number booking_reference voter_id "
         "green_card alien_number a-number visa_number immigration_number visa_no",
         ("policy number HX-2291-88", "HX-2291-88"), "each customer id is an integer"),
    _row(_ID, "vehicle", "vin license_plate licence_plate number_plate plate_number registration_plate kennzeichen plaque_d'immatriculation matrícula reg_number "
         "vehicle_registration", ("VIN 1HGCM82633A004352", "1HGCM82633A004352"), "a number plate is metal"),
    _row(_ACCOUNT, "bank", "account_number account_no acct acct_no bank_account checking_account savings_account kontonummer konto_nr compte_bancaire cuenta_bancaria "
         "conto_corrente rekeningnummer routing routing_number aba sort_code blz bsb ifsc swift bic clabe transit_number giro cbu numer_konta",
         ("account number 0012345678", "0012345678"), "a bank account with 300 dollars"),
    _row(_ACCOUNT, "device", "imei meid serial_number device_id sim_number iccid imsi advertising_id idfa",
         ("IMEI 490154203237518", "490154203237518"), "the serial number is printed below"),
    _row(Kind.CARD, "card-cued", "card card_number credit_card debit_card visa mastercard amex american_express discover kreditkarte kreditkartennummer tarjeta carte_bancaire "
         "carta_di_credito cartão creditcard kaartnummer карта cc", ("my card is 1234 5678 9012 3456", "1234 5678 9012 3456"), "a card with 100 points", True),
    Rule(name="card-code", kind=Kind.CARD, pattern=re.compile(
             r"\b(?:cvv2?|cvc2?|cv2|security code|card code)\b[\s\"':=#(is-]{0,6}(?P<v>\d{3,4})(?!\d)", re.IGNORECASE),
         hints=("cv", "code"), matches=(("cvv: 123", "123"),), spares=("security code review in 2024x",)),
    Rule(name="card-expiry", kind=Kind.CARD, pattern=re.compile(
             r"\b(?:exp(?:iry|ires|iration)?(?: date)?|valid (?:thru|until)|gültig bis)\b[\s\"':=.-]{0,5}(?P<v>(?:0[1-9]|1[0-2])\s?[/-]\s?(?:20)?\d\d)(?!\d)", re.IGNORECASE),
         hints=("exp", "valid", "gültig"), matches=(("exp 04/27", "04/27"),), spares=("expires in 12/24 hours or so",)),
)  # fmt: skip
