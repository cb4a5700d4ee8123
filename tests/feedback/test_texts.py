import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.texts import plain_messages, prompt_json, texts_of, with_texts

MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "name": "ann", "content": [{"type": "text", "text": "Hello"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "4155550123"},
]


def test_every_string_is_text_but_the_words_of_the_api():
    assert texts_of(MESSAGES) == [
        "Be kind.", "ann", "Hello", "call_1", "f", '{"a": 1}', "call_1", "4155550123",
    ]  # fmt: skip


def test_words_of_the_api_in_other_places_are_text():
    assert texts_of([{"role": "ann@example.org", "content": "user"}]) == ["ann@example.org", "user"]


def test_unknown_names_and_long_numbers_are_text_too():
    assert texts_of({"ann@example.org": 4155550123, "n": 12345, "b": True, "x": None}) == [
        "ann@example.org", "4155550123", "n", "b", "x",
    ]  # fmt: skip
    clear = with_texts({"phone": 4155550123, "age": 41}, ["phone", "<PHONE_1>", "age"])
    assert clear == {"phone": "<PHONE_1>", "age": 41}


names = st.text(max_size=5) | st.sampled_from(["role", "content"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=5) | st.sampled_from(["role", "content"]), inner, max_size=4
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_putting_back_what_was_found_changes_nothing(value):
    assert with_texts(value, texts_of(value)) == value


@given(json_values)
def test_texts_come_back_in_the_order_they_were_found(value):
    found = texts_of(value)
    marked = [f"{place}:{text}" for place, text in enumerate(found)]
    assert texts_of(with_texts(value, marked)) == marked


def test_a_wrong_number_of_texts_is_an_error():
    for texts in (["a"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match="texts came back"):
            with_texts(["x", "y"], texts)


def test_a_prompt_for_training_is_role_and_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert plain_messages([{"role": "user", "name": "ann", "content": parts}]) == [
        {"role": "user", "content": "a\nb"}
    ]
    assert plain_messages(MESSAGES) is None  # a tool call is more than text
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    assert plain_messages([{"role": "user", "content": image}]) is None
    assert prompt_json(plain_messages({"prompt": "é"})) == '{"prompt":"é"}'
