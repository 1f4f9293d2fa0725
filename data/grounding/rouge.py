"""ROUGE F-measures with stemming and the word error rate, equal to rouge_score 0.1 on English text. No torch.

    ROUGE-n   F1 of the n-grams that two texts share, with repetitions
    ROUGE-L   F1 of the longest common subsequence

Text is lower-cased and cut at everything but a-z and 0-9; words longer than three letters are reduced by Porter's
algorithm with the extensions of NLTK, which rouge_score uses.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter

VOWELS = "aeiou"
IRREGULAR = {
    "sky": "sky", "skies": "sky", "dying": "die", "lying": "lie", "tying": "tie", "news": "news", "inning": "inning",
    "innings": "inning", "outing": "outing", "outings": "outing", "canning": "canning", "cannings": "canning",
    "howe": "howe", "proceed": "proceed", "exceed": "exceed", "succeed": "succeed",
}  # fmt: skip
STEP2 = (
    ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"), ("bli", "ble"),
    ("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"), ("ization", "ize"), ("ation", "ate"),
    ("ator", "ate"), ("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al"),
    ("iviti", "ive"), ("biliti", "ble"), ("fulli", "ful"),
)  # fmt: skip
STEP3 = (
    ("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", ""),
)  # fmt: skip
STEP4 = (
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate", "iti",
    "ous", "ive", "ize",
)  # fmt: skip


def rouge(reference: str, answer: str) -> dict[str, float]:
    """rouge1, rouge2 and rougeL, each an F1 in [0, 1]; 0 where one text has nothing to compare."""
    a, b = stemmed_words(reference), stemmed_words(answer)
    scores = {}
    for n in (1, 2):
        left, right = _grams(a, n), _grams(b, n)
        # The smaller of both counts of each n-gram: repetitions count as often as both texts have them.
        shared = left & right
        scores[f"rouge{n}"] = _f1(shared.total(), left.total(), right.total())
    return scores | {"rougeL": _f1(common_subsequence(a, b), len(a), len(b))}


def _grams(text: list[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each run of n words stands in the text."""
    starts = range(len(text) - n + 1)
    return Counter(tuple(text[start : start + n]) for start in starts)


def word_error_rate(reference: str, answer: str) -> float:
    """Edits (insert, delete, replace a word) per word of the reference; can exceed 1."""
    a, b = reference.split(), answer.split()
    # One row of the edit table: row[j] is the distance from the words of `a` so far to the first j of `b`.
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            replaced = diagonal + (word != other)
            deleted, inserted = row[j] + 1, row[j - 1] + 1
            diagonal, row[j] = row[j], min(replaced, deleted, inserted)
    return row[-1] / max(1, len(a))


def stemmed_words(text: str) -> list[str]:
    """Stemmed words of a text."""
    found = re.findall("[a-z0-9]+", text.lower())
    # Short words stay as they are: rouge_score's rule, not Porter's.
    return [stem(word) if len(word) > 3 else word for word in found]


def common_subsequence(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0  # what row[j - 1] was before this word
        for j, other in enumerate(b, 1):
            longest = diagonal + 1 if word == other else max(row[j], row[j - 1])
            diagonal, row[j] = row[j], longest
    return row[-1]


def stem(word: str) -> str:
    """Porter's stem of a lower-case word, with NLTK's extensions."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    for step in (_plural, _past, _final_y, _step2, _step3, _step4, _final_e, _double_l):
        word = step(word)
    return word


def _f1(shared: int, left: int, right: int) -> float:
    return 2 * shared / (left + right) if shared else 0.0


def _consonant(word: str, place: int) -> bool:
    # y is a vowel behind a consonant ("happy") and a consonant elsewhere ("toy", "yes").
    if word[place] == "y":
        return place == 0 or not _consonant(word, place - 1)
    return word[place] not in VOWELS


def _measure(part: str) -> int:
    """How often a vowel is followed by a consonant."""
    kinds = [_consonant(part, i) for i in range(len(part))]
    return sum(not before and after for before, after in itertools.pairwise(kinds))


def _has_vowel(part: str) -> bool:
    return any(not _consonant(part, i) for i in range(len(part)))


def _doubled(word: str) -> bool:
    return len(word) >= 2 and word[-1] == word[-2] and _consonant(word, len(word) - 1)


def _short_end(word: str) -> bool:
    """Consonant, vowel, consonant other than w, x, y; or a word of a vowel and a consonant."""
    if len(word) == 2:
        return not _consonant(word, 0) and _consonant(word, 1)
    if len(word) < 3:
        return False
    # In the whole word, not in its last three letters: what y is depends on the letter before.
    kinds = [_consonant(word, len(word) - i) for i in (3, 2, 1)]
    return kinds == [True, False, True] and word[-1] not in "wxy"


def _plural(word: str) -> str:
    if word.endswith("ies") and len(word) == 4:
        return word[:-3] + "ie"  # dies, ties: an extension of NLTK
    # The longest ending decides, so the order counts; "ss" stands there to keep its s.
    for suffix, new in (("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")):
        if word.endswith(suffix):
            return word[: len(word) - len(suffix)] + new
    return word


def _past(word: str) -> str:
    if word.endswith("ied"):
        return word[:-3] + ("ie" if len(word) == 4 else "i")
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    part = _without(word, "ed") or _without(word, "ing")
    if part is None:
        return word
    # hoping -> hop -> hope: what was lost before the ending comes back.
    if part.endswith(("at", "bl", "iz")):
        return part + "e"
    if _doubled(part):
        return part if part[-1] in "lsz" else part[:-1]
    return part + "e" if _measure(part) == 1 and _short_end(part) else part


def _without(word: str, end: str) -> str | None:
    """The word without an ending, if it has the ending and a vowel before it."""
    part = word.removesuffix(end)
    return part if part != word and _has_vowel(part) else None


def _final_y(word: str) -> str:
    if word.endswith("y") and len(word) > 2 and _consonant(word, len(word) - 2):
        return word[:-1] + "i"
    return word


def _step2(word: str) -> str:
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        return _step2(
            word[:-2]
        )  # "alli" becomes "al" and may match once more: an extension of NLTK
    for suffix, new in STEP2:
        if word.endswith(suffix):
            return _replaced(word, suffix, new)
    if word.endswith("logi"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    return word


def _step3(word: str) -> str:
    for suffix, new in STEP3:
        if word.endswith(suffix):
            return _replaced(word, suffix, new)
    return word


def _replaced(word: str, suffix: str, new: str) -> str:
    """The word with a new ending, if enough is left before it; a suffix that matches ends the search either way."""
    part = word.removesuffix(suffix)
    return part + new if _measure(part) > 0 else word


def _step4(word: str) -> str:
    for suffix in STEP4:
        if word.endswith(suffix):
            part = word.removesuffix(suffix)
            # "ion" goes only behind s or t: adoption, but not champion.
            goes = suffix != "ion" or part[-1:] in ("s", "t")
            return part if goes and _measure(part) > 1 else word
    return word


def _final_e(word: str) -> str:
    if not word.endswith("e"):
        return word
    part = word[:-1]
    size = _measure(part)
    # rate keeps its e, cease loses it.
    drops = size > 1 or (size == 1 and not _short_end(part))
    return part if drops else word


def _double_l(word: str) -> str:
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word
