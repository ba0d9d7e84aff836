"""Whisper's languages, by code, and the names that users may give them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from speechmill.errors import JobError, did_you_mean
from speechmill.transcribers.base import TranscriberOptions

__all__ = [
    "LANGUAGES",
    "SpokenLanguage",
    "among",
    "best",
    "chosen_languages",
    "is_other",
    "language_code",
    "share_of",
]

_TABLE = (
    "af:afrikaans am:amharic ar:arabic as:assamese az:azerbaijani ba:bashkir be:belarusian "
    "bg:bulgarian bn:bengali bo:tibetan br:breton bs:bosnian ca:catalan cs:czech cy:welsh "
    "da:danish de:german el:greek en:english es:spanish et:estonian eu:basque fa:persian "
    "fi:finnish fo:faroese fr:french gl:galician gu:gujarati ha:hausa haw:hawaiian "
    "he:hebrew hi:hindi hr:croatian ht:haitian-creole hu:hungarian hy:armenian "
    "id:indonesian is:icelandic it:italian ja:japanese jw:javanese ka:georgian kk:kazakh "
    "km:khmer kn:kannada ko:korean la:latin lb:luxembourgish ln:lingala lo:lao "
    "lt:lithuanian lv:latvian mg:malagasy mi:maori mk:macedonian ml:malayalam mn:mongolian "
    "mr:marathi ms:malay mt:maltese my:burmese ne:nepali nl:dutch nn:nynorsk no:norwegian "
    "oc:occitan pa:punjabi pl:polish ps:pashto pt:portuguese ro:romanian ru:russian "
    "sa:sanskrit sd:sindhi si:sinhala sk:slovak sl:slovenian sn:shona so:somali "
    "sq:albanian sr:serbian su:sundanese sv:swedish sw:swahili ta:tamil te:telugu tg:tajik "
    "th:thai tk:turkmen tl:tagalog tr:turkish tt:tatar uk:ukrainian ur:urdu uz:uzbek "
    "vi:vietnamese yi:yiddish yo:yoruba yue:cantonese zh:chinese"
)

LANGUAGES: Final[Mapping[str, str]] = MappingProxyType(
    dict(entry.split(":") for entry in _TABLE.split())
)
"""Whisper's code → the language's English name, in lower case."""

_ALSO = {  # other codes and names that users write
    "jv": "jw",
    "nb": "no",
    "mandarin": "zh",
    "castilian": "es",
    "flemish": "nl",
    "farsi": "fa",
}

_KIN: Final = ("no nn", "bs hr sr", "id ms", "hi ur", "zh yue", "cs sk", "gl pt", "nl af")
"""Languages, by code, that sound so much alike that none is taken for another than was told."""

OTHER_PROBABILITY: Final = 0.7
"""Speech is in another language than was told if that one is at least so likely, …"""
OTHER_SHARE: Final = 0.1
"""… and the one that was told less than this."""


@dataclass(frozen=True, slots=True)
class SpokenLanguage:
    """A language's code, and its probability; None where it was given or there is no choice.

    ``heard`` is the one that was heard, None where nobody listened for it, and ``flags`` say what
    is suspicious about it.
    """

    language: str
    probability: float | None
    heard: str | None = None
    flags: tuple[str, ...] = ()


def language_code(language: str, spoken: Collection[str], model: str) -> str:
    """Find Whisper's code of a language that is given by code or English name, in any case.

    Args:
        language: such as ``en``, ``English`` or ``pt-BR`` (of which the region is left out).
        spoken: the codes that the model knows.
        model: the model's name, for the message.

    Raises:
        JobError: there is no such language, or the model does not know it.
    """
    word = language.strip().lower().replace("_", "-").replace(" ", "-")
    names = {name: code for code, name in LANGUAGES.items()} | _ALSO
    code = names.get(word, word)
    if code not in LANGUAGES:
        code = code.partition("-")[0]
    if code in spoken:
        return code
    if code in LANGUAGES:
        english = set(spoken) == {"en"}
        kind = "an English-only model" if english else "a model without it"
        other = f"; take {model.removesuffix('.en')!r}" if model.endswith(".en") else ""
        raise JobError(
            f"the model {model!r} cannot transcribe {LANGUAGES[code]} ({code!r}): "
            f"it is {kind}{other}"
        )
    meant = did_you_mean(word, [*names, *LANGUAGES])
    raise JobError(
        f"there is no language {language!r}{meant} the model {model!r} knows: "
        f"{', '.join(sorted(spoken))}"
    )


def chosen_languages(
    options: TranscriberOptions, spoken: Collection[str], model: str, *, multilingual: bool
) -> tuple[str | None, tuple[str, ...]]:
    """Resolve the language that the options tell, and those that they allow, to a model's codes.

    Raises:
        JobError: the model does not know one, the two exclude each other, or it cannot translate.
    """
    told = options.language
    language = None if told is None else language_code(told, spoken, model)
    allowed = tuple(sorted({language_code(one, spoken, model) for one in options.languages}))
    if language and allowed and language not in allowed:
        raise JobError(
            f"the language {language!r} is not one of those allowed: "
            f"{', '.join(allowed)}; give one or the other"
        )
    if options.task == "translate" and not multilingual:
        raise JobError(
            f"the model {model!r} cannot translate: it is an English-only model; "
            f"take {model.removesuffix('.en')!r}"
        )
    return language, allowed


def among(allowed: Sequence[str], probabilities: Mapping[str, float]) -> dict[str, float]:
    """Normalise probabilities over the languages that are allowed; all are if none is named."""
    if not allowed:
        return dict(probabilities)
    total = sum(probabilities[code] for code in allowed) or 1.0
    return {code: probabilities[code] / total for code in allowed}


def best(probabilities: Mapping[str, float]) -> tuple[str, float]:
    """Choose the most probable language; returns its code and probability."""
    code = max(probabilities, key=lambda code: probabilities[code])
    return code, probabilities[code]


def share_of(language: str, probabilities: Mapping[str, float]) -> float:
    """Sum the probabilities of a language and of those that sound like it."""
    kin = next((group.split() for group in _KIN if language in group.split()), [language])
    return sum(probabilities.get(code, 0.0) for code in kin)


def is_other(language: str, probabilities: Mapping[str, float]) -> bool:
    """Whether speech of these probabilities is surely in another language."""
    _, highest = best(probabilities)
    return highest >= OTHER_PROBABILITY and share_of(language, probabilities) < OTHER_SHARE
