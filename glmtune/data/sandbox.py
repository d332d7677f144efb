"""Chat templates of strangers, rendered within bounds of time and size.

Jinja's sandbox keeps a template from everything outside of it, not from working without end: nested loops, texts that
are doubled, `'a' * 10**9`. Here each value that a template makes or reads is weighed, and each time it is asked how
long it has taken. No single operation then works on much, and no number of them goes on for long. What makes much of
little in one operation (filters that pad, formats with widths) is checked before, or not there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextvars import ContextVar
from functools import lru_cache, wraps
from types import BuiltinMethodType, FunctionType
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from transformers.utils import chat_template_utils

from glmtune.runtime import UserError

MOST_SECONDS = 1.0  # of the processor's time for one conversation
MOST_WEIGHT = 1_000_000  # characters, and entries of lists, that one value has, or that are written
MOST_TEMPLATE = 200_000  # characters; the longest of today's releases have some 20,000
PER_CHARACTER = 10  # what is allowed for each character of a conversation, beside that
PER_SECOND = 200_000  # characters of a conversation for which a second more is allowed
CLOCK_EVERY = 2_000  # of the weight of values: asking takes longer than most of what a template does
MOST_BITS = 10_000  # of a number
MOST_EXPONENT = 64
MOST_WIDTH = 1000  # of what is padded or rounded


def names(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


FILTERS = names(
    "abs attr capitalize count d default dictsort e escape first float format groupby indent int items join last "
    "length list lower map max min reject rejectattr replace reverse round safe select selectattr sort string title "
    "tojson trim truncate unique upper wordcount"
)
OF_TEXTS = names(
    "capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit isidentifier "
    "islower isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind "
    "rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper"
)
_WIDE = re.compile(r"\d{4}|\*|\{[^{}]*\{")  # in a format: a width of a thousand, or one that comes from elsewhere


class TooMuchError(UserError):
    """A template works for too long, or makes too much."""


def refuse(what: str) -> NoReturn:
    """Raise a `TooMuchError` that says what the template does."""
    raise TooMuchError(
        f"The model's chat template {what}; it is damaged, or made to stop whoever opens it. Take chat_template.jinja "
        "of the release, or choose another data.template."
    )


class Scale:
    """Weighs values while a template is rendered.

    Args:
        size: characters of the conversation.
    """

    def __init__(self, size: int):
        self.most = MOST_WEIGHT + PER_CHARACTER * size
        self.seconds = MOST_SECONDS + size / PER_SECOND
        self.end: float | None = None  # by the clock, which is first asked when there was something to do
        self.written = 0
        self.unasked = 0  # of weight, since the clock was last asked
        self.known: dict[int, tuple[Any, int]] = {}  # what a template cannot change weighs the same again

    def weigh(self, value: Any) -> Any:
        """Return a value that is not too heavy, if there is time left."""
        weight = self.weight(value)
        self.check(weight)
        self.unasked += 1 + weight
        if self.unasked > CLOCK_EVERY:
            self.unasked, now = 0, time.thread_time()
            self.end = now + self.seconds if self.end is None else self.end
            if now > self.end:
                refuse(f"works for more than {self.seconds:.0f} s on one conversation")
        return value

    def write(self, value: Any) -> Any:
        """Return a value that becomes a part of the text."""
        self.written += len(self.weigh(value) if isinstance(value, str) else str(self.weigh(value)))
        self.check(self.written)
        return value

    def check(self, weight: int) -> None:
        """See whether something is not too heavy."""
        if weight > self.most:
            refuse(f"makes more than {self.most:,} characters or entries of one conversation")

    def weight(self, value: Any) -> int:
        """Return characters and entries of a value and all that is in it, as far as they are not too many."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, int):
            if value.bit_length() > MOST_BITS:
                refuse(f"makes a number of more than {MOST_BITS:,} bits")
            return 1
        if isinstance(value, range):
            return len(value)
        if not isinstance(value, list | tuple | Mapping | ItemsView | KeysView | ValuesView):
            return 1
        if id(value) in self.known:
            return self.known[id(value)][1]
        total = 1
        for part in value.items() if isinstance(value, Mapping) else value:
            total += sum(map(self.weight, part)) if isinstance(part, tuple) else self.weight(part)
            if total > self.most:
                return total
        if isinstance(value, list | tuple | Mapping):
            if len(self.known) > 1000:
                self.known.clear()
            self.known[id(value)] = value, total
        return total

    def collect(self, values: Iterator[Any]) -> list[Any]:
        """Return what is left of an iterator."""
        found, total = [], 0
        for value in values:
            total += 1 + self.weight(value)
            self.check(total)
            found.append(value)
        return found


