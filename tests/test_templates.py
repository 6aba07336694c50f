"""Templates: what they may say, and what is wrong with them at the start."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.environment import SettingsError
from kinds import load_kinds
from mail.rendering import RENDERED_LIMIT
from mail.templates import Content, RenderError, Templates, TemplatesError
from mongo.owed import batch
from settings import Settings
from tests.client import ROOT, USER
from tests.processes import COMPLETE, run_here
from tests.templates import Rendered, write

EXAMPLES = ROOT / "examples/templates"
SHOP = load_kinds(ROOT / "examples/kinds.toml")


def render(folder: Path, data: Any = None, key: str = "new_login", **fields: Any) -> Content:
    about = {"id": "1" * 24, "key": key, "timestamp": 1795406836, "user_id": USER, "data": data}
    return Rendered(folder).render(about | fields)


def test_missing_and_null_fields_render_as_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path, {"new_login.txt": "[{{ data.a }}{{ data.b.c.d }}{{ data['x']['y'] }}{{ target_id }}]"})
    for data in (None, {}, {"a": None}):
        assert render(folder, data, target_id=None).text == "[]"
    with pytest.raises(RenderError, match=r"new_login\.txt, line 1$"):
        render(write(tmp_path, {"new_login.txt": "{{ data.a + 1 }}"}))


@pytest.mark.parametrize("data", [None, {}, {"name": "Ann", "n": 5, "list": [1], "gap": None}])
@pytest.mark.parametrize(
    "expression",
    [
        *('data["items"]', "data.items", "data.copy", "data.values", "data.x.keys", 'data["get"]', "data.gap.real"),
        *("data.name.upper", 'data.name["upper"]', "data.n.real", "data.list.append", 'data.list["count"]'),
        *('data|attr("items")', 'data.name|attr("upper")', '[data]|map(attribute="copy")|join', "dict['x']", "range.x"),
        *("data.__class__", "data.name.__class__.__mro__", "kind.pop", "data.list.0.real", "(1, 2).count"),
    ],
)
def test_a_template_sees_data_and_nothing_of_python(tmp_path: Path, expression: str, data: Any) -> None:
    text = render(write(tmp_path, {"new_login.txt": f"[{{{{ {expression} }}}}]"}), data).text
    assert text == "[]"


def test_fields_may_have_any_name_and_jinja_keeps_its_own(tmp_path: Path) -> None:
    data = {
        "items": [7, 8],
        "copy": "c",
        "by": {"2026": "x"},
        "name": "Ann",
        "rows": [{"k": 1, "v": 2}, {"k": 1, "v": 3}],
    }
    for text, said in {
        '{{ data["items"][0] }}{{ data.items.1 }}{{ data.copy }}{{ data.by.2026 }}': "78cx",
        "{% for n in data.items %}{{ loop.index }}{{ loop.last }};{% endfor %}": "1False;2True;",
        "{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}": "2",
        "{% set c = cycler(1, 2) %}{{ c.next() }}{{ c.current }}": "12",
        "{% for g in data.rows|groupby('k') %}{{ g.grouper }}{{ g.list|map(attribute='v')|list }}{% endfor %}": (
            "1[2, 3]"
        ),
        "{{ data.name[:2] }}{{ data.name|upper }}": "AnANN",
        "{% for k, v in data.by|items %}{{ k }}{{ v }}{% endfor %}": "2026x",
        "{% import '_m.txt' as m %}{{ m.twice(data.name) }}": "AnnAnn",
    }.items():
        folder = write(tmp_path, {"_m.txt": "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}", "new_login.txt": text})
        assert render(folder, data).text == said


def test_an_html_part_alone_gets_its_text(tmp_path: Path) -> None:
    html = (
        "<html><head><title>T</title><style>p { color: red }</style></head><body><table><tr><td><h1>Order 1027</h1>"
        '<p>It is &lt;on&gt; <a href="https://shop.example/o?a=1&amp;b=2">its way</a>, {{ data.name }}.</p>'
        "<ul><li>One</li><li>Two</li></ul></td></tr></table></body></html>"
    )
    content = render(write(tmp_path, {"new_login.html": html}), {"name": "<b>Ann</b>"})
    assert content.text == (
        "Order 1027\n\nIt is <on> [its way](https://shop.example/o?a=1&b=2), <b>Ann</b>.\n\n  * One\n  * Two"
    )
    assert render(write(tmp_path, {"new_login.html": "<p> </p><img src='x'>"})).text == "new_login"
    assert render(write(tmp_path, {"new_login.txt": "Mine"})).text == "Mine"


def test_fields_of_the_user_are_a_variable_if_there_are_any(tmp_path: Path) -> None:
    folder = write(tmp_path, {"new_login.txt": "\n{{ user.name }}{{ user.emails.0.address }}"})
    assert Rendered(folder).faults("new_login.txt") == ["new_login.txt, line 2: there is no variable 'user'."] * 2
    rendered = Rendered(folder, user=True)
    assert rendered.faults("new_login.txt") == []
    about = {"key": "new_login", "user": {"name": "Ann", "emails": {"0": {"address": "@x"}}}}
    assert rendered.render(about).text == "Ann@x"


def test_a_blank_part_counts_as_absent(tmp_path: Path) -> None:
    folder = write(
        tmp_path, dict.fromkeys(["new_login.subject.txt", "new_login.txt", "new_login.html"], " \n{{ data.a }}\n")
    )
    assert render(folder) == Content("new_login", "new_login")
    assert render(folder, {"a": " x\ny "}) == Content("x y", "x\ny", "x\ny")


def test_only_html_is_escaped_even_through_a_layout(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        {
            "_layout.html": "<b>{% block body %}{% endblock %}</b>{% include '_foot.html' %}",
            "_foot.html": "{{ data.a }}{{ mood }}",
            "new_login.html": "{% extends '_layout.html' %}{% block body %}{{ data.a }}{% endblock %}",
            "new_login.txt": "{{ data.a }}",
        },
    )
    assert render(folder, {"a": "<&>"}) == Content("new_login", "<&>", "<b>&lt;&amp;&gt;</b>&lt;&amp;&gt;")


def test_a_part_may_be_as_long_as_the_limit_and_no_longer(tmp_path: Path) -> None:
    folder = write(tmp_path, {"new_login.txt": "{{ 'x' * data.n }}"})
    assert len(render(folder, {"n": RENDERED_LIMIT}).text) == RENDERED_LIMIT
    with pytest.raises(RenderError) as raised:
        render(folder, {"n": RENDERED_LIMIT + 1})
    assert raised.value.reason == "it renders too much"


@pytest.mark.parametrize("language", ["en", "de"])
@pytest.mark.parametrize("key", [kind.name for kind in SHOP.values() if kind.email])
def test_the_examples_render_any_data_of_the_example_of_kinds(key: str, language: str) -> None:
    for data in (
        None,
        {"city": 1, "name": ["x"], "number": {}, "carrier": None},
        dict.fromkeys(["city", "name", "product", "by", "text"], "<Å>"),
    ):
        about: dict[str, Any] = {"id": "1" * 24, "key": key, "timestamp": 1795406836, "user_id": USER, "data": data}
        if SHOP[key].window:
            about |= batch([about | {"is_new": True}] * 2)
        content = Rendered(EXAMPLES, SHOP).render(about, language)
        assert key not in (content.subject, content.text)
        assert content.html
        assert f'<html lang="{language}">' in content.html
        assert "<Å>" not in content.html


@pytest.mark.parametrize(
    ("language", "words"),
    [("en", ("Unsubscribe", "we have to send it")), ("de", ("Abbestellen", "müssen wir sie senden"))],
)
def test_the_examples_have_a_link_unless_the_kind_is_required(language: str, words: tuple[str, str]) -> None:
    templates, link = Rendered(EXAMPLES, SHOP), "https://x.example/u/a-token"
    shipped = templates.render({"key": "order_shipped", "data": {"number": 7}}, language, link)
    assert shipped.text.endswith(f"\n{words[0]}: {link}")
    assert f'<a href="{link}">{words[0]}</a>' in (shipped.html or "")
    without = templates.render({"key": "order_shipped"}, language)
    assert not [part for part in (without.text, without.html or "") if words[0] in part or words[1] in part]
    required = templates.render({"key": "invoice_ready"}, language)
    assert not [part for part in (required.text, required.html or "") if words[0] in part or words[1] not in part]


def test_a_template_knows_its_kind_and_language(tmp_path: Path) -> None:
    said = "{{ kind.name }} {{ kind.label }} {{ kind.required }} {{ language }} {{ unsubscribe_url }}"
    folder = write(tmp_path, {"order_shipped.txt": f"{said}.", "invoice_ready.html": said})
    templates = Rendered(folder, SHOP)
    about = {"key": "order_shipped", "data": {"number": "<7>"}}
    assert templates.render(about).text == "order_shipped Order <7> is on its way False  ."
    assert templates.render(about, "de_AT", "u").text == "order_shipped Bestellung <7> ist unterwegs False de-AT u."
    assert templates.render(about, "Deutsch, bitte").text == "order_shipped Order <7> is on its way False  ."
    required = templates.render({"key": "invoice_ready", "data": {"number": "<7>"}}, "de")
    assert required.html == "invoice_ready Rechnung &lt;7&gt; liegt bereit True de"


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("new_login.txt", "a\n{% if %}", "new_login.txt, line 2: "),
        ("new_login.html", "a\nb\n{{ data.x", "new_login.html, line 3: "),
        (
            "registration.subject.txt",
            "\n{{ data.x|shout }}",
            "registration.subject.txt, line 2: No filter named 'shout'.",
        ),
        ("_part.html", "{% endif %}", "_part.html, line 1: "),
        ("new_login.txt", "\n\n{{ dta.city }}", "new_login.txt, line 3: there is no variable 'dta'."),
        ("new_login.txt", "\n{% include '_footer.txt' %}", "new_login.txt, line 2: refers to "),
        ("new_login.html", "{% extends '_plain.txt' %}", "new_login.html, line 1: refers to "),
        ("new_login.html", "{% include data.file %}", "new_login.html, line 1: refers to "),
        ("new_login.html", "{% from 'x' import y %}", "new_login.html, line 1: refers to "),
    ],
)
def test_a_broken_template_is_reported_with_its_file_and_line(
    tmp_path: Path, name: str, source: str, fault: str
) -> None:
    folder = write(tmp_path, {"_plain.txt": "", "new_post.txt": "fine", name: source})
    (found, *_) = Rendered(folder).faults(name)
    assert found.startswith(fault)


@pytest.mark.parametrize("name", ["newlogin.txt", "new_login.htm", "new_login.subject.html", "README.md"])
def test_another_file_is_a_fault(tmp_path: Path, name: str) -> None:
    with pytest.raises(TemplatesError, match=f"^{re.escape(name)}: not KEY"):
        Templates(Settings(templates_dir=write(tmp_path, {"new_post.txt": "fine", name: ""})))


async def test_every_fault_is_reported_and_hidden_files_are_ignored(tmp_path: Path) -> None:
    folder = write(tmp_path, {"new_login.txt": "{{", "registration.txt": "{% x %}", ".new_login.txt.swp": "{{"})
    with pytest.raises(TemplatesError, match=r"new_login\.txt, line 1: .*\nregistration\.txt, line 1: "):
        await Templates(Settings(templates_dir=folder)).test()
    (folder / "new_post.txt").write_bytes(b"\xff")
    (folder / "new_post.html").mkdir()
    with pytest.raises(TemplatesError, match=r"new_post\.html: .*\nnew_post\.txt: "):
        Templates(Settings(templates_dir=folder))


def test_a_broken_template_stops_the_start_with_other_faults(tmp_path: Path) -> None:
    folder = write(tmp_path, {"new_login.html": "<p>\n{{ data.city }</p>"})
    done = run_here(cwd=tmp_path, **COMPLETE, TEMPLATES_DIR=f"{folder}", PORT="0")
    assert done.returncode == 2
    assert "TEMPLATES_DIR: new_login.html, line 2: " in done.stderr
    assert "PORT: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_directory_that_cannot_be_read_is_a_fault(environment: Callable[..., Settings]) -> None:
    for folder in ("/nothing/here", __file__):
        with pytest.raises(SettingsError, match=f"TEMPLATES_DIR: Cannot be read: {folder}: N"):
            environment(**COMPLETE, TEMPLATES_DIR=folder)
    shop = {"KINDS_FILE": f"{ROOT / 'examples/kinds.toml'}"}
    assert environment(**shop, TEMPLATES_DIR=f"{EXAMPLES}").templates_dir == EXAMPLES
