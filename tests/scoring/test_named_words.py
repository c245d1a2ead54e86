"""Which tokens' words stand in an explanation."""

import pytest

from neuroexplain.scoring.named_words import find_named, stem_of, words_of_tokens


@pytest.mark.parametrize(
    ("words", "is_same"),
    [
        (("sea", "seas"), True),
        (("Sea", "sea's"), True),
        (("city", "cities"), True),
        (("run", "running"), True),
        (("make", "making"), True),
        (("hurried", "hurry"), True),
        (("passed", "passing"), True),
        (("falls", "falling"), True),
        (("class", "classes"), True),
        (("STRASSE", "straße"), True),
        (("as", "a"), False),
        (("his", "hi"), False),
        (("class", "clas"), False),
        (("ship", "shop"), False),
        (("sing", "s"), False),
    ],
)
def test_words_are_the_same_by_their_stems(words, is_same):
    assert (len({stem_of(word) for word in words}) == 1) is is_same


def named(tokens, explanation):
    return [
        token for token, is_named in zip(tokens, find_named(tokens, explanation), strict=True) if is_named
    ]


def test_every_token_of_a_named_word_is_named():
    tokens = ["The", " run", "ning", " water", ",", " a", " sea", "'s", "\n", "sh", "ore"]
    assert named(tokens, "running water") == [" run", "ning", " water"]
    assert named(tokens, "the sea and its shores") == ["The", " sea", "'s", "sh", "ore"]
    assert named(tokens, "ore, sh") == []  # parts of a word are no word of their own
    assert named(tokens, "commas, and apostrophes '") == []


def test_a_token_may_hold_several_words():
    assert named([" New York", " Times"], "york") == [" New York"]


def test_in_scripts_without_spaces_a_token_is_a_word():
    tokens = ["東京", "は", "大きい", " big"]
    assert named(tokens, "東京, the capital") == ["東京"]
    assert named(tokens, "BIG things") == [" big"]


def test_digits_and_accents_are_letters_of_words():
    assert named([" 1961", " caf", "é", " cafe"], "1961 café") == [" 1961", " caf", "é"]


def test_each_token_has_the_word_that_it_spells_a_part_of():
    """White space has none; a token of several words, or in a script without spaces, is taken as it is."""
    words = {"The": "The", " run": "running", "ning": "running", " New York": "New York", ",": ","}
    words |= {" sea": "sea's", "'s": "sea's", "\n ": "", "東京": "東京", "は": "は", " a": "a"}
    assert words_of_tokens(list(words)) == list(words.values())
    assert words_of_tokens([]) == []


def test_a_token_of_one_word_and_a_part_of_the_next_is_taken_as_it_is():
    assert words_of_tokens([" it is", "land", " here"]) == ["it is", "island", "here"]
