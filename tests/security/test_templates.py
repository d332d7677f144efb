"""Chat templates of strangers end soon, whatever is in them, and write what transformers would write."""

# ruff: noqa: E501  templates are lines as they come

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from glmtune import cli
from glmtune.data.rendering import render_template
from glmtune.data.sandbox import TooMuchError
from glmtune.models.templates import list_presets, read_preset

SECONDS = 10  # generous: most take a hundredth

ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that write": "{% for a in range(99999) %}{% for b in range(99999) %}a{% endfor %}{% endfor %}",
    "loops within a text": "{% set x %}{% for a in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaa' }}{% endfor %}{% endset %}",
    "its own text": "{% for a in range(99999) %}" + "text " * 1000 + "{% endfor %}",
    "recursive loops": "{% for a in [[1, 2]] recursive %}{{ loop([a, a]) }}{% endfor %}",
    "doubled": "{% set n = namespace(x='aaaa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "added": "{% set n = namespace(x='aaaa') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "lists": "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "nested lists": "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "nested and compared": "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}"
    "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
    "nested keys": "{% set n = namespace(x=(1, 2)) %}{% for i in range(99) %}{% set n.x = (n.x, n.x) %}{% endfor %}"
    "{{ {n.x: 1} }}",
    "nested JSON": "{% set n = namespace(x={}) %}{% for i in range(40) %}{% set n.x = {'a': n.x, 'b': n.x} %}{% endfor %}"
    "{{ n.x | tojson }}",
    "times": "{{ 'a' * 10000000000 }}",
    "times of itself": "{% set x = 'a' * 1000 %}{% set y = x * 1000 %}{{ y * 1000000 }}",
    "times of a list": "{{ [1] * 10000000000 }}",
    "power": "{{ 10 ** 10000000000 }}",
    "powers": "{{ 99 ** 99 ** 99 ** 99 }}",
    "squares": "{% set n = namespace(x=99) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent with a star": "{{ '%*d' % (1000000000, 1) }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format of a format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "center": "{{ 'a' | center(10000000000) }}",
    "center method": "{{ 'a'.center(10000000000) }}",
    "ljust": "{{ 'a'.ljust(10000000000) }}",
    "zfill": "{{ 'a'.zfill(10000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(10000000000) }}",
    "bytes": "{{ (1).to_bytes(10000000000, 'big') }}",
    "encode": "{{ 'a'.encode().center(10000000000) }}",
    "translate": "{{ 'aaaa'.translate({97: 'a' * 900000}) }}",
    "indent": "{{ ('\n' * 900000) | indent(1000000000) }}",
    "indent by a text": "{{ ('\n' * 900000) | indent('a' * 900000) }}",
    "indent of JSON": "{{ [[[1]]] | tojson(indent=1000000000) }}",
    "batch": "{{ [1] | batch(10000000000, 'x') | list }}",
    "slice": "{{ [1] | slice(10000000000) | list }}",
    "wordwrap": "{{ ('a ' * 100000) | wordwrap(1) }}",
    "join": "{{ range(99999) | join('a' * 900000) }}",
    "join method": "{{ ('a' * 900000).join('a' * 900000) }}",
    "replace": "{{ ('a' * 900000) | replace('a', 'b' * 900000) }}",
    "replace method": "{{ ('a' * 900000).replace('a', 'b' * 900000) }}",
    "replace nothing": "{{ ('a' * 900000).replace('', 'b' * 900000) }}",
    "round": "{{ 5 | round(-10000000000) }}",
    "lipsum": "{{ lipsum(n=1000000000) }}",
    "sort": "{{ (['a' * 900000] * 99999) | sort }}",
    "map": "{{ (['a' * 900000] * 99999) | map('upper') | list }}",
    "sorted map": "{{ range(99999) | map('string') | map('replace', '', 'a' * 900000) | sort }}",
    "search": "{% set x = 'a' * 900000 %}{% for i in range(99999) %}{{ 'b' in x }}{{ x == x ~ 'a' }}{% endfor %}",
    "searched list": "{% set x = range(99999) | list %}{% for i in range(99999) %}{{ -1 in x }}{% endfor %}",
    "macro": "{% macro f(x) %}{{ f(x + 1) }}{% endmacro %}{{ f(1) }}",
    "macros": "{% macro f(x) %}{% if x %}{{ f(x - 1) }}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "macros that call": "{% macro f(x) %}{% if x %}{% call f(x - 1) %}{% endcall %}{% call f(x - 1) %}{% endcall %}"
    "{% endif %}{% endmacro %}{{ f(99) }}",
    "filter block": "{% filter replace('a', 'b' * 900000) %}" + "a" * 10000 + "{% endfilter %}",
    "set block": "{% set x | replace('a', 'b' * 900000) %}" + "a" * 10000 + "{% endset %}",
    "urlize": "{{ ('a.' * 100000) | urlize }}",
    "striptags": "{{ ('<' * 100000) | striptags }}",
    "pprint": "{{ range(99999) | list | pprint }}",
    "include": "{% include 'chat_template.jinja' %}",
    "import": "{% import 'chat_template.jinja' as x %}",
    "extends": "{% extends 'chat_template.jinja' %}",
    "itself": "{{ self.a() }}{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "long": "a" * 300_000,
    "brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "negations": "{{ " + "not " * 40_000 + "1 }}",
    "conditions": "{% if a %}" * 5000 + "{% endif %}" * 5000,
    "branches": "{% if a %}" + "{% elif a %}" * 10_000 + "{% endif %}",
    "additions": "{{ 1" + " + 1" * 50_000 + " }}",
    "openings": "{{" * 90_000,
    "comments": "{#" * 90_000,
    "blanks": "{%" + " " * 190_000,
    "quotes": "{{ '" + "\\'" * 90_000,
    "numbers": "{{ " + "9" * 100_000 + " }}",
    "error": "{{ raise_exception('a' * 900000) }}",
    "division": "{{ 1 // 0 }}",
}
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]


