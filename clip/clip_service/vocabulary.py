"""The tags to choose among: reading a tags file, folding its near duplicates, and the sentences each tag is encoded by.

Pure: no model and no network. A tags file holds one tag a line; `#` begins a comment line; a `[facet]` line sets the
facet, and with it the sentences, of the tags below it; `tag = synonym, synonym` averages the synonyms into the tag.

CLIP scores every spelling of one thing about equally, so a list that holds `dog`, `dogs` and `hound` would show all
three and push out what else is in the picture. Hence spellings, plurals and synonyms become one tag, the first.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_TAG_LENGTH = 200
MAX_TAGS = 20_000
_MAX_FILE_BYTES = 4 * 1024 * 1024
_BUILT_IN = Path(__file__).with_name("tags.txt")

# A tag is known by the mean over several sentences, which is steadier than any one of them. The words suit the facet:
# "a photo of surrealism" says little to a model that was trained on captions.
_DEFAULT_TEMPLATES = ("a photo of {}", "a picture of {}", "{}")
_TEMPLATES: dict[str, tuple[str, ...]] = {
    "subject": ("a photo of {}", "an illustration of {}", "{}"),
    "setting": ("a photo of {}", "a view of {}", "an artwork that shows {}"),
    "theme": ("{} artwork", "a {} wallpaper", "{}"),
    "style": ("a {} style artwork", "digital art in {} style", "{}"),
    "medium": ("{}", "a picture made as {}", "an example of {}"),
    "mood": ("a {} picture", "an image with a {} mood", "{} atmosphere"),
    "palette": ("a picture in {} colors", "a {} wallpaper", "{} color palette"),
    "light": ("a picture with {}", "{} photography", "{}"),
    "composition": ("a picture composed as {}", "{} photography", "{}"),
    "pattern": ("a background of {}", "a {} wallpaper", "a close-up of {}"),
    "desktop": ("a screenshot of {}", "the design of {}", "{}"),
    "occasion": ("a picture for {}", "a {} wallpaper", "{}"),
}

# Pairs that a plural rule would take for one word though they are two.
_NOT_ITS_PLURAL = frozenset(
    {
        ("arm", "arms"),
        ("blue", "blues"),
        ("custom", "customs"),
        ("fall", "falls"),
        ("glass", "glasses"),
        ("good", "goods"),
        ("graphic", "graphics"),
        ("green", "greens"),
        ("jean", "jeans"),
        ("mar", "mars"),
        ("new", "news"),
        ("orange", "oranges"),
        ("short", "shorts"),
        ("spectacle", "spectacles"),
        ("spring", "springs"),
        ("wood", "woods"),
    }
)
_IRREGULAR = {
    "child": "children",
    "foot": "feet",
    "goose": "geese",
    "leaf": "leaves",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "tooth": "teeth",
    "wolf": "wolves",
    "woman": "women",
}


class VocabularyError(ValueError):
    """The tags cannot be used; the text is one line that says why."""


@dataclass(frozen=True, slots=True)
class VocabularyTag:
    """A tag as it is answered, and the sentences whose mean vector stands for it."""

    name: str
    prompts: tuple[str, ...]


@dataclass(slots=True)
class _Entry:
    name: str
    key: str
    facet: str
    synonyms: list[str]


def load_vocabulary(path: Path | None) -> tuple[VocabularyTag, ...]:
    """The tags of a file, or the built-in ones. Raises `VocabularyError` when the file cannot be used."""
    path = path or _BUILT_IN
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as exc:
        reason = "does not exist" if isinstance(exc, FileNotFoundError) else "cannot be read"
        raise VocabularyError(f"CLIP_TAGS_FILE: {path} {reason}.") from exc
    if len(data) > _MAX_FILE_BYTES:
        raise VocabularyError(f"CLIP_TAGS_FILE: {path} is larger than {_MAX_FILE_BYTES} bytes.")
    try:
        return parse_vocabulary(data.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        raise VocabularyError(f"CLIP_TAGS_FILE: {path} is not UTF-8 text; save it as UTF-8.") from exc
    except VocabularyError as exc:
        raise VocabularyError(f"CLIP_TAGS_FILE: {path}: {exc}") from exc


def parse_vocabulary(text: str) -> tuple[VocabularyTag, ...]:
    """The tags of a file's text, in its order. Raises `VocabularyError`, which names the line."""
    entries = _fold(_entries(text))
    if not entries:
        raise VocabularyError("it holds no tags; write one tag a line.")
    if len(entries) > MAX_TAGS:
        raise VocabularyError(f"it holds more than {MAX_TAGS} tags; shorten it.")
    return tuple(
        VocabularyTag(entry.name, _prompts(entry.name, entry.synonyms, _TEMPLATES.get(entry.facet, _DEFAULT_TEMPLATES)))
        for entry in entries
    )


