"""How the drawn world is put into words: captions, tags with synonyms, and free descriptions.

A `Text` carries the words and the set of facts they claim, so that training knows every picture a
text is true of, not only the one it was written for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from world import Scene

Fact = tuple[str, str]
"""(facet, value); an object with a colour is the fact ("object", "red balloon")."""

SYNONYMS: dict[str, dict[str, tuple[str, ...]]] = {
    "sky": {
        "day": ("clear day", "daytime", "blue sky"),
        "sunset": ("dusk", "sunset sky"),
        "night": ("night sky", "starry night", "nighttime"),
        "storm": ("thunderstorm", "stormy sky", "lightning"),
        "fog": ("mist", "foggy weather"),
        "aurora": ("northern lights", "polar lights"),
        "rainbow": ("rainbow sky",),
    },
    "land": {
        "mountains": ("mountain", "snowy peaks"),
        "sea": ("ocean", "water"),
        "desert": ("sand dunes", "dunes"),
        "forest": ("woods", "fir trees"),
        "city": ("skyline", "skyscrapers", "town"),
        "meadow": ("grassland", "flower field"),
        "snow": ("snowy hills", "winter landscape"),
        "canyon": ("red rocks", "mesas"),
    },
    "object": {
        "sun": (),
        "moon": (),
        "tree": ("leafy tree",),
        "house": ("cottage",),
        "boat": ("sailboat", "ship"),
        "bird": (),
        "car": ("automobile",),
        "balloon": ("hot air balloon",),
        "plane": ("airplane", "aircraft"),
        "windmill": (),
        "lighthouse": (),
        "tent": ("camping tent",),
        "castle": ("fortress",),
    },
    "style": {
        "flat": ("flat design", "minimal"),
        "grainy": ("film grain", "noisy"),
        "line art": ("line drawing", "outline drawing"),
        "pixel art": ("8 bit", "pixelated"),
        "neon": ("neon glow", "glowing"),
        "watercolor": ("aquarelle", "watercolour"),
    },
}

SKY_PHRASE: dict[str, str] = {
    "day": "on a clear day",
    "sunset": "at sunset",
    "night": "at night",
    "storm": "in a storm",
    "fog": "in the fog",
    "aurora": "under the aurora",
    "rainbow": "under a rainbow",
}
SKY_SUBJECT: dict[str, str] = {
    "day": "a clear day",
    "sunset": "sunset",
    "night": "night",
    "storm": "a storm",
    "fog": "fog",
    "aurora": "the aurora",
    "rainbow": "a rainbow",
}
LAND_PHRASE: dict[str, str] = {
    "mountains": "the mountains",
    "sea": "the sea",
    "desert": "the desert",
    "forest": "the forest",
    "city": "the city",
    "meadow": "the meadow",
    "snow": "the snow",
    "canyon": "the canyon",
}
LAND_START: dict[str, str] = {
    "mountains": "mountains",
    "sea": "the sea",
    "desert": "a desert",
    "forest": "a forest",
    "city": "a city",
    "meadow": "a meadow",
    "snow": "snow",
    "canyon": "a canyon",
}
_NEAR: dict[str, str] = {
    "mountains": "in",
    "sea": "on",
    "meadow": "on",
    "snow": "in",
    "desert": "in",
    "forest": "in",
    "city": "in",
    "canyon": "in",
}
_ABOVE = frozenset({"sun", "moon", "bird", "balloon", "plane"})

TEMPLATES: tuple[str, ...] = (
    "{}",
    "a {}",
    "the {}",
    "a photo of {}",
    "a photo of a {}",
    "a photo of the {}",
    "a picture of {}",
    "a picture of a {}",
    "an image of {}",
    "an image of a {}",
    "a wallpaper of {}",
    "a wallpaper of a {}",
    "a wallpaper with {}",
    "a wallpaper with a {}",
    "{} wallpaper",
    "a {} wallpaper",
    "a painting of {}",
    "a drawing of {}",
    "a drawing of a {}",
    "an illustration of {}",
    "artwork of {}",
    "a scene with {}",
    "a scene with a {}",
    "a {} scene",
    "a landscape with {}",
    "{} background",
    "a desktop background of {}",
    "{} in the picture",
    "there is a {} in the picture",
    "a view of {}",
    "a view of the {}",
    "{} art",
)
FACET_TEMPLATES: dict[str, tuple[str, ...]] = {
    "sky": (
        "at {}",
        "in {}",
        "under {}",
        "a {} sky",
        "a landscape at {}",
        "{} sky",
        "a photo taken at {}",
        "a scene at {}",
        "{} landscape",
        "a wallpaper at {}",
        "{} weather",
        "a sky with {}",
    ),
    "land": (
        "a {} landscape",
        "{} landscape",
        "in the {}",
        "a place in the {}",
        "a landscape of {}",
        "{} scenery",
        "a photo taken in the {}",
        "nature {}",
    ),
    "object": (
        "one {}",
        "a photo with a {}",
        "a big {}",
        "a small {}",
        "a close up of a {}",
        "with a {}",
        "a photo of one {}",
        "some {}",
        "a {} in the distance",
    ),
    "style": (
        "in {} style",
        "a picture in {} style",
        "a wallpaper in {} style",
        "{} style",
        "a {} picture",
        "a {} painting",
        "a {} illustration",
        "a {} drawing",
        "a {} image",
        "a wallpaper in the style of {}",
        "a {} style wallpaper",
        "an artwork in {} style",
    ),
}
FILLERS: tuple[str, ...] = (
    "beautiful",
    "nice",
    "hd",
    "4k",
    "high quality",
    "big",
    "pretty",
    "lonely",
    "digital",
    "phone",
    "of",
    "in",
    "my",
    "best",
    "cool",
    "good",
    "bright",
    "free",
)
_OTHER_WORDS = (
    "and near by to for from is are this that it its some two three large little close up render "
    "low resolution quality bad dark cropped blurry colorful color colour style sky skies clouds "
    "sunrise evening morning orange pink black gray grey brown beach hill hills field grass winter "
    "summer rain snowing peak peaks rock rocks building buildings street trees birds boats cars "
    "houses balloons planes flying sailing standing driving camping anime cartoon abstract "
    "minimalist people person man woman dog cat show me find without next"
)


@dataclass(frozen=True)
class Text:
    """Words and every fact they claim."""

    words: str
    facts: frozenset[Fact]


def article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def facts(scene: Scene) -> frozenset[Fact]:
    """Everything true of a scene that a text may claim."""
    found: set[Fact] = {("sky", scene.sky), ("land", scene.land), ("style", scene.style)}
    for thing in scene.things:
        found.add(("object", thing.kind))
        found.add(("object", thing.words))
    return frozenset(found)


def captions(scene: Scene) -> list[str]:
    """The scene in several phrasings; each names sky, land and main object."""
    thing, kind = scene.main.words, scene.main_object
    some = f"the {thing}" if kind in ("sun", "moon") else article(thing)
    near = "over" if kind in _ABOVE else _NEAR[scene.land]
    when, where = SKY_PHRASE[scene.sky], LAND_PHRASE[scene.land]
    return [
        f"{LAND_START[scene.land]} {when} with {some}",
        f"{some} {near} {where} {when}",
        f"{SKY_SUBJECT[scene.sky]} over {where} with {some}",
        f"{scene.style} picture of {where} {when} with {some}",
    ]


def named(caption: str) -> dict[str, str]:
    """What a caption names, per facet; an object comes without its colour."""
    words = caption.lower()
    said: dict[str, str] = {}
    for facet in ("sky", "land", "object", "style"):
        for tag in SYNONYMS[facet]:
            if re.search(rf"\b{re.escape(tag)}\b", words):
                said.setdefault(facet, tag)
    return said


def tag_text(rng: Random, facet: str, tag: str) -> str:
    """One tag, or a synonym of it, in one of the templates."""
    name = rng.choice((tag, tag, *SYNONYMS[facet][tag]))
    # Half of the time from the general templates: a caller may not know the facet.
    pool = TEMPLATES if rng.random() < 0.6 else FACET_TEMPLATES[facet]
    return rng.choice(pool).format(name)


def _name(rng: Random, facet: str, tag: str, plain: float = 0.6) -> str:
    return tag if rng.random() < plain or not SYNONYMS[facet][tag] else rng.choice(SYNONYMS[facet][tag])


def describe(rng: Random, scene: Scene) -> Text:
    """A random description: a full caption, a tag, or a query of two or three facts."""
    sky: Fact = ("sky", scene.sky)
    land: Fact = ("land", scene.land)
    style: Fact = ("style", scene.style)
    thing = rng.choice((scene.main, *scene.things))
    what = thing.words if rng.random() < 0.6 else thing.kind
    item: Fact = ("object", what)
    lot = rng.random()
    if lot < 0.3:
        index = rng.randrange(4)
        claimed = {sky, land, ("object", scene.main.words), ("object", scene.main_object)}
        return Text(captions(scene)[index], frozenset(claimed | ({style} if index == 3 else set())))
    sky_name, land_name = _name(rng, *sky), _name(rng, *land)
    style_name = _name(rng, *style)
    thing_name = what if what != thing.kind else _name(rng, "object", thing.kind)
    when = SKY_PHRASE[scene.sky] if rng.random() < 0.7 else f"{rng.choice(('at', 'in', 'with', 'under'))} {sky_name}"
    where = f"the {land_name}"
    some = article(thing_name)
    over = rng.choice(("over", "above")) if thing.kind in _ABOVE else rng.choice(("in", "on", "near", "by"))
    choices: list[tuple[str, set[Fact]]] = [
        (tag_text(rng, *sky), {sky}),
        (tag_text(rng, *land), {land}),
        (tag_text(rng, *style), {style}),
        (tag_text(rng, "object", thing.kind), {("object", thing.kind)}),
        (what, {item}),
        (some, {item}),
        (f"{sky_name} {land_name}", {sky, land}),
        (f"{land_name} {when}", {sky, land}),
        (f"{LAND_START[scene.land]} {when}", {sky, land}),
        (f"{sky_name} over {where}", {sky, land}),
        (f"{some} {over} {where}", {item, land}),
        (f"{thing_name} {land_name}", {item, land}),
        (f"{some} {when}", {item, sky}),
        (f"{some} {over} {where} {when}", {item, land, sky}),
        (f"{thing_name} {land_name} {sky_name}", {item, land, sky}),
        (f"{style_name} {land_name}", {style, land}),
        (f"{style_name} {sky_name}", {style, sky}),
        (f"{style_name} {thing_name}", {style, item}),
        (f"{style_name} {land_name} {when}", {style, land, sky}),
        (f"{land_name} {when} in {style_name} style", {style, land, sky}),
        (f"{land_name} with {some}", {item, land}),
        (f"{sky_name} {land_name} with {some}", {item, land, sky}),
    ]
    words, claimed = rng.choice(choices)
    if rng.random() < 0.2:
        words = rng.choice(TEMPLATES).format(words)
    if rng.random() < 0.1:
        parts = words.split()
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(FILLERS))
        words = " ".join(parts)
    if len(claimed & {item}) and what != thing.kind:
        claimed = claimed | {("object", thing.kind)}
    return Text(words, frozenset(claimed))


def vocabulary() -> list[str]:
    """Every word the world speaks, sorted; the models' tokenizers are made of these."""
    from world import COLOURS

    sources = [
        *TEMPLATES,
        *FILLERS,
        *COLOURS,
        _OTHER_WORDS,
        *SKY_PHRASE.values(),
        *SKY_SUBJECT.values(),
        *LAND_PHRASE.values(),
        *LAND_START.values(),
        *_NEAR.values(),
        "over above with the on near by",
    ]
    for templates in FACET_TEMPLATES.values():
        sources += templates
    for tags in SYNONYMS.values():
        for tag, others in tags.items():
            sources += [tag, *others]
    return sorted({word for source in sources for word in re.findall(r"[a-z0-9]+", source.lower())})
