"""Personal data is masked by kind and counted; what documentation holds, stays."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.corpus_prep.screening import personal_data
from stages.corpus_prep.screening.clean_records import mask_text
from stages.corpus_prep.screening.personal_data import mask_personal_data
from stages.corpus_prep.screening.personal_kernels import NUMBER, WORD
from stages.corpus_prep.screening.personal_patterns import KIND_NAMES, passes_luhn

# Numbers are made here by their own rules, so that none is anybody's.
ID_WITHOUT_CHECK = "11010119900307771"
ID = ID_WITHOUT_CHECK + next(
    c for c, r in zip("10X98765432", range(11), strict=True)
    if r == sum(int(d) * pow(2, 17 - i, 11) for i, d in enumerate(ID_WITHOUT_CHECK)) % 11
)  # fmt: skip


def _card(prefix: str, length: int) -> str:
    """The number with zeros behind the prefix and the check digit that Luhn's rule wants."""
    body = prefix.ljust(length - 1, "0")
    total = sum(sum(divmod(int(d) * (2 if i % 2 == 0 else 1), 10)) for i, d in enumerate(reversed(body)))
    return body + str(-total % 10)


VISA, UNION, AMEX = _card("453201", 16), _card("622202", 19), _card("371449", 15)
GROUPED = " ".join(VISA[i : i + 4] for i in range(0, 16, 4))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to jane.doe+x@mail.firm.de.", "write to [EMAIL]."),
        ("<jane@firm.io>, bob_1@firm.co.uk;", "<[EMAIL]>, [EMAIL];"),
        ("邮箱zhang@firm.cn联系", "邮箱[EMAIL]联系"),
        ("host 93.184.216.34:80 up", "host [IP]:80 up"),
        ("from [2a00:1450:4001:81b::200e]", "from [[IP]]"),
        ("2606:2800:220:1:248:1893:25c8:1946. Next", "[IP]. Next"),
        ("IP:2606:2800:220:1:248:1893:25c8:1946", "IP:[IP]"),
        ("source:2a00:1450:4001:81b::200e.\nAddr:2a00:1450:4001:81b::200e", "source:[IP].\nAddr:[IP]"),
        ("a.b@firm.de(work), bob@firm.io-and so on", "[EMAIL](work), [EMAIL]-and so on"),
        ("2a00:1450:4001:81b::200ejane@firm.de", "2a00:1450:4001:81b::[EMAIL]"),
        ("call +49 30 1234567 now", "call [PHONE] now"),
        ("+1 (415) 867-5309", "[PHONE]"),
        ("手机：13812345678。", "手机：[PHONE]。"),
        ("tel 138-1234-5678, +86 139 1234 5678", "tel [PHONE], [PHONE]"),
        (
            "https://firm.de/ or mailto:jane@firm.de, +1.7035555555",
            "https://firm.de/ or mailto:[EMAIL], [PHONE]",
        ),
        (f"身份证{ID}号", "身份证[ID-NUMBER]号"),
        (f"cards {VISA}, {UNION} {AMEX}", "cards [CARD], [CARD] [CARD]"),
        (f"{GROUPED} or {GROUPED.replace(' ', '-')}", "[CARD] or [CARD]"),
        ("a@b.de c@d.de\n203.0.114.9 e@f.de", "[EMAIL] [EMAIL]\n[IP] [EMAIL]"),
    ],
)
def test_what_is_masked(text: str, masked: str) -> None:
    assert mask_personal_data(pa.array([text], pa.large_string()))[0].to_pylist() == [masked]
    assert mask_personal_data(pa.array([masked], pa.large_string()))[0].to_pylist() == [masked]


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com, a@mail.example.org, x@host.test, root@localhost",
        "git@github.com:me/it.git root@box.firm.de and logo@2x.png and y = a@np.array(b)",
        "127.0.0.1 10.0.0.8 192.168.1.1 172.16.0.1 192.0.2.7 198.51.100.3 0.0.0.0 255.255.255.255",
        "version 93.184.216.34, v93.184.216.34, section 1.2.3.4, 10.20.30.40.50, 300.1.2.3, 8.8.8.8",
        "版本 93.184.216.34 cudnn==93.184.216.34 x>=93.184.216.34",
        "::1 fe80::1 2001:db8::7 std::vector::size a::b 12:34:56 cafe::beef",
        "y = a@b.dot(c) + x@self.net(h)-W@self.net-b, q@k.mT-1, g@self.io(h), a@torch.linalg.inv(b)",
        "cafe:2a00:1450:4001:81b::200e 2606:2800:220:1:248:1893:25c8:1946.5",
        "x:2606:2800:220:1:248:1893:25c8:1:9",
        "std::cafe::a::b. wwn:20:00:00:25:b5:00:00:1f at 20:15:30:45. MD5:20:b1:c2:d3:e4:f5:a6:b7:c8",
        "+1 202-555-0143 and 1+2345678901 and x +12",
        "pi is 3.1415926535897932 and 0.13812345678 and A13812345678B, id_13812345678",
        f"{ID[:-1]}{'1' if ID[-1] != '1' else '2'} and 99{ID[2:]}",
        f"{VISA[:-1]}{(int(VISA[-1]) + 1) % 10} and 1234567890123452",
        "1700000000000 is a time in milliseconds, 20261122161350 another",
        "redis://me:secret@host.firm.de:6379 ssh://687fb7@box.firm.de and ftp://jane@firm.de/x",
        "subnet='124.42.0.0/16', '\"total_bytes\": 15032385536,', stamp=15032385536, Decimal('+35236450.6')",
    ],
)
def test_what_stays(text: str) -> None:
    texts = pa.array([text], pa.large_string())
    masked, counts = mask_personal_data(texts)
    assert masked is texts or masked.to_pylist() == [text]
    assert not any(counts.to_pylist()[0].values())


