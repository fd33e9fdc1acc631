"""The expressions of the rule language: compiled once to closures, then cheap, bounded and harmless.

The syntax is a small part of Python's, read by Python's own parser (`ast`) and never by its compiler: what is not in
the tables below does not exist, so an expression reaches nothing but the message. There are no loops except `any`,
`all` and `[… for … in …]` over one list of the message, not nested, so the cost is linear in the message.

    payload.after.data.zones    a path; whatever is missing or of another shape on the way is null
    topic.camera  topic.all     what the topic pattern captured (null where it may be absent); the whole topic
    options.zones               the source's own setting, known when the rule is compiled
    maps.kinds                  a table of the family, for `look_up`
    item.label                  the element in hand, in a rule with `each`
    let.name                    another expression of the same rule, by its name
    == != < <= > >= in not in   and or not   a if b else c   any(z in options.zones for z in payload.after.zones)
    [o.label for o in payload.objects if o.score > 0.5]

Comparisons never fail: `<` and its kin read numbers also from text and are false where there is none; a list or an
object equals nothing. Functions: see `FUNCTIONS`. Pure.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

from gateway.sources import values

# Of the decoded payload, the captures of the topic, and the element in hand of `any` or `all`.
Compiled = Callable[[Any, Mapping[str, Any], Any], Any]

ITEM: Final = "item in hand"  # beside the captures, under a name that no capture can have

_AFTER_A_DOT: Final = re.compile(r"\.\s*([A-Za-z]+)\b")
_OTHER_LANGUAGES: Final = re.compile(r"&&|\|\||!(?!=)|(?<![=!<>])=(?!=)")
MAX_NODES: Final = 200  # of one expression; ours have about 20


class BadExpression(Exception):
    """Found at load; `str()` says what and where."""


FUNCTIONS: Final[Mapping[str, tuple[Callable[..., Any], int, int]]] = {  # with the number of arguments, from and to
    "before": (values.before, 2, 2),
    "coalesce": (values.coalesce, 1, 16),
    "digits_after": (values.digits_after, 2, 2),
    "entries": (values.entries, 1, 1),
    "first": (values.first, 1, 1),
    "joined": (values.joined, 2, 8),
    "levels": (values.levels, 3, 3),
    "look_up": (values.look_up, 2, 8),
    "number": (values.number, 1, 1),
    "overlaps": (values.overlaps, 2, 2),
    "reads_as": (values.reads_as, 2, 2),
    "starts_with": (values.starts_with, 2, 2),
    "text": (values.text, 1, 1),
    "texts": (values.texts, 1, 1),
    "truth": (values.truth, 1, 1),
    "without_namespaces": (values.without_namespaces, 1, 1),
    "without_prefix": (values.without_prefix, 2, 2),
    "without_suffix": (values.without_suffix, 2, 2),
    "word": (values.word, 1, 1),
    "words": (values.words, 1, 8),
}

# Arguments that the functions take on trust: written in the rule, as this type.
_WRITTEN: Final[Mapping[str, Mapping[int, type]]] = {
    "before": {1: str},
    "digits_after": {1: str},
    "joined": {0: str},
    "levels": {1: int, 2: int},
    "starts_with": {1: str},
    "without_prefix": {1: str},
    "without_suffix": {1: str},
}


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, (list, dict)) or isinstance(right, (list, dict)):
        return False
    return bool(left == right) and (type(left) is bool) == (type(right) is bool)


def _unequal(left: Any, right: Any) -> bool:
    return not _equal(left, right)


def _contains(left: Any, right: Any) -> bool:
    return isinstance(right, (list, tuple)) and not isinstance(left, (list, dict)) and left in right


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def ordered(left: Any, right: Any) -> bool:
        a, b = values.number(left), values.number(right)
        return a is not None and b is not None and compare(a, b)

    return ordered


_COMPARISONS: Final[Mapping[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Eq: _equal,
    ast.NotEq: _unequal,
    ast.Lt: _ordered(lambda a, b: a < b),
    ast.LtE: _ordered(lambda a, b: a <= b),
    ast.Gt: _ordered(lambda a, b: a > b),
    ast.GtE: _ordered(lambda a, b: a >= b),
    ast.In: _contains,
    ast.NotIn: lambda a, b: not _contains(a, b),
    ast.Is: _equal,
    ast.IsNot: _unequal,
}


def compile_expression(
    source: str,
    *,
    captures: frozenset[str],
    options: Mapping[str, Any],
    maps: Mapping[str, Mapping[str, Any]] | None = None,
    lets: Mapping[str, Compiled] | None = None,
    has_item: bool = False,
) -> Compiled:
    """The expression as a function that never raises. Raises BadExpression with what is wrong with it."""
    return _Compiler(source, captures, options, maps or {}, lets or {}, has_item).compiled()


def is_constant(compiled: Compiled) -> bool:
    """True for what does not look at the message, such as a condition on an option that is not set."""
    return hasattr(compiled, "constant")


def _constant(value: Any) -> Compiled:
    def constant(payload: Any, topic: Mapping[str, Any], it: Any) -> Any:
        return value

    constant.constant = value  # type: ignore[attr-defined]
    return constant


class _Compiler:
    """One walk over the syntax tree of one expression. Parts that do not look at the message are folded."""

    def __init__(
        self,
        source: str,
        captures: frozenset[str],
        options: Mapping[str, Any],
        maps: Mapping[str, Mapping[str, Any]],
        lets: Mapping[str, Compiled],
        has_item: bool,
    ) -> None:
        self.source, self.captures, self.options = source, captures, options
        self.maps, self.lets, self.has_item = maps, lets, has_item
        self.element: str | None = None  # the name that `any` or `all` gives to the element in hand

    def compiled(self) -> Compiled:
        try:
            tree = ast.parse(self.source.strip(), mode="eval")
            if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
                raise BadExpression(f"longer than {MAX_NODES} parts")
            return self.visit(tree.body)
        except SyntaxError as error:
            raise BadExpression(f"not an expression: {error.msg} at column {error.offset}{self.hint()}") from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise BadExpression(f"not an expression: {error}") from None

    def hint(self) -> str:
        """What people write who know other languages, and names that are words of this one."""
        name = next((said[1] for said in _AFTER_A_DOT.finditer(self.source) if keyword.iskeyword(said[1])), None)
        if name is not None:
            return f"; a key called {name} is written ['{name}'], without the dot"
        return "; write and, or, not, ==" if _OTHER_LANGUAGES.search(self.source) else ""

    def refuse(self, node: ast.AST, why: str) -> BadExpression:
        return BadExpression(f"{why}: `{ast.unparse(node)}`")

    def visit(self, node: ast.expr) -> Compiled:
        match node:
            case ast.Constant(value=str() | int() | float() | None as value):
                return _constant(Decimal(repr(value)) if type(value) is float else value)
            case ast.Name() | ast.Attribute() | ast.Subscript():
                return self.path(node)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self.visit(operand)
                return self.fold(lambda p, t, i: not inner(p, t, i), inner)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return _constant(-value if type(value) is int else Decimal(repr(-value)))
            case ast.BoolOp(op=op, values=values):
                return self.joined(isinstance(op, ast.And), [self.visit(v) for v in values])
            case ast.IfExp(test=test, body=body, orelse=orelse):
                condition, yes, no = self.visit(test), self.visit(body), self.visit(orelse)
                if is_constant(condition):
                    return yes if condition(None, {}, None) else no
                return lambda p, t, i: yes(p, t, i) if condition(p, t, i) else no(p, t, i)
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return self.compared(_COMPARISONS[type(op)], self.visit(left), self.visit(right))
            case ast.Compare():
                raise self.refuse(node, "one comparison at a time")
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                parts = [self.visit(e) for e in elements]
                return self.fold(lambda p, t, i: [part(p, t, i) for part in parts], *parts)
            case ast.ListComp():
                return self.listed(node)
            case ast.Call(func=ast.Name(id="any" | "all" as name), args=[ast.GeneratorExp() as generator], keywords=[]):
                return self.quantified(any if name == "any" else all, generator)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self.called(node, name, arguments)
        raise self.refuse(node, "not part of the rule language")

    def fold(self, compiled: Compiled, *parts: Compiled) -> Compiled:
        return _constant(compiled(None, {}, None)) if all(is_constant(p) for p in parts) else compiled

    def joined(self, conjunction: bool, parts: list[Compiled]) -> Compiled:
        # A constant part either decides (`not options.zones or …` where no zones are set) or can be left out.
        kept = [p for p in parts if not is_constant(p)]
        if any(bool(p(None, {}, None)) is not conjunction for p in parts if is_constant(p)):
            return _constant(not conjunction)
        if not kept:
            return _constant(conjunction)
        if len(kept) == 1:
            only = kept[0]
            return lambda p, t, i: bool(only(p, t, i))
        if len(kept) == 2:
            first, second = kept
            if conjunction:
                return lambda p, t, i: bool(first(p, t, i) and second(p, t, i))
            return lambda p, t, i: bool(first(p, t, i) or second(p, t, i))
        quantifier = all if conjunction else any
        return lambda p, t, i: quantifier(part(p, t, i) for part in kept)

    def compared(self, compare: Callable[[Any, Any], bool], left: Compiled, right: Compiled) -> Compiled:
        if is_constant(right):
            value = right(None, {}, None)
            if type(value) is str and compare is _equal:  # nothing but the same text equals a text
                return self.fold(lambda p, t, i: left(p, t, i) == value, left)
            if type(value) is str and compare is _unequal:
                return self.fold(lambda p, t, i: left(p, t, i) != value, left)
            return self.fold(lambda p, t, i: compare(left(p, t, i), value), left)
        return lambda p, t, i: compare(left(p, t, i), right(p, t, i))

    def called(self, node: ast.Call, name: str, arguments: list[ast.expr]) -> Compiled:
        if name not in FUNCTIONS:
            raise self.refuse(node, f"no such function; there are {', '.join(sorted([*FUNCTIONS, 'any', 'all']))}")
        function, least, most = FUNCTIONS[name]
        if not least <= len(arguments) <= most:
            number = f"{least}" if least == most else f"{least} to {most}"
            raise self.refuse(node, f"{name} takes {number} argument{'s' if most > 1 else ''}")
        parts = [self.visit(a) for a in arguments]
        for position, kind in _WRITTEN.get(name, {}).items():
            if not (is_constant(parts[position]) and type(parts[position](None, {}, None)) is kind):
                what = "a text" if kind is str else "a whole number"
                raise self.refuse(node, f"argument {position + 1} of {name} is {what}, written here")
        if len(parts) == 1:
            only = parts[0]
            return self.fold(lambda p, t, i: function(only(p, t, i)), only)
        if len(parts) == 2:
            first, second = parts
            return self.fold(lambda p, t, i: function(first(p, t, i), second(p, t, i)), first, second)
        return self.fold(lambda p, t, i: function(*[part(p, t, i) for part in parts]), *parts)

    def quantified(self, quantifier: Callable[[Any], bool], node: ast.GeneratorExp) -> Compiled:
        over, test, tests = self.looped(node, node.elt, node.generators)
        if tests:
            raise self.refuse(node, "write `any(x … for x in a.list)`")

        def run(p: Any, t: Mapping[str, Any], _: Any) -> bool:
            elements = over(p, t, None)
            return isinstance(elements, list) and quantifier(test(p, t, e) for e in elements)

        return run

    def listed(self, node: ast.ListComp) -> Compiled:
        over, value, tests = self.looped(node, node.elt, node.generators)

        def run(p: Any, t: Mapping[str, Any], _: Any) -> list[Any]:
            elements = over(p, t, None)
            if not isinstance(elements, list):
                return []
            return [value(p, t, e) for e in elements if all(test(p, t, e) for test in tests)]

        return run

    def looped(
        self, node: ast.expr, of_each: ast.expr, generators: list[ast.comprehension]
    ) -> tuple[Compiled, Compiled, list[Compiled]]:
        """What is gone through, what is made of each element, and which elements count."""
        match generators:
            case [ast.comprehension(target=ast.Name(id=name), iter=iterated, ifs=ifs, is_async=0)]:
                pass
            case _:
                raise self.refuse(node, "write `any(x … for x in a.list)` or `[x … for x in a.list if x …]`")
        if self.element is not None:
            raise self.refuse(node, "any, all and lists cannot be nested")
        over = self.visit(iterated)
        self.element = name
        value, tests = self.visit(of_each), [self.visit(test) for test in ifs]
        self.element = None
        return over, value, tests

    def path(self, node: ast.expr) -> Compiled:
        keys: list[str | int] = []
        inner = node
        while not isinstance(inner, ast.Name):
            match inner:
                case ast.Attribute(value=value, attr=key):
                    keys.append(key)
                case ast.Subscript(value=value, slice=ast.Constant(value=str() | int() as key)) if key is not True:
                    keys.append(key)
                case _:
                    raise self.refuse(node, "not part of the rule language")
            inner = value
        keys.reverse()
        if inner.id == self.element:
            return _walk(keys, of_element=True)
        if inner.id == "payload":
            return _walk(keys, of_element=False)
        if inner.id == "topic":
            match keys:
                case [str() as name] if name in self.captures or name == "all":
                    return lambda p, t, i: t.get(name)
            raise self.refuse(node, f"the topic has {', '.join(sorted([*self.captures, 'all']))}")
        if inner.id == "options":
            match keys:
                case [str() as name] if name in self.options:
                    option = self.options[name]
                    return _constant(list(option) if isinstance(option, tuple) else option)
            raise self.refuse(node, f"the options are {', '.join(sorted(self.options)) or 'none'}")
        if inner.id == "maps":
            match keys:
                case [str() as name] if name in self.maps:
                    return _constant(self.maps[name])
            raise self.refuse(node, f"the maps are {', '.join(sorted(self.maps)) or 'none'}")
        if inner.id == "let":
            match keys:
                case [str() as name] if name in self.lets:
                    return self.lets[name]
                case [str() as name, *rest] if name in self.lets:
                    named, inside = self.lets[name], _walk(rest, of_element=False)
                    return lambda p, t, i: inside(named(p, t, i), t, None)
            raise self.refuse(node, f"named before this are {', '.join(self.lets) or 'none'}")
        if inner.id == "item" and self.has_item:
            follow = _walk(keys, of_element=False)
            return lambda p, t, i: follow(t[ITEM], t, None)
        roots = ["payload", "topic", "options", "maps", "let"] + ["item"] * self.has_item
        of_text = f"; a text is written '{inner.id}'" if not keys else ""
        raise self.refuse(node, f"starts with none of {', '.join(roots)}{of_text}")


def _walk(keys: list[str | int], *, of_element: bool) -> Compiled:
    follow = _by_index(tuple(keys)) if any(type(key) is int for key in keys) else _by_name(tuple(keys))
    if of_element:
        return lambda p, t, i: follow(i, t, None)
    return follow


def _by_index(keys: tuple[str | int, ...]) -> Compiled:
    def follow(p: Any, t: Mapping[str, Any], i: Any) -> Any:
        for key in keys:
            if type(p) is dict:
                p = p.get(key)
            elif type(p) is list and type(key) is int and key < len(p):
                p = p[key]
            else:
                return None
        return p

    return follow


def _by_name(keys: tuple[Any, ...]) -> Compiled:
    # Written out for the usual lengths: paths are most of what a rule does. A name looked up in anything but an
    # object raises TypeError, in an object that lacks it KeyError.
    match keys:
        case ():
            return lambda p, t, i: p
        case (a,):

            def one(p: Any, t: Mapping[str, Any], i: Any) -> Any:
                try:
                    return p[a]
                except (KeyError, TypeError):
                    return None

            return one
        case (a, b):

            def two(p: Any, t: Mapping[str, Any], i: Any) -> Any:
                try:
                    return p[a][b]
                except (KeyError, TypeError):
                    return None

            return two
        case (a, b, c):

            def three(p: Any, t: Mapping[str, Any], i: Any) -> Any:
                try:
                    return p[a][b][c]
                except (KeyError, TypeError):
                    return None

            return three

    def follow(p: Any, t: Mapping[str, Any], i: Any) -> Any:
        try:
            for key in keys:
                p = p[key]
            return p
        except (KeyError, TypeError):
            return None

    return follow
