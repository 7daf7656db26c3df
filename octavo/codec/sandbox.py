"""The environment chat templates run in.

Jinja's immutable sandbox keeps a template from reaching Python's insides and from changing what it is given.
What it lacks is a bound on work. Here the compiled template is rewritten so that loops, comparisons, joins
and outputs pass through the meter; filters and methods that are not listed do not exist.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any

from jinja2 import nodes, pass_environment
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.tests import TESTS
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from octavo.codec import meter
from octavo.codec.meter import Each, current


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


METHODS: Mapping[type, frozenset[str]] = {
    str: _words(
        """
        capitalize casefold center count endswith find format format_map index isalnum isalpha isascii
        isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust
        lower lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit
        rstrip split splitlines startswith strip swapcase title upper zfill
        """
    ),
    dict: _words("get items keys values copy"),
    list: _words("index count copy"),
    tuple: _words("index count"),
    int: frozenset(),
    float: _words("is_integer"),
    bytes: frozenset(),
}

_SHALLOW_FILTERS = _words(
    """
    attr count d default first float items last length list map reject rejectattr reverse safe select
    selectattr
    """
)
_DEEP_FILTERS = _words(
    """
    abs batch capitalize center dictsort e escape format groupby indent int lower max min round slice sort
    string title trim truncate unique upper wordcount
    """
)
_DEEP_TESTS = _words("in upper lower eq ne gt ge lt le equalto greaterthan lessthan == != > >= < <=")
_JINJA_ARGUMENTS = _words("_loop_vars _block_vars")
_SMALL_NUMBERS = _words("batch center indent round slice truncate ljust rjust zfill")


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as chat templates know it, and a meter."""

    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=meter_output,
            extensions=[LoopControlExtension, GenerationTag],
        )
        self.code_generator_class = _Compiler
        self.binop_table |= {
            "+": meter.add,
            "*": meter.multiply,
            "%": meter.remainder,
            "**": meter.power,
        }
        shallow = {name: _metered(name, _jinja(FILTERS, name), deep=False) for name in _SHALLOW_FILTERS}
        deep = {name: _metered(name, _jinja(FILTERS, name), deep=True) for name in _DEEP_FILTERS}
        self.filters = {
            **shallow,
            **deep,
            "join": _metered("join", _join, deep=False),
            "replace": _metered("replace", _replace, deep=True),
            "sum": _metered("sum", _sum, deep=True),
            "tojson": _metered("tojson", to_json, deep=True),
            "_each": Each,
            "_concat": meter.concatenate,
            "_compared": _compared,
            "_searched": _searched,
            "_sized": _sized,
        }
        self.tests = {name: _metered(name, _jinja(TESTS, name), name in _DEEP_TESTS) for name in TESTS}
        self.globals = {
            "range": _range,
            "dict": _new_dict,
            "namespace": SafeNamespace,
            "raise_exception": refuse,
        }

    def _generate(
        self, source: nodes.Template, name: str | None, filename: str | None, defer_init: bool = False
    ) -> str:
        return super()._generate(_MeterLoops().visit(source), name, filename, defer_init)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, methods in METHODS.items():
            if isinstance(obj, kind):
                return attr in methods
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        counter = current()
        counter.charge(1)
        if isinstance(obj, Macro):
            return super().call(context, obj, *args, **kwargs)
        if isinstance(obj, LoopContext):
            return super().call(context, obj, *map(Each, args), **kwargs)
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        named = {key: value for key, value in kwargs.items() if key not in _JINJA_ARGUMENTS}
        for value in (*args, *named.values()):
            counter.charge_deep(value)
        if isinstance(owner, str):
            result = _call_text_method(owner, name, obj, args, named)
        else:
            if isinstance(owner, list | tuple):
                counter.charge_deep(owner)
            result = super().call(context, obj, *args, **kwargs)
        counter.charge_size(result)
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        pattern: str = value.__self__
        is_map = value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:
            current().charge_size(pattern)
            named = args[0] if is_map else kwargs
            return str(_Formatter(self).vformat(pattern, () if is_map else args, named))

        return formatted