def test_kinds_are_counted_and_switched() -> None:
    texts = pa.array(["a@b.de 93.184.216.34", "plain", f"c@d.de {VISA} e@f.de"], pa.large_string())
    masked, counts = mask_personal_data(texts)
    assert masked.to_pylist() == ["[EMAIL] [IP]", "plain", "[EMAIL] [CARD] [EMAIL]"]
    assert counts["pii_email"].to_pylist() == [1, 0, 2]
    assert counts["pii_card"].to_pylist() == [0, 0, 1]
    only, counts = mask_personal_data(texts.slice(1), ["card"])
    assert only.to_pylist() == ["plain", "c@d.de [CARD] e@f.de"]
    assert counts["pii_email"].to_pylist() == [0, 0]
    with pytest.raises(ValueError, match="no kind of personal data: iban"):
        mask_personal_data(texts, ["iban"])


def test_luhn() -> None:
    assert passes_luhn("79927398713")  # the example of ISO/IEC 7812's patent, US 2950048
    assert [d for d in "0123456789" if passes_luhn(f"7992739871{d}")] == ["3"]


# fmt: off
PIECES = st.sampled_from((
    "jane@firm.de", "@", ".", ":", " ", "\n", "-", "+", "(", ")", "93.184.216.34", "13812345678", "555", "86",
    "+49 30 1234567", ID, VISA, GROUPED, "2a00:1450:4001:81b::200e", "IP:", "bob@firm.io",
    "a", "Z", "7", "12", "中", "é", "v", "X",
    "version ", ",", "[", "_", "example.com",
))
# fmt: on


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(PIECES, max_size=12).map("".join), max_size=4))
def test_the_scan_loses_nothing_that_patterns_find_in_the_whole_text(texts: list[str]) -> None:
    array = pa.array(texts, pa.large_string())
    masked, counts = mask_personal_data(array)

    def whole_texts(data: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
        ends = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        return [[i, a, b, what] for i, (a, b) in enumerate(ends) for what in (WORD, NUMBER)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(personal_data, "_candidates", whole_texts)
        expected, expected_counts = mask_personal_data(array)
    assert masked.to_pylist() == expected.to_pylist()
    assert counts.to_pylist() == expected_counts.to_pylist()
    assert set(counts.schema.names) == {f"pii_{name}" for name in KIND_NAMES}
    found: Counter[str] = Counter()
    assert [mask_text(text, KIND_NAMES, found) for text in texts] == expected.to_pylist()
    assert found.total() == sum(sum(row.values()) for row in expected_counts.to_pylist())
