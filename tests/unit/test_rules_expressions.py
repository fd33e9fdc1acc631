"""The expression language: what it can say, what it refuses, and that it never fails on a message."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sources.expressions import BadExpression, compile_expression, is_constant
from gateway.sources.values import text, word

OPTIONS = {"zones": ("yard", "drive"), "labels": (), "min_score": 0.5}

MESSAGE = {
    "type": "new",
    "n": 3,
    "half": Decimal("0.50"),
    "quoted": "0.75",
    "yes": True,
    "nothing": None,
    "zones": ["street", "yard"],
    "objects": [{"label": "car", "score": Decimal("0.9")}, {"label": "person", "score": Decimal("0.3")}],
    "with space": {"in": 1},
}


def evaluate(source: str, payload: Any = MESSAGE) -> Any:
    compiled = compile_expression(source, captures=frozenset({"camera"}), options=OPTIONS)
    return compiled(payload, {"camera": "front", "all": "a/front"}, None)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("payload.type", "new"),
        ("payload.after.type", None),
        ("payload.type.x", None),
        ("payload['with space']['in']", 1),
        ("payload.zones[0]", "street"),
        ("payload.zones[7]", None),
        ("payload.type[0]", None),
        ("topic.camera", "front"),
        ("topic.all", "a/front"),
        ("payload.type == 'new'", True),
        ("payload.type != 'new'", False),
        ("payload.zones == 'new'", False),
        ("payload.zones == payload.zones", False),
        ("payload.yes == 1", False),
        ("payload.yes == True", True),
        ("payload.nothing == None", True),
        ("payload.missing != None", False),
        ("payload.n < 4", True),
        ("payload.quoted >= 0.75", True),
        ("payload.type > 1", False),
        ("payload.missing < 1", False),
        ("payload.yes > 0", False),
        ("payload.half == 0.5", True),
        ("payload.n > -1", True),
        ("payload.type in ['new', 'update']", True),
        ("payload.type not in ['end']", True),
        ("'yard' in payload.zones", True),
        ("'yard' in payload.type", False),
        ("payload.zones in ['new']", False),
        ("any(z in options.zones for z in payload.zones)", True),
        ("all(z in options.zones for z in payload.zones)", False),
        ("any(o.label == 'person' and o.score >= 0.6 for o in payload.objects)", False),
        ("any(o.label == 'car' and o.score >= 0.6 for o in payload.objects)", True),
        ("any(z == 'x' for z in payload.type)", False),
        ("not payload.type == 'new'", False),
        ("payload.nothing or payload.n == 3 or payload.n == 4", True),
        ("payload.n == 3 and payload.yes == True and payload.type == 'end'", False),
        ("'a' if payload.n == 3 else 'b'", "a"),
        ("payload.type if options.labels else payload.n", 3),
        ("options.zones and options.min_score", True),
        ("coalesce(payload.nothing, payload.missing, payload.n)", 3),
        ("word(payload.yes)", "true"),
        ("number(payload.quoted) == 0.75", True),
        ("overlaps(options.zones, payload.zones)", True),
        ("overlaps(options.zones, 'yard')", True),
        ("overlaps(options.zones, payload.n)", False),
        ("words(payload.zones, payload.missing, 'street', 'alley')", "alley+street+yard"),
        ("words(payload.missing)", None),
        ("texts(payload.zones)", ["street", "yard"]),
        ("without_suffix(payload.zones, 'eet')", ["str", "yard"]),
        ("without_suffix('person-verified', '-verified')", "person"),
        ("options.min_score <= payload.half", True),
    ],
)
def test_what_an_expression_says(source: str, value: Any) -> None:
    assert evaluate(source) == value
    assert type(evaluate(source)) is type(value)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "payload.",
        "__import__('os')",
        "open('/etc/passwd')",
        "payload.__class__.__mro__",
        "().__class__",
        "(lambda: 1)()",
        "[x for x in payload.zones for y in payload.zones]",
        "payload.a + 1",
        "payload.a ** payload.b",
        "f'{payload.a}'",
        "payload.a < 1 < 2",
        "payload[payload.a]",
        "payload[True]",
        "payload.zones[-1]",
        "payload[0:1]",
        "payload.zones.append('x')",
        "any(any(b for b in a) for a in payload.zones)",
        "any(z for z in payload.zones if z)",
        "any([1])",
        "coalesce()",
        "coalesce(*payload.zones)",
        "number(payload.a, payload.b)",
        "text(value=payload.a)",
        "without_suffix(payload.a, payload.b)",
        "options.nothing",
        "topic.nothing",
        "topic",
        "after.id",
        "b'bytes'",
        "(payload.a := 1)",
        "1 if payload.a",
        "not " * 2000 + "payload.a",
        "not " * 150 + "payload." + "a." * 60 + "b",
        " or ".join(["payload.a"] * 100),
    ],
)
def test_everything_else_is_refused_when_it_is_compiled(source: str) -> None:
    if source == "payload.__class__.__mro__":  # a path like any other: it looks for keys in objects, and finds none
        assert evaluate(source) is None
        return
    with pytest.raises(BadExpression):
        evaluate(source)


def test_a_condition_on_an_option_that_is_not_set_costs_nothing() -> None:
    compiled = compile_expression("options.labels and payload.x == 1", captures=frozenset(), options=OPTIONS)
    assert is_constant(compiled)
    assert compiled(None, {}, None) is False
    needed = compile_expression("options.zones and payload.x == 1", captures=frozenset(), options=OPTIONS)
    assert not is_constant(needed)
    assert needed({"x": 1}, {}, None) is True


def test_a_name_is_short_printable_text() -> None:
    assert text(" front\u200b door ") == "front door"
    assert text("caf\u00e9") == "caf\u00e9"
    assert text(Decimal("12.50")) == "12.50"
    assert text("x" * 257) is None
    assert text("\ud800") is None
    assert text("\0") is None
    assert text(True) is None
    assert text(["a"]) is None
    assert text(10**5000) is None
    said: list[Any] = [True, "ON ", 1, "True", None, {}]
    assert [word(w) for w in said] == ["true", "on", "1", "true", None, None]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["new", "person", "0.7", "1e999999"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["type", "zones", "objects", "label", "score", "n"]), inner, max_size=5)
    ),
    max_leaves=20,
)

EVERYTHING = [
    "payload.n < 4 or payload.type >= payload.n or payload.n == payload.type",
    "any(o.label == 'person' and o.score >= 0.6 for o in payload.objects)",
    "overlaps(options.zones, payload.zones) or payload.type in payload.zones",
    "words(payload.zones, payload.objects, payload.type, payload.n)",
    "text(without_suffix(payload.zones, 'x')) if number(payload.n) > 2 else word(coalesce(payload.n, payload.type))",
    "payload.zones[0] == payload.zones[1] and payload[0] != payload.type[3]",
]


@given(json_values)
def test_no_message_makes_an_expression_fail(payload: Any) -> None:
    for source in EVERYTHING:
        evaluate(source, payload)