class _Formatter(SandboxedFormatter):
    def convert_field(self, value: Any, conversion: Any) -> Any:
        current().charge_deep(value)
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        meter.check_format_spec(format_spec)
        current().charge_deep(value)
        return super().format_field(value, format_spec)


class _Compiler(CodeGenerator):
    """Folds no output at compile time, so that every piece of output is seen by `meter_output`."""

    def _output_child_to_const(self, *_: Any) -> str:
        raise nodes.Impossible()


class _MeterLoops(NodeTransformer):
    """Sends what Jinja compiles to bare Python through the meter instead."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through("_each", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through("_concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _through("_compared", node.expr)
        for operand in node.ops:
            is_search = operand.op in ("in", "notin")
            operand.expr = _through("_searched" if is_search else "_compared", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _through("_sized", node.node)
        return node


class GenerationTag(Extension):
    """`{% generation %}` marks the model's own words for training; when rendering it is only a scope."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class Refused(Exception):
    """The template itself says that it cannot render these messages."""


def refuse(message: object = "") -> str:
    raise Refused(str(message))


def meter_output(value: Any) -> Any:
    """Every piece of text that goes to an output, or to a captured block, comes through here."""
    return meter.text_of(value)


class SafeNamespace(Namespace):
    """A template's own variables that outlive a loop; names with an underscore in front are refused."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args
        attributes = dict(*given, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}: names must not begin with an underscore")


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, unlike Jinja's own filter, which escapes for HTML."""
    meter.check_small("tojson", [indent if isinstance(indent, int) else len(indent or "")])
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _through(name: str, expression: Any) -> nodes.Expr:
    return nodes.Filter(expression, name, [], [], None, None, lineno=expression.lineno)


def _jinja(table: Mapping[str, Any], name: str) -> Callable[..., Any]:
    """Jinja's own filter or test."""
    function: Callable[..., Any] = table[name]
    return function


def _compared(value: Any) -> Any:
    current().charge_deep(value)
    return value


def _searched(value: Any) -> Any:
    """Keys are found at once, everything else is gone through."""
    if not isinstance(value, dict):
        current().charge_deep(value)
    return value


def _sized(value: Any) -> Any:
    current().charge_size(value)
    return value


def _metered(name: str, function: Callable[..., Any], deep: bool) -> Callable[..., Any]:
    """The filter or test, charged for what goes in and comes out."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        counter = current()
        values = [*args, *kwargs.values()]
        if name in _SMALL_NUMBERS:
            meter.check_small(name, values[1:])
        if name == "format":
            meter.check_percent_format(str(args[0]))
        for value in values:
            if deep:
                counter.charge_deep(value)
            else:
                counter.charge(1)
        result = function(*args, **kwargs)
        if isinstance(result, Iterator):
            return iter(Each(result))
        counter.charge_size(result)
        return result

    return call


@pass_environment
def _join(environment: Sandbox, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    items = value if attribute is None else map(make_attrgetter(environment, attribute), value)
    return meter.joined(meter.text_of(d), map(meter.text_of, items))


@pass_environment
def _sum(environment: Sandbox, value: Any, attribute: str | int | None = None, start: float = 0) -> Any:
    """Of numbers only: adding up lists or texts copies them again and again."""
    if not isinstance(start, int | float):
        raise TypeError("sum adds numbers only")
    items = value if attribute is None else map(make_attrgetter(environment, attribute), value)
    return sum(items, start)


def _call_text_method(
    text: str, name: str, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    current().charge_size(text)
    if name in _SMALL_NUMBERS:
        meter.check_small(name, [*args, *kwargs.values()])
    if name == "replace":
        return meter.replaced(text, *args, **kwargs)
    if name == "join":
        return meter.joined(text, *args, **kwargs)
    return method(*args, **kwargs)


def _replace(s: Any, old: Any, new: Any, count: int | None = None) -> str:
    return meter.replaced(str(s), str(old), str(new), -1 if count is None else count)


def _range(*bounds: int) -> range:
    found = range(*bounds)
    current().charge(len(found))
    return found


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)
