"""Stop texts: equal to a plain search over the whole text, however it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.codec.stop import StopMatcher

LETTERS = "abあ🙂"
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=5), max_size=4)


def run(stops, pieces):
    """Everything given out, and the hit."""
    matcher = StopMatcher(stops)
    out = ""
    for piece in pieces:
        emitted, hit = matcher.push(piece)
        out += emitted
        if hit is not None:
            return out, hit
        assert matcher.num_held_chars < max(map(len, stops), default=1)
    return out + matcher.flush(), None


def search(stops, text):
    """By definition: the occurrence that ends first, the longest of those."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            hit = max(ending, key=len)
            return text[: end - len(hit)], hit
    return text, None


@st.composite
def cut_text(draw):
    text = draw(st.text(LETTERS, max_size=40))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(STOPS, cut_text())
def test_however_the_text_is_cut_it_equals_a_search_over_the_whole(stops, pieces):
    assert run(stops, pieces) == search(stops, "".join(pieces))


@given(STOPS, st.text(LETTERS, max_size=30))
def test_what_is_given_out_early_never_has_to_be_taken_back(stops, text):
    matcher, out = StopMatcher(stops), ""
    for char in text:
        emitted, hit = matcher.push(char)
        out += emitted
        if hit is not None:
            break
    final, _ = search(stops, text)
    assert final.startswith(out)


@given(STOPS, cut_text())
def test_every_character_is_held_only_while_it_may_begin_a_stop(stops, pieces):
    matcher, seen, out = StopMatcher(stops), "", ""
    for piece in pieces:
        seen += piece
        emitted, hit = matcher.push(piece)
        out += emitted
        if hit is not None:
            return
        held = seen[len(out) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "want"),
    [
        (["</s>"], ["hel", "lo<", "/s", ">x"], ("hello", "</s>")),
        (["</s>"], ["a<", "/", "b"], ("a</b", None)),
        (["abcd", "bc"], ["a", "b", "c", "d"], ("a", "bc")),
        (["bc", "abc"], ["xabc"], ("x", "abc")),
        (["aab"], ["a", "a", "a", "b"], ("a", "aab")),
        (["\n\n"], ["one\n", "two\n", "\nthree"], ("one\ntwo", "\n\n")),
        (["é🙂"], ["caf", "é", "🙂"], ("caf", "é🙂")),
        ([], ["all", " of it"], ("all of it", None)),
    ],
)
def test_known_cases(stops, pieces, want):
    assert run(stops, pieces) == want


def test_nothing_comes_out_after_a_hit():
    matcher = StopMatcher(["b"])
    assert matcher.push("abc") == ("a", "b")
    assert matcher.push("more") == ("", "b")
    assert matcher.flush() == ""


def test_stops_that_end_too_early_are_let_pass():
    matcher = StopMatcher(["ab", "b!"])
    assert matcher.push("xab", may_hit=False) == ("xa", None)
    assert matcher.push("!c") == ("", "b!")


def test_a_stop_let_pass_does_not_hide_one_that_follows():
    matcher = StopMatcher(["aa"])
    assert matcher.push("aa", may_hit=False) == ("a", None)
    assert matcher.push("a") == ("", "aa")


@given(STOPS, st.text(LETTERS, max_size=20), st.text(LETTERS, max_size=20))
def test_a_hit_counts_when_it_ends_after_the_minimum(stops, early, late):
    matcher = StopMatcher(stops)
    out, _ = matcher.push(early, may_hit=False)
    assert matcher.num_held_chars < max(map(len, stops), default=1)
    emitted, hit = matcher.push(late)
    text = early + late
    for end in range(len(early) + 1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            assert hit == max(ending, key=len)
            assert out + emitted == text[: end - len(hit)]
            return
    assert hit is None
    assert out + emitted + matcher.flush() == text


def test_an_empty_stop_is_refused():
    with pytest.raises(ValueError, match="empty"):
        StopMatcher([""])