def default_prompts(tag: str) -> tuple[str, ...]:
    """The sentences for a tag of which nothing else is known: a caller's own."""
    return _prompts(tag, (), _DEFAULT_TEMPLATES)


def _prompts(name: str, synonyms: Iterable[str], templates: tuple[str, ...]) -> tuple[str, ...]:
    """The tag in every sentence and each synonym in one: enough to pull the mean over."""
    different = {_key(name): name}
    for synonym in synonyms:
        different.setdefault(_key(synonym), synonym)
    _, *others = different.values()
    # not str.format: a tag may hold braces
    return tuple(template.replace("{}", name) for template in templates) + tuple(
        templates[0].replace("{}", other) for other in others
    )


def _entries(text: str) -> Iterator[_Entry]:
    facet = ""
    for number, line in enumerate(text.splitlines(), start=1):
        line = " ".join(line.split())
        if not line or line.startswith("#"):
            continue
        if header := re.fullmatch(r"\[(.+)\]", line):
            facet = header[1].strip().casefold()
            continue
        name, _, listed = (part.strip() for part in line.partition("="))
        synonyms = [synonym.strip() for synonym in listed.split(",") if synonym.strip()]
        if not name:
            raise VocabularyError(f"line {number} has synonyms but no tag before the `=`.")
        if any(len(spelling) > MAX_TAG_LENGTH for spelling in (name, *synonyms)):
            raise VocabularyError(f"line {number} has a tag of more than {MAX_TAG_LENGTH} characters; shorten it.")
        yield _Entry(name, _key(name), facet, synonyms)


class _Spellings:
    """Finds an entry by its key, or by the plural or the singular of it."""

    def __init__(self) -> None:
        self._by_key: dict[str, _Entry] = {}
        self._by_plural: dict[str, _Entry] = {}

    def add(self, entry: _Entry) -> None:
        self._by_key[entry.key] = entry
        for plural in _plurals(entry.key):
            self._by_plural.setdefault(plural, entry)

    def find(self, key: str) -> _Entry | None:
        candidates = [self._by_key.get(key), self._by_plural.get(key), *map(self._by_key.get, _plurals(key))]
        return next((entry for entry in candidates if entry is not None), None)


def _fold(entries: Iterable[_Entry]) -> list[_Entry]:
    """One entry for each thing: of spellings and plurals the first, of declared synonyms the one that declares them."""
    known = _Spellings()
    kept: list[_Entry] = []
    for entry in entries:
        if (first := known.find(entry.key)) is not None:
            first.synonyms += entry.synonyms
        else:
            known.add(entry)
            kept.append(entry)

    absorbed: set[str] = set()
    for entry in kept:
        if entry.key in absorbed:
            continue
        for synonym in entry.synonyms:  # grows: what a synonym declares belongs here too
            other = known.find(_key(synonym))
            if other is not None and other is not entry and other.key not in absorbed:
                absorbed.add(other.key)
                entry.synonyms += other.synonyms
    return [entry for entry in kept if entry.key not in absorbed]


def _key(spelling: str) -> str:
    """Equal for what differs only in case, in hyphens and blanks, or in the encoding of a letter."""
    return re.sub(r"[-_\s]+", " ", unicodedata.normalize("NFKC", spelling).casefold()).strip()


def _plurals(key: str) -> set[str]:
    """What an English plural of the last word may be. From singular to plural, because the way back breaks `series`."""
    start, _, word = key.rpartition(" ")
    if len(word) < 3 or not word.isalpha():
        return set()
    if word in _IRREGULAR:
        plurals = {_IRREGULAR[word]}
    elif word.endswith(("s", "x", "z", "ch", "sh")):
        plurals = {word + "es"}
    elif word.endswith("y") and word[-2] not in "aeiou":
        plurals = {word[:-1] + "ies"}
    elif word.endswith("o"):
        plurals = {word + "s", word + "es"}
    else:
        plurals = {word + "s"}
    return {f"{start} {plural}".lstrip() for plural in plurals if (word, plural) not in _NOT_ITS_PLURAL}