SCALE: ContextVar[Scale] = ContextVar("SCALE")


def weigh(value: Any) -> Any:
    """Return a value that is not too heavy."""
    return SCALE.get().weigh(value)


def write(value: Any) -> Any:
    """Return a value that becomes a part of the text."""
    return SCALE.get().write(value)


def deep(value: Any) -> int:
    """Return how deeply lists and mappings are nested; what was weighed has few of them."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return 1 + max(map(deep, parts), default=0)


def check_width(width: Any) -> None:
    """See whether a number of blanks or decimals is one that somebody would want."""
    if isinstance(width, int | float) and abs(width) > MOST_WIDTH:
        refuse(f"asks for {width:,} blanks or decimals")


def check_format(text: Any) -> None:
    """See whether a format pads with few blanks."""
    if _WIDE.search(str(text)):
        refuse(f"formats with a width of four digits or more, or one that it works out: {str(text)[:60]!r}")


def check_growth(name: str, value: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> None:
    """See whether a filter or a method of texts makes much of little.

    Args:
        name: of the filter or method.
        value: what it works on.
        arguments, options: what it is told.
    """
    scale = SCALE.get()
    given = [*arguments, *options.values()]
    for one in (value, *given):
        scale.weigh(one)
    for one in given if name in ("indent", "round", "tojson") else ():
        check_width(one)
    if name == "replace" and given:
        scale.check(len(str(value)) + str(value).count(str(given[0])) * max(len(str(one)) for one in given))
    if name == "join":
        texts = [one for one in (value, *given) if isinstance(one, str)]
        lists = [one for one in (value, *given) if not isinstance(one, str)]
        scale.check(sum(map(scale.weight, lists)) * (1 + sum(map(len, texts))))
    if name == "indent":
        widths = [len(one) if isinstance(one, str) else int(one) for one in given if isinstance(one, str | int)]
        scale.check(len(str(value)) + str(value).count("\n") * max(widths, default=4))
    if name == "tojson" and any(given):
        scale.check(scale.weight(value) * deep(value) * max(int(one) for one in given if isinstance(one, int)))
    if name == "format":
        check_format(value)


def within_bounds(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that is checked before it works."""
    # Some are told of their surroundings, before anything else.
    told = int(isinstance(function, FunctionType) and "jinja_pass_arg" in vars(function))

    @wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        around, (value, *rest) = arguments[:told], arguments[told:]
        if isinstance(value, Iterator):
            value = SCALE.get().collect(value)
        check_growth(name, value, rest, options)
        return function(*around, value, *rest, **options)

    return checked


