"""The statistics of a document: one whole number each, so that every ratio is exact and can be taken later.

"Characters" are Unicode code points. "Lines" end at a line feed, "lines of any break" where `str.splitlines`
breaks. "Words" are those of the splitter that measured; see `measures.measure`.
"""

from __future__ import annotations

TOP_SIZES = (2, 3, 4)
DUPLICATE_SIZES = (5, 6, 7, 8, 9, 10)
NGRAM_WORDS = 8
SHORT_LINE_CHARACTERS = 30
GLUED_WORD_CHARACTERS = 200
GOPHER_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
#: FineWeb2's for Mandarin in Han script (configs/cmn_Hani.yml at d0defb2).
CHINESE_STOP_WORDS = tuple("的年在月是和日了於·為有被人中为他與後也而由")

COLUMNS: dict[str, str] = {
    "characters": "characters",
    "visible_characters": "characters that are no white space",
    "letters": "characters of any alphabet",
    "symbols": "characters that are neither letter, digit, white space nor common punctuation",
    "han": "Han characters",
    "kana": "hiragana and katakana",
    "hangul": "hangul syllables and letters",
    "latin": "Latin letters",
    "arabic": "Arabic letters",
    "cyrillic": "Cyrillic letters",
    "digits": "decimal digits of any script",
    "replacement_characters": "U+FFFD: bytes that were lost",
    "hashes": "the sign #",
    "ellipses": "three dots in a row, or the one sign for them",
    "newlines": "line feeds",
    "nonblank_lines": "lines with more than white space",
    "lines": "pieces between runs of line feeds, an empty one at each end of the text included",
    "duplicate_lines": "of these, pieces that stood before",
    "duplicate_line_characters": "characters of the pieces that stood before",
    "terminal_lines": "lines, not blank, whose last character ends a sentence",
    "short_lines": "lines, not blank, of at most 30 characters",
    "duplicate_nonblank_characters": "characters of lines, not blank, that stood before",
    "stripped_characters": "characters of lines without the white space around them",
    "duplicate_stripped_characters": "of these, in lines that stood before",
    "paragraphs": "pieces between two or more line feeds, of the text without the white space around it",
    "duplicate_paragraphs": "of these, pieces that stood before",
    "duplicate_paragraph_characters": "characters of the pieces that stood before",
    "broken_lines": "lines of any break",
    "bullet_lines": "of these, begun with a bullet or a hyphen",
    "ellipsis_lines": "of these, ended with an ellipsis",
    "c4_lines": "lines that C4 keeps, whatever they end with",
    "c4_sentences": "sentences on them",
    "c4_lorem_lines": "lines with `lorem ipsum` that C4 gets to read",
    "c4_curly_lines": "lines with { that C4 gets to read",
    "c4_terminal_lines": "lines that C4 keeps where it asks for terminal punctuation",
    "c4_terminal_sentences": "sentences on them",
    "c4_terminal_lorem_lines": "lines with terminal punctuation and `lorem ipsum` that C4 gets to read",
    "c4_terminal_curly_lines": "lines with terminal punctuation and { that C4 gets to read",
    "words": "words",
    "word_characters": "characters of words",
    "plain_words": "words with a character that is no punctuation",
    "plain_word_characters": "characters of these",
    "letter_words": "words with a letter",
    "glued_word_characters": "characters of words of more than 200 characters",
    "stop_words_en": "how many of Gopher's eight English words occur",
    "stop_words_zh": "how many of FineWeb2's Chinese words occur",
    "repeated_8_grams": "runs of 8 words that stood before",
    "top_2_gram_characters": "characters of the most frequent run of 2 words, at all its places",
    "top_3_gram_characters": "the same of 3 words",
    "top_4_gram_characters": "the same of 4 words",
    "duplicate_5_gram_characters": "characters of runs of 5 words that stood before, not overlapping",
    **{f"duplicate_{n}_gram_characters": f"the same of {n} words" for n in DUPLICATE_SIZES[1:]},
}
"""Name -> meaning, in the order of the record batch; each is an int32."""

INDEX = {name: number for number, name in enumerate(COLUMNS)}
