"""What looks like a secret or like a person's data: found, counted and hidden, never shown."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_NO_ADDRESS = re.compile(r"0\.0\.0\.0|127\.|255\.")  # any, this machine, masks


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _is_phone(text: str) -> bool:
    return 8 <= len(_digits(text)) <= 15


def _is_card(text: str) -> bool:
    """Tell by Luhn's sum whether digits can be the number of a card."""
    digits = _digits(text)
    if not 13 <= len(digits) <= 19 or digits[0] not in "23456" or len({*digits}) == 1:
        return False
    doubled = [2 * int(one) for one in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(one // 10 + one % 10 for one in doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """Tell by its remainder of 97 whether a text can be an IBAN."""
    compact = text.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(one, 36)) for one in compact[4:] + compact[:4])) % 97 == 1


def _is_address(text: str) -> bool:
    return not _NO_ADDRESS.match(text)


# The kind -> how it looks, and what else has to hold. The first that matches a text has it.
_KINDS: dict[str, tuple[str, Callable[[str], bool] | None]] = {
    "private key": (
        r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
        r"[\s\S]*?(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)",
        None,
    ),
    "JSON web token": (r"\beyJ[\w-]{8,}\.eyJ[\w-]{5,}\.[\w-]{5,}", None),
    "AWS key": (r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b", None),
    "GitHub token": (r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,})", None),
    "Hugging Face token": (r"\bhf_[A-Za-z0-9]{30,}\b", None),
    "OpenAI key": (r"\bsk-(?=[\w-]*\d)[\w-]{20,}", None),
    "Slack token": (r"\bxox[abeposr]-[A-Za-z0-9-]{10,}", None),
    "e-mail address": (r"\b[\w.+%-]+@[\w-]+(?:\.[\w-]+)*\.[^\W\d_]{2,}\b", None),
    "IBAN": (r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", _is_iban),
    "credit card number": (
        r"(?<![\w.-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}[ -]\d{6}[ -]\d{5})"
        r"(?![\w-]|\.\d)",
        _is_card,
    ),
    "IP address": (
        rf"(?<![\w.])(?<!version )(?:{_OCTET}\.){{3}}{_OCTET}(?![\w-]|\.\d)",
        _is_address,
    ),
    "phone number": (
        r"(?<![\w.+-])(?:\+\d{1,3}[ ./-]?(?:\(0?\)[ ]?)?(?:\(?\d{1,5}\)?[ ./-]?){1,5}\d{2,}"
        r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}([ .-])\d{3}\1\d{4}"
        r"|0\d{2,4}[ /-]\d{3,4}(?:[ -]?\d{2,4}){1,3})(?![\w-]|\.\d)",
        _is_phone,
    ),
}
_PATTERNS = [(kind, re.compile(look), check) for kind, (look, check) in _KINDS.items()]
# What every value of a kind has in it: most texts have none, and are not searched for it.
_NEEDED = {"e-mail address": "@", "private key": "PRIVATE KEY", "JSON web token": "eyJ"}


def masked(text: str) -> str:
    """Return a text with the kind of each value that was found in its place: `[e-mail address]`."""
    return _searched(text)[0]


def kinds_in(text: str) -> dict[str, int]:
    """Return how many values of each kind a text seems to hold."""
    return _searched(text)[1]


def _searched(text: str) -> tuple[str, dict[str, int]]:
    found: dict[str, int] = {}
    for kind, pattern, holds in _PATTERNS:
        if _NEEDED.get(kind, "") not in text:
            continue

        def hide(match: re.Match[str]) -> str:
            if holds is not None and not holds(match[0]):
                return match[0]
            found[kind] = found.get(kind, 0) + 1
            return f"[{kind}]"

        text = pattern.sub(hide, text)
    return text, found


def texts_in(value: Any) -> Iterator[str]:
    """Yield the texts and whole numbers in a row, however deep, without the names around them."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from texts_in(one)
    elif isinstance(value, (str, int)) and not isinstance(value, bool):
        yield str(value)


def masked_within(value: Any) -> Any:
    """Return a value with all its texts masked."""
    if isinstance(value, dict):
        return {key: masked_within(one) for key, one in value.items()}
    if isinstance(value, list):
        return [masked_within(one) for one in value]
    return masked(value) if isinstance(value, str) else value


def search(rows: Iterable[Any]) -> dict[str, tuple[int, list[int]]]:
    """Return, for each kind that was found, how often and in which rows (from 0)."""
    counts: dict[str, int] = {}
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        for kind, count in kinds_in("\n".join(texts_in(row))).items():
            counts[kind] = counts.get(kind, 0) + count
            places.setdefault(kind, []).append(place)
    return {kind: (counts[kind], places[kind]) for kind in sorted(counts)}