class Weighing(NodeTransformer):
    """Puts `weigh` around whatever makes or reads a value, and `write` around what is written."""

    def around(self, node: Any, name: str = "weigh") -> nodes.Filter:
        """Return a value, through `weigh` or `write`: as filters, which are called faster than functions."""
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        """Visit the parts, and weigh the whole."""
        super().generic_visit(node, *args, **kwargs)
        reads = isinstance(node, nodes.Name | nodes.Tuple | nodes.Getattr | nodes.Getitem) and node.ctx == "load"
        makes = isinstance(node, nodes.Call | nodes.List | nodes.Dict | nodes.BinExpr | nodes.Concat)
        return self.around(node) if reads or (makes and not isinstance(node, nodes.And | nodes.Or)) else node

    def visit_Filter(self, node: nodes.Filter) -> Any:
        """Visit a filter; one that stands for a block has nothing yet that it works on."""
        super().generic_visit(node)
        innermost: Any = node
        while isinstance(innermost, nodes.Filter):
            innermost = innermost.node
        return node if innermost is None else self.around(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:
        """Visit a block that is handed over; the call itself stays one."""
        super().generic_visit(node.call)
        call, node.call = node.call, nodes.Call(nodes.Const(None), [], [], None, None)
        super().generic_visit(node)
        node.call = call
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        """Count what is written, the template's own text too: it may stand in a loop."""
        super().generic_visit(node)
        texts = [nodes.Const(n.data, lineno=n.lineno) if isinstance(n, nodes.TemplateData) else n for n in node.nodes]
        node.nodes = [self.around(part, "write") for part in texts]
        return node


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox of transformers, with its filters, functions and the mark of what is learned, within bounds."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def __init__(self) -> None:
        theirs = chat_template_utils._compile_jinja_template("").environment
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=list(map(type, theirs.extensions.values())))
        self.filters = {name: within_bounds(name, theirs.filters[name]) for name in FILTERS}
        self.filters |= {"weigh": weigh, "write": write}
        self.globals = {name: value for name, value in theirs.globals.items() if name != "lipsum"}

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(Weighing().visit(source), *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether something has an attribute for templates; texts have the usual ones, numbers none."""
        if isinstance(obj, str):
            return attr in OF_TEXTS
        return not isinstance(obj, int | float | bytes) and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply, raise to a power or format, if little comes of it."""
        if operator == "*":
            sizes = [one if isinstance(one, int) else SCALE.get().weight(one) for one in (left, right)]
            if not isinstance(left, int) or not isinstance(right, int):
                SCALE.get().check(max(sizes[0], 0) * max(sizes[1], 0))
        if operator == "**" and isinstance(right, int | float) and abs(right) > MOST_EXPONENT:
            refuse(f"raises a number to the power of {right}")
        if operator == "%" and isinstance(left, str):
            check_format(left)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Call a function or a method, if little comes of it."""
        if isinstance(function, BuiltinMethodType) and isinstance(function.__self__, str):
            args = tuple(SCALE.get().collect(one) if isinstance(one, Iterator) else one for one in args)
            check_growth(function.__name__, function.__self__, args, kwargs)
        return super().call(context, function, *args, **kwargs)


@lru_cache(maxsize=16)
def compile_template(template: str) -> Template:
    """Return a template that is ready to be rendered.

    Raises:
        TooMuchError: it is too long.
        TemplateError: it is none.
    """
    if len(template) > MOST_TEMPLATE:
        refuse(f"has {len(template):,} characters, more than {MOST_TEMPLATE:,}")
    try:
        return BoundedEnvironment().from_string(template)
    except TemplateError:
        raise
    except Exception as error:  # nested too deeply, for Jinja or for Python
        raise TemplateError(f"{type(error).__name__}: {error}") from None


def render_bounded(template: str, size: int, **variables: Any) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a template, and where in it stand the answers that it marks.

    Args:
        template: in Jinja, as transformers extends it.
        size: characters of the conversation, on which depends how much is allowed.
        variables: `messages`, `tools`, `add_generation_prompt` and named tokens, of JSON's own types.

    Raises:
        TooMuchError: it works for too long, or makes too much.
        TemplateError: of Jinja; whatever else goes wrong within the template, too.
    """
    compiled = compile_template(template)
    blocks: list[str] = []
    spans: list[tuple[int, int]] = []
    token = SCALE.set(Scale(size))
    try:
        environment: Any = compiled.environment
        with environment.activate_tracker(blocks, spans):
            for block in compiled.generate(**variables):
                blocks.append(block)  # one by one: the tracker measures what is there
        return "".join(blocks), spans
    except (TemplateError, TooMuchError):
        raise
    except Exception as error:  # a template may do anything wrong
        raise TemplateError(f"{type(error).__name__}: {error}") from None
    finally:
        SCALE.reset(token)
