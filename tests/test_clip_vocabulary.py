"""The tags file: its format, what counts as one tag, and the built-in list."""

from pathlib import Path

import pytest

from clip_service import vocabulary
from clip_service.vocabulary import (
    VocabularyError,
    VocabularyTag,
    default_prompts,
    load_vocabulary,
    parse_vocabulary,
)


def names(text: str) -> list[str]:
    return [tag.name for tag in parse_vocabulary(text)]


def by_name(text: str) -> dict[str, VocabularyTag]:
    return {tag.name: tag for tag in parse_vocabulary(text)}


def test_one_tag_a_line_with_comments_blanks_and_facets() -> None:
    text = "# a list\n\n[subject]\n  old   castle \r\n[mood]\ncalm\n#calmer\n"

    assert names(text) == ["old castle", "calm"]


def test_a_tag_is_encoded_in_the_sentences_of_its_facet() -> None:
    tags = by_name("surreal\n[Style]\ncubist\n[what nobody knows]\nodd")

    assert tags["cubist"].prompts == ("a cubist style artwork", "digital art in cubist style", "cubist")
    assert tags["surreal"].prompts == ("a photo of surreal", "a picture of surreal", "surreal")
    assert tags["odd"].prompts == default_prompts("odd") == ("a photo of odd", "a picture of odd", "odd")


def test_synonyms_join_the_sentences_of_their_tag() -> None:
    [tag] = parse_vocabulary("car = automobile, Motor-Car, car, motor car")

    assert tag.name == "car"
    assert tag.prompts == (
        "a photo of car",
        "a picture of car",
        "car",
        "a photo of automobile",
        "a photo of Motor-Car",
    )


def test_braces_in_a_tag_are_only_braces() -> None:
    assert default_prompts("{0} {}")[2] == "{0} {}"


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ("Dog", "dog"),
        ("sci-fi", "sci fi"),
        ("old  town", "Old_Town"),
        ("ﬁre", "fire"),  # a ligature
        ("tree", "trees"),
        ("trees", "tree"),
        ("palm tree", "palm trees"),
        ("box", "boxes"),
        ("beach", "beaches"),
        ("city", "cities"),
        ("cities", "city"),
        ("monkey", "monkeys"),
        ("hero", "heroes"),
        ("piano", "pianos"),
        ("wolf", "wolves"),
        ("old woman", "old women"),
        ("children", "child"),
        ("lens", "lenses"),
    ],
)
def test_spellings_and_plurals_are_one_tag_the_first(first: str, again: str) -> None:
    assert names(f"{first}\nother\n{again}") == [" ".join(first.split()), "other"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("glass", "glasses"),
        ("series", "serie s"),
        ("new", "news"),
        ("blue", "blues"),
        ("wood", "woods"),
        ("orange", "oranges"),
        ("as", "ass"),
        ("bus", "bu"),
        ("clas", "class"),
        ("base", "basis"),
        ("bas", "base"),  # both could have the plural "bases"
        ("movie", "movy"),
        ("c", "cs"),
        ("1980", "1980s"),
        ("house boat", "houses boat"),
    ],
)
def test_what_only_looks_like_a_plural_stays(one: str, other: str) -> None:
    assert names(f"{one}\n{other}") == [one, other]
    assert names(f"{other}\n{one}") == [other, one]


@pytest.mark.parametrize("word", ["series", "species", "glasses", "chaos", "christmas", "canvas", "news", "cosmos"])
def test_words_that_end_like_plurals_are_kept_as_they_are(word: str) -> None:
    assert names(word) == [word]


def test_a_repeated_tag_adds_its_synonyms_to_the_first() -> None:
    [dog] = parse_vocabulary("dog\ndogs = hound")

    assert dog.prompts[3:] == ("a photo of hound",)


def test_a_tag_that_another_declares_as_its_synonym_is_no_tag_of_its_own() -> None:
    assert names("automobiles = auto\nroad\ncar = automobile\nauto") == ["road", "car"]
    assert "a photo of auto" in by_name("automobiles = auto\nroad\ncar = automobile")["car"].prompts


def test_two_tags_that_declare_each_other_leave_the_first() -> None:
    assert names("sea = ocean\nocean = sea") == ["sea"]


def test_a_tag_of_200_characters_passes_and_a_longer_one_stops_the_start() -> None:
    assert names("x" * 200) == ["x" * 200]
    with pytest.raises(VocabularyError, match=r"line 2 has a tag of more than 200 characters"):
        parse_vocabulary(f"ok\n{'x' * 201}")
    with pytest.raises(VocabularyError, match="line 1"):
        parse_vocabulary(f"ok = {'x' * 201}")


def test_synonyms_of_nothing_stop_the_start() -> None:
    with pytest.raises(VocabularyError, match="line 1 has synonyms but no tag"):
        parse_vocabulary("= hound")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "holds no tags"),
        (b"# nothing\n[subject]\n\n", "holds no tags"),
        ("größe".encode("latin-1"), "is not UTF-8 text"),
        (b"a\n= b", "line 2"),
        (b"a" * (4 * 1024 * 1024 + 1), "is larger than"),
        ("\n".join(f"t{number}" for number in range(20_001)).encode(), "more than 20000 tags"),
    ],
)
def test_an_unusable_file_stops_the_start_with_one_line(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "tags.txt"
    path.write_bytes(content)

    with pytest.raises(VocabularyError, match=sentence) as caught:
        load_vocabulary(path)

    assert str(caught.value).startswith("CLIP_TAGS_FILE: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_stop_the_start(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"^CLIP_TAGS_FILE: .* does not exist\.$"):
        load_vocabulary(tmp_path / "none.txt")
    with pytest.raises(VocabularyError, match=r"^CLIP_TAGS_FILE: .* cannot be read\.$"):
        load_vocabulary(tmp_path)


def test_a_byte_order_mark_is_not_part_of_the_first_tag(tmp_path: Path) -> None:
    path = tmp_path / "tags.txt"
    path.write_bytes("\N{ZERO WIDTH NO-BREAK SPACE}sun\n".encode())

    assert [tag.name for tag in load_vocabulary(path)] == ["sun"]


def test_the_built_in_list_is_large_lower_case_and_free_of_repetitions() -> None:
    tags = load_vocabulary(None)
    text = Path(vocabulary.__file__).with_name("tags.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "["))]

    assert len(tags) >= 800
    assert [line.partition("=")[0].strip() for line in lines] == [tag.name for tag in tags]  # nothing was folded
    assert all(tag.name == tag.name.lower() for tag in tags)
    assert text.isascii()


@pytest.mark.parametrize(
    "tag", ["fantasy", "sci-fi", "winamp skin", "icon set", "sports car", "abstract", "anime", "purple", "calm", "snow"]
)
def test_the_built_in_list_holds_what_the_site_is_about(tag: str) -> None:
    assert tag in {tag.name for tag in load_vocabulary(None)}


def test_every_facet_of_the_built_in_list_has_sentences_of_its_own() -> None:
    prompts = {tag.name: tag.prompts[0] for tag in load_vocabulary(None)}

    assert prompts["surreal"] == "a surreal style artwork"
    assert prompts["pastel"] == "a picture in pastel colors"
    assert prompts["winamp skin"] == "a screenshot of winamp skin"
    assert sum(prompt.startswith("a picture of ") for prompt in prompts.values()) == 0
