from __future__ import annotations

import math

from gradbase.tables.match import _text


def test_spelling_is_evened_out():
    assert _text.normalise("  Café `L'Étoile'  ") == "cafe letoile"
    assert _text.normalise("-") == _text.normalise(None) == ""


def test_tokens_keep_fractions_and_units():
    assert _text.tokens("7.1 megapixel, 500gb d-link") == ["7.1", "megapixel", "500gb", "d", "link"]


def test_tokens_of_other_scripts():
    assert _text.tokens(_text.normalise("Москва 東京")) == ["москва", "東京"]


def test_numbers_are_compared_by_value():
    assert _text.numbers("8.70 % of 10") == ["8.7", "10"]
    assert _text.single_number("1,299.00") == 1299.0
    assert math.isnan(_text.single_number("3 of 4")) and math.isnan(_text.single_number("none"))


def test_codes_have_a_digit_and_lose_their_punctuation():
    assert _text.codes("belkin f8n044-slv for 13 in. macbook") == ["f8n044slv"]
    assert _text.squeezed("f8n044-slv!") == "f8n044slv"


def test_grams_mark_the_ends_of_tokens():
    assert _text.grams("abc") == [" ab", "abc", "bc "]
