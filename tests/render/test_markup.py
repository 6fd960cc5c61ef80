"""Text stays text: whatever a name holds, it cannot become markup, script, or something that cannot be seen."""

import json
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadreckon.render.markup import Html, element, fragment, script_data, visible

ANYTHING = st.text(st.characters(exclude_categories=()), max_size=60)  # half surrogates as well


class Reader(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        self.text += data


def parsed(markup):
    reader = Reader()
    reader.feed(str(markup))
    reader.close()
    return reader


@given(ANYTHING, ANYTHING)
def test_text_and_attributes_come_back_as_what_they_were(text, value):
    made = element("td", text, title=value)
    made.encode()  # UTF-8 can hold it
    read = parsed(made)
    # HTML reads a carriage return as a line feed; `visible` spells it out.
    assert read.tags == [("td", [("title", visible(value))])]
    assert read.text == visible(text)


def test_markup_is_taken_as_it_is_and_text_that_looks_like_it_is_not():
    assert element("p", element("b", "<i>")) == "<p><b>&lt;i&gt;</b></p>"
    assert fragment("<", Html("<br>")) == "&lt;<br>"
    assert isinstance(fragment("a"), Html)
    assert not isinstance(Html("a") + "<script>", Html)  # joined by other means, it is text again
    assert element("td", Html("a") + "<script>") == "<td>a&lt;script&gt;</td>"


def test_attributes():
    made = element("th", "a", class_="x", aria_label='"', hidden=True, role=None, open=False)
    assert made == '<th class="x" aria-label="&quot;" hidden>a</th>'


@given(
    st.recursive(
        ANYTHING | st.integers() | st.booleans(), lambda inner: st.lists(inner) | st.dictionaries(ANYTHING, inner)
    )
)
def test_script_data_is_json_that_cannot_end_its_element(data):
    text = script_data(data)
    assert json.loads(text) == data
    assert not set("<>&\u2028\u2029") & set(text)
    assert text.isascii()


def test_what_cannot_be_seen_is_spelled_out():
    assert visible("a\u202eb\x00c\ud800d") == "a\\u202eb\\u0000c\\ud800d"
    assert visible("γ⁻¹ 模型 é\n") == "γ⁻¹ 模型 é\n"


@pytest.mark.parametrize("length", [1200, 1201, 10**6])
def test_what_is_too_long_is_cut_in_the_middle(length):
    shown = visible("a" + "b" * (length - 2) + "c")
    assert len(shown) <= 1200 + 3
    assert (shown[0], shown[-1]) == ("a", "c")
    assert ("…" in shown) == (length > 1200)