@pytest.mark.parametrize("name", ENDLESS)
def test_it_ends(name: str) -> None:
    start = time.perf_counter()
    with pytest.raises((TooMuchError, TemplateError)) as refusal:
        render_template(ENDLESS[name], MESSAGES, [], True, {"eos_token": "</s>"})
    assert time.perf_counter() - start < SECONDS
    if isinstance(refusal.value, TooMuchError):
        assert "\n" not in str(refusal.value) and "data.template" in str(refusal.value)


@pytest.mark.parametrize("name", ["loops", "doubled", "power", "brackets", "error", "include", "macro", "long"])
def test_commands_end(
    name: str, tiny_checkpoint: Path, tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(ENDLESS[name])
    start = time.perf_counter()
    told = refused("chat", folder, "--question", "1+1=")
    assert len(told) < 800 and "template" in told and "data.template" in told
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", str(folder)])
    assert end.value.code == 2 and "FAILS    template: " in capsys.readouterr().out
    assert time.perf_counter() - start < 2 * SECONDS


TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": "é\n1", "b": [1, 2]}}}
SYSTEM = {"role": "system", "content": "s"}
CALLING = [{"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "5", "name": "f"}]
CONVERSATIONS = [
    MESSAGES,
    MESSAGES[:1],
    [SYSTEM, *MESSAGES],
    [*MESSAGES, *MESSAGES],
    [MESSAGES[0], *CALLING, MESSAGES[1]],
]
OF_OTHERS = [
    json.loads(file.read_text("utf-8")).get("chat_template")
    for file in Path(__file__).parents[1].rglob("tokenizer_config.json")
] + [file.read_text("utf-8") for file in Path(__file__).parents[1].rglob("*.jinja")]
WHOLE = """{%- macro write(x, deep=0) -%}{%- for k, v in x | dictsort -%}{{ '  ' * deep }}{{ k }}={%- if v is mapping -%}
{{ write(v, deep + 1) }}{%- else -%}{{ v | string | trim | replace('1', 'one') }}{%- endif -%}{%- endfor -%}{%- endmacro -%}
{%- set n = namespace(count=0, last=none) -%}{%- for m in messages if m.role != 'system' -%}{%- set n.count = n.count + 1 -%}
{%- generation -%}{{ loop.index0 * 2 }}{{ m['content'][:3].upper() }}{{ m.content.split('+') | join(', ') }}{% endgeneration %}
{{ m.get('name', '-') ~ (m.role in ['user', 'tool']) ~ (2 ** 5) }}{{ '%05.2f' % 3.14159 }}{{ "{}:{:>5}".format('a', 1) }}
{{ loop.previtem.role if loop.previtem is defined else 'first' }}{{ loop.cycle('odd', 'even') }}{{ m | tojson(indent=2) }}
{%- endfor -%}{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}{{ n.count }}
{{ write({'a': 1, 'b': {'c': 'd1'}}) }}{% call(x) each() %}{{ x }}{% endcall %}{% filter upper %}abc{% endfilter %}"""
WHOLE = "{% macro each() %}{{ caller(5) }}{% endmacro %}" + WHOLE


@pytest.mark.parametrize("template", [*map(read_preset, list_presets()), *filter(None, OF_OTHERS), WHOLE])
def test_as_transformers_writes(template: str) -> None:
    """Text and spans are those of the library, or it refuses in the same words."""
    library: Any = render_jinja_template
    named = {"eos_token": "</s>", "bos_token": "<s>"}
    for messages, tools, for_answer in itertools.product(CONVERSATIONS, ([], [TOOL]), (False, True)):
        expected: Any
        try:
            texts, spans = library(
                conversations=[messages],
                tools=tools or None,
                chat_template=template,
                return_assistant_tokens_mask="generation" in template,
                add_generation_prompt=for_answer,
                **named,
            )
            expected = (texts[0], [*map(tuple, spans[0])] if spans else [])
        except (TemplateError, TypeError) as error:
            expected = str(error)
        try:
            found = render_template(template, messages, tools, for_answer, named)
            assert (found.text, list(found.spans)) == expected
        except TemplateError as error:
            assert str(error).endswith(expected)


def test_long_conversations() -> None:
    """What is long is no attack: a thousand turns, and a text of a million characters."""
    for messages in (MESSAGES * 500, [{"role": "user", "content": "ab\n" * 330_000}, MESSAGES[1]]):
        for preset in ("chatml", "glm4", "chatglm"):
            assert len(render_template(read_preset(preset), messages, [], True, {"eos_token": "</s>"}).text) > 3000
