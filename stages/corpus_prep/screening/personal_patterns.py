"""What counts as personal data: one pattern and one check for each kind.

Documentation is full of addresses that are nobody's, and they stay: names that RFC 2606 and RFC 6761 reserve
(example.com, .test, .invalid, .localhost), addresses that are not routed (127.0.0.1, 10.0.0.0/8, RFC 5737's
and RFC 3849's documentation ranges), networks (124.42.0.0), public name servers, the fictional numbers
555-0100 to 555-0199, accounts of machines (`git@host`, `root@host`, `ftp://user:word@host`), what looks like
a version or a section number (v1.2.3.4, `version 9.16.0.29`, `==9.16.0.29`, 1.2.3.4), and numbers that count
something (`total_bytes: 15032385536`, +35236450.6).

Patterns see bytes as Latin-1 characters, so they name their letters and never use \\w, \\d or \\b.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date

Match = re.Match[str]


@dataclass(frozen=True)
class Kind:
    """A kind of personal data: where it may stand, and whether a match is one."""

    name: str
    placeholder: str
    pattern: re.Pattern[str]
    is_one: Callable[[Match], bool]
    in_numbers: bool


_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+\-])[A-Za-z0-9_](?:[A-Za-z0-9._%+\-]{0,62}[A-Za-z0-9_%+\-])?"
    r"@((?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24})(?![A-Za-z0-9_@\[=]|\.[A-Za-z0-9])"
)
#: Before a bracket or a hyphen only these count, as `a@b.dot(c)` and `a@self.net-b` multiply matrices.
_NO_ATTRIBUTES = re.compile(r"(?!self\.).+\.(?:com|org|edu|gov|io|de|fr|nl|uk|eu|cn|jp|ru)")
_ACCOUNTS = ("git@", "root@", "ubuntu@", "ec2-user@")
_RESERVED = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|org|net|edu|cn))?|test|invalid|localhost|local)$")
_OF_ADDRESS = re.compile(r"://[A-Za-z0-9._%+:\-]*$")
"""What stands before the last word before the @ in `ftp://user:word@host`."""
_IMAGE = re.compile(r"\.(?:png|jpe?g|gif|svg|webp|ico)$")


def _is_email(match: Match) -> bool:
    domain = match[1].lower()
    if _OF_ADDRESS.search(match.string, max(0, match.start() - 128), match.start()):
        return False
    if match.string[match.end() : match.end() + 1] in ("(", "-") and not _NO_ATTRIBUTES.fullmatch(domain):
        return False
    return not (match[0].startswith(_ACCOUNTS) or _RESERVED.search(domain) or _IMAGE.search(domain))


_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IP = re.compile(
    rf"(?<![A-Za-z0-9._\-])(?<![=~<>!]=)((?:{_OCTET}\.){{3}}{_OCTET})(?![A-Za-z0-9_]|[.\-][A-Za-z0-9])"
    # `IP:` or `address:` may stand before: a letter or a word that is no group of hexadecimal digits.
    r"|(?:(?<![A-Za-z0-9:.])|(?<=[G-Zg-z]:)|(?<=[A-Za-z]{5}:))"
    r"((?:[0-9A-Fa-f]{1,4}:|:){2,8}[0-9A-Fa-f]{0,4})(?![A-Za-z0-9:]|\.[A-Za-z0-9]|(?<=:)\[)"
)
_VERSION_BEFORE = re.compile(r"(?:version|release|section|版本|版本号|章节)[ :=]*$", re.IGNORECASE)
_CHINESE_VERSION = "版本".encode().decode("latin-1")
_NAME_SERVERS = {"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "114.114.114.114", "223.5.5.5"}
_UNICAST = ipaddress.IPv6Network("2000::/3")


def _is_ip(match: Match) -> bool:
    if match[2]:
        return match[2].count(":") >= 3 and _is_global6(match[2])
    before = match.string[max(0, match.start() - 16) : match.start()]
    is_version = _VERSION_BEFORE.search(before) or before.rstrip(" :=").endswith(_CHINESE_VERSION)
    octets = match[1].split(".")
    if is_version or match[1] in _NAME_SERVERS or octets[3] == "0" or all(len(o) == 1 for o in octets):
        return False
    return ipaddress.IPv4Address(match[1]).is_global


def _is_global6(said: str) -> bool:
    try:
        address = ipaddress.IPv6Address(said)
    except ValueError:
        return False
    return address in _UNICAST and address.is_global


_PHONE = re.compile(
    r"(?<![A-Za-z0-9+./_\-])(?:\+1(?:[ .()\-]{0,2}[0-9]){10}|\+[2-9](?:[ .()\-]{0,2}[0-9]){7,14})"
    r"(?![0-9A-Za-z_])"
    r"|(?<![A-Za-z0-9._+#/\-])(?:86[ \-]?)?1[3-9][0-9](?:[ \-]?[0-9]{4}){2}(?![0-9A-Za-z_]|[.\-][0-9])"
)
#: ITU-T E.164 assigned country codes: one digit, two, or three that begin with these two.
_CODES = re.compile(
    r"1|7|2[07]|3[0-46-9]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|(?:2[1-6]|35|37|38|42|50|59|67|68|69|80|85|87|88|96|97|99)[0-9]"
)
_COUNTED_BEFORE = re.compile(
    r"(?:bytes|size|count|length|offset|total|sum|seed|stamp|time)[\"' :=]{1,4}$", re.IGNORECASE
)
_DECIMAL = re.compile(r"\+[0-9]{4,}\.[0-9]+")
_FICTIONAL = re.compile(r"1[0-9]{3}55501[0-9]{2}")


def _is_phone(match: Match) -> bool:
    digits = re.sub(r"[^0-9]", "", match[0])
    if not match[0].startswith("+"):
        return not _COUNTED_BEFORE.search(match.string[max(0, match.start() - 16) : match.start()])
    if _DECIMAL.fullmatch(match[0]):
        return False
    return _CODES.match(digits) is not None and not _FICTIONAL.fullmatch(digits)


_ID_NUMBER = re.compile(
    r"(?<![0-9A-Za-z])[1-9][0-9]{5}((?:18|19|20)[0-9]{2})([01][0-9])([0-3][0-9])[0-9]{3}[0-9Xx](?![0-9A-Za-z])"
)
_PROVINCES = re.compile("1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]|71|8[1-3]")
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def _is_id_number(match: Match) -> bool:
    """GB 11643-1999: a province, a day of birth, and the check character of ISO 7064 MOD 11-2."""
    try:
        date(*map(int, match.groups()))
    except ValueError:
        return False
    total = sum(int(digit) * weight for digit, weight in zip(match[0], _ID_WEIGHTS, strict=False))
    return bool(_PROVINCES.match(match[0])) and "10X98765432"[total % 11] == match[0][-1].upper()


_CARD = re.compile(
    r"(?<![0-9A-Za-z.+\-])(?:[3-6][0-9]{12,18}|2[0-9]{15}"
    r"|[2-6][0-9]{3}([ \-])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{1,3})?"
    r"|3[0-9]{3}([ \-])[0-9]{6}\2[0-9]{4,5})"
    r"(?![0-9A-Za-z]|[.\-][0-9])"
)
#: Issuers by their leading digits, and how long their numbers are (ISO/IEC 7812).
_ISSUERS = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|(?:5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720)[0-9]+|3[47][0-9]{13}"
    r"|62[0-9]{14,17}|6(?:011|5|4[4-9])[0-9]+|35(?:2[89]|[3-8])[0-9]+|3(?:0[0-5]|[68])[0-9]+"
)


def _is_card(match: Match) -> bool:
    digits = re.sub(r"[^0-9]", "", match[0])
    length = 14 if re.match("3(?:0[0-5]|[68])", digits) else 16
    fixed = not digits.startswith(("4", "34", "37", "62", "6", "35"))
    return bool(_ISSUERS.fullmatch(digits)) and (not fixed or len(digits) == length) and passes_luhn(digits)


def passes_luhn(digits: str) -> bool:
    """The check digit of ISO/IEC 7812: every second digit from the right counts twice."""
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


#: In the order in which they are looked for: where two match the same bytes, the first counts.
KINDS = (
    Kind("email", "[EMAIL]", _EMAIL, _is_email, in_numbers=False),
    Kind("ip", "[IP]", _IP, _is_ip, in_numbers=False),
    Kind("id_number", "[ID-NUMBER]", _ID_NUMBER, _is_id_number, in_numbers=True),
    Kind("card", "[CARD]", _CARD, _is_card, in_numbers=True),
    Kind("phone", "[PHONE]", _PHONE, _is_phone, in_numbers=True),
)
KIND_NAMES = tuple(kind.name for kind in KINDS)


def matches(kind: Kind, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(start, end) of every one of this kind in `text[start:end]`; what stands around may be looked at."""
    for match in kind.pattern.finditer(text, start):
        if match.start() >= end:
            return
        if match.end() <= end and kind.is_one(match):
            yield match.span()
