"""The page of the server, driven in a browser against a server without a model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from serving.page_server import ANSWERS, HOSTILE, MODELS, PAGE, TURNS, PageServer, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BASE, TUNED = ".answer:nth-child(1)", ".answer:nth-child(2)"
TUNED_NAME = MODELS[0]["name"]
OpensPage = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("the system has no Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def server() -> Iterator[PageServer]:
    with serving() as server:
        yield server


@pytest.fixture
def open_page(browser: Browser, server: PageServer) -> Iterator[OpensPage]:
    """Opens the page; any error of its scripts, and anything that its policy forbids, fails the test."""
    contexts, errors = [], []

    def open_page(width: int = 1280, scheme: Any = "light", locale: str = "en-GB") -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, locale=locale, reduced_motion="reduce"
        )
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
        page.goto(server.url)
        page.wait_for_selector("#runs li, #key:not([hidden]), #empty .error:not([hidden])", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    # What a test lets the server refuse is told by the browser as well.
    assert [error for error in errors if not error.startswith("Failed to load resource")] == []


UNTIL_LONGER = """async (element, length) => {
  while (element.textContent.length <= length) await new Promise(requestAnimationFrame);
}"""


def ask(page: Page, question: str, until: str = "#send:not([hidden])") -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_selector(f".turn:last-child .asked:text-is({question!r})")
    page.wait_for_selector(until)


def text_of(page: Page, selector: str) -> str:
    """As it is in the document; what is seen may have other blanks."""
    return str(page.locator(f".turn:last-child {selector}").first.text_content())


def overflow(page: Page) -> int:
    """Pixels by which the page is too wide."""
    return int(
        page.evaluate(
            "Math.max(...[document.documentElement, ...document.querySelectorAll('main, aside, header')]"
            ".map(e => e.scrollWidth - e.clientWidth))"
        )
    )


@pytest.mark.parametrize(
    ("width", "scheme", "locale"),
    [(390, "light", "en-GB"), (390, "dark", "zh-CN"), (1280, "light", "zh-CN"), (1280, "dark", "en-GB")],
)
def test_widths_colours_and_languages(open_page: OpensPage, width: int, scheme: str, locale: str) -> None:
    page = open_page(width, scheme, locale)
    is_chinese = locale == "zh-CN"
    assert page.get_attribute("html", "lang") == ("zh-CN" if is_chinese else "en")
    ask(page, "57.84+13.64=")
    ask(page, "long line")
    marks = page.locator(".turn:first-child .status").all_inner_texts()
    assert marks == (["✗ 错误", "✓ 正确"] if is_chinese else ["✗ Wrong", "✓ Right"])
    boxes = [page.locator(f".turn:first-child {which}").bounding_box() for which in (BASE, TUNED)]
    assert boxes[0] and boxes[1]
    assert (boxes[0]["y"] == boxes[1]["y"]) == (width > 700)  # side by side, or one below the other
    assert overflow(page) == 0
    assert page.is_visible("#side") == (width > 1000)
    if width < 1000:
        page.click("#menu")
        assert overflow(page) == 0 and page.is_visible("#runs")
        page.keyboard.press("Escape")
        assert not page.is_visible("#side")

    def lightness() -> int:
        found = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return int(re.findall(r"\d+", found)[0])

    for is_changed in (False, True, False):
        assert (lightness() > 128) == ((scheme == "light") != is_changed)
        wrong = page.locator(".turn:first-child .status b").first.inner_text()
        assert wrong == ("错误" if is_chinese != is_changed else "Wrong")
        page.click("#theme")
        page.click("#language")
    page.reload()  # what was chosen stays
    chosen = ("dark" if scheme == "light" else "light", "en" if is_chinese else "zh-CN")
    assert (page.get_attribute("html", "data-theme"), page.get_attribute("html", "lang")) == chosen


def test_two_models_side_by_side(open_page: OpensPage, server: PageServer) -> None:
    page = open_page()
    assert page.locator(".head select").evaluate_all("all => all.map(e => e.value)") == ["chatglm-6b", TUNED_NAME]
    ask(page, "57.84+13.64=")
    ask(page, "hello")
    ask(page, "1.5+1=")
    assert page.locator(".head output").all_inner_texts() == ["0 of 2 right", "2 of 2 right"]
    assert {body["model"] for body in server.scored} == {TUNED_NAME}  # whose task marks both
    assert page.locator(".turn:nth-child(2) .figures").count() == 0
    given, right = page.locator(f".turn:first-child {BASE} dd").all()
    assert (given.inner_text(), right.inner_text()) == ("63.38", "71.48")
    assert given.locator("mark").all_inner_texts() == ["63", "3"]
    assert page.locator(f".turn:first-child {TUNED} dd").all_inner_texts() == ["71.48"]


def test_one_model(open_page: OpensPage, server: PageServer) -> None:
    server.models = MODELS[1:]
    page = open_page()
    assert page.locator(".head select:visible").count() == 1 and not page.is_visible("#draw")
    ask(page, "1+1=")
    assert page.locator(".answer").count() == 1 and server.scored == []


def test_models_are_chosen(open_page: OpensPage, server: PageServer) -> None:
    page = open_page()
    page.select_option(".head:nth-child(2) select", "")
    page.select_option(".head:nth-child(1) select", TUNED_NAME)
    page.click("#draw")
    page.wait_for_selector(".answer.right, .answer.wrong, .answer .meta span")
    assert [body["model"] for body in server.asked] == [TUNED_NAME]
    assert re.fullmatch(r"[\d.]+[-+*][\d.]+=", server.asked[0]["messages"][0]["content"])


def test_no_models(open_page: OpensPage, server: PageServer) -> None:
    server.models = []
    page = open_page()
    assert page.inner_text("#empty p") == "The server serves no model."
    page.fill("#question", "hello")
    page.press("#question", "Enter")
    assert page.input_value("#question") == "hello" and server.asked == []


@pytest.mark.parametrize("question", ["2*3", "2*3="])
def test_tools_are_folded(open_page: OpensPage, server: PageServer, question: str) -> None:
    page = open_page()
    ask(page, question)
    assert text_of(page, f"{TUNED} .text") == "6"
    summaries = page.locator(f"{TUNED} summary").all_inner_texts()
    assert summaries == ["Thoughts", "calculate 2*3 → 6"][question == "2*3" :]
    assert not page.locator(f"{TUNED} .tool pre").first.is_visible()
    page.locator(f"{TUNED} summary").last.click()
    assert page.locator(f"{TUNED} .tool pre:visible").all_inner_texts() == ['{"expression": "2*3"}', "6"]
    assert [body["tool_calls"] for body in server.scored] == [TURNS[0]["tool_calls"]] * 2
    page.select_option("#earlier", "all")
    ask(page, "hello")
    called = TURNS[0] if question == "2*3" else {**TURNS[0], "content": None}
    assert server.asked[-1]["messages"][1:-1] == [called, TURNS[1], {"role": "assistant", "content": "6"}]


def test_streaming_and_stopping(open_page: OpensPage, server: PageServer) -> None:
    page = open_page()
    for count, stop in enumerate((lambda: page.click("#stop"), lambda: page.keyboard.press("Escape")), 1):
        server.gone.clear()
        ask(page, "endless", "#stop:not([hidden])")
        text = page.locator(".turn:last-child .text").first
        for length in (20, 60):
            text.evaluate(UNTIL_LONGER, length)
        assert [text.get_attribute(f"aria-{name}") for name in ("busy", "live")] == ["true", "polite"]
        page.fill("#question", "next")
        page.press("#question", "Enter")  # is not sent while the other is answered
        stop()
        page.wait_for_selector("#send:not([hidden])")
        assert server.gone.wait(5)
        assert text_of(page, ".text").startswith("0 1 2 3") and text_of(page, ".meta").endswith("stopped")
        assert text.get_attribute("aria-busy") == "false"
        assert server.scored == [] and len(server.asked) == 2 * count and page.input_value("#question") == "next"


FAILURES = {
    "bad field": ["Not answered (400).", "9 is more than 2. Lower it.", "Field: temperature"],
    "named field": ["Not answered (400).", "top_p: 2 is more than 1."],
    "busy": ["The server is busy.", "64 questions wait already.", "Try again in 3 s."],
    "lost": ["The connection was lost. Ask again."],
    "fails": ["Not answered (server_error).", "the model has failed"],
}


def test_failures(open_page: OpensPage, server: PageServer) -> None:
    page = open_page()
    page.select_option("#earlier", "all")
    for question, said in FAILURES.items():
        ask(page, question)
        assert text_of(page, ".error").strip() == " ".join(said)
        assert page.get_attribute(".turn:last-child .error", "role") == "alert"
        if question in ("lost", "fails"):
            assert text_of(page, ".text") == f"You said: {question}"  # what came stays
    ask(page, "hello")
    assert len(server.asked[-1]["messages"]) == 1  # nothing is built on an answer that failed


def test_unreachable(open_page: OpensPage) -> None:
    page = open_page()
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page, "hello")
    assert text_of(page, ".error").strip() == "The connection was lost. Ask again."


def test_key(open_page: OpensPage, server: PageServer) -> None:
    server.key = "sk-1"
    page = open_page()
    assert page.evaluate("document.activeElement.id") == "key-field"
    page.keyboard.type("sk-0")
    page.keyboard.press("Enter")
    page.wait_for_selector("#empty .error:not([hidden])")
    page.fill("#key-field", "sk 1")  # is not sent
    page.keyboard.press("Enter")
    assert page.is_visible("#key")
    page.fill("#key-field", "sk-1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#runs li")
    server.key = "sk-2"
    ask(page, "hello")
    assert text_of(page, ".error").startswith("The server asks for an API key.")
    page.fill("#key-field", "sk-2")
    page.keyboard.press("Enter")  # asks again by itself
    page.wait_for_selector(".answer:not(.failed) .meta span")
    assert text_of(page, ".text") == "You said: hello"
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert page.evaluate("Object.values(sessionStorage)") == ["sk-2"]
    with page.expect_download() as saved:  # a page that is opened would send no key
        page.click("#runs a")
    assert saved.value.suggested_filename == f"{TUNED_NAME}.html"
    assert b"The report" in Path(saved.value.path()).read_bytes()


def test_nothing_of_a_model_runs(open_page: OpensPage) -> None:
    page = open_page()
    ask(page, "hostile")
    page.click("#runs b")
    text = HOSTILE.replace("```html\n", "").replace("```\n", "")
    assert text_of(page, ".text") == text
    tags = "all => [...new Set(all.map(e => e.tagName))].sort()"
    assert page.locator(".text *").evaluate_all(tags) == ["CODE", "P", "PRE"]
    isolated = "all => all.every(e => getComputedStyle(e).unicodeBidi === 'isolate')"
    assert page.locator(".text p, .text code, bdi").evaluate_all(isolated)
    ask(page, "<img src=x onerror='window.ran = 7'>")
    ask(page, "code")
    assert page.locator(f".turn:last-child {BASE} code").text_content() == "print('<b>')\n\n    x = 1\n"
    assert page.locator(f".turn:last-child {BASE} p").all_text_contents()[0] == "Before:\n"
    assert page.evaluate("window.ran") is None


@pytest.mark.parametrize("question", ["long", "long line"])
def test_long_answers_are_added_to(open_page: OpensPage, question: str) -> None:
    """What was written stays as it is, in blocks of bounded length."""
    page = open_page()
    page.select_option(".head:nth-child(2) select", "")
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_selector(".text p", state="attached")
    page.evaluate("window.first = document.querySelector('.text p')")
    page.wait_for_selector("#send:not([hidden])")
    assert page.evaluate("window.first.isConnected")
    assert text_of(page, ".text") == ANSWERS[question]
    if question == "long":
        lengths = page.locator(".text p").evaluate_all("all => all.map(e => e.textContent.length)")
        assert len(lengths) > 10 and max(lengths) < 10_000


# A text that comes in pieces, with frames between them, is shown as if it had come at once.
SPLITS = """async (texts) => {
  const { Writer } = await import("/page/writer.js");
  const frame = () => new Promise(requestAnimationFrame);
  const shown = async (pieces) => {
    const element = document.createElement("div");
    const writer = new Writer(element);
    for (const piece of pieces) { writer.write(piece); await frame(); }
    writer.end();
    return [...element.querySelectorAll("p, code")].map((e) => [e.tagName, e.textContent]);
  };
  const wrong = [];
  for (const text of texts) {
    const whole = JSON.stringify(await shown([text]));
    for (const size of [1, 3]) {
      const pieces = text.match(new RegExp(`[^]{1,${size}}`, "g"));
      if (JSON.stringify(await shown(pieces)) !== whole) wrong.push([text, size]);
    }
  }
  return [wrong, await shown([texts[0]])];
}"""


def test_pieces_do_not_matter(open_page: OpensPage) -> None:
    texts = ["a\n```py\nb\n``` c\n```\nd", "```\nx", "`` a\n  ```\n\n````\n```\n", "````\n```\n````\n", "a ```b```\n"]
    wrong, shown = open_page().evaluate(SPLITS, texts)
    assert wrong == []
    assert shown == [["P", "a\n"], ["CODE", "b\n``` c\n"], ["P", "d"]]


ALIGNED = """async (pairs) => {
  const { alignNumbers } = await import("/page/figures.js");
  return pairs.map((pair) => alignNumbers(...pair).map((row) => row.map((e) => [e.tagName, e.textContent])));
}"""


def test_numbers_are_aligned(open_page: OpensPage) -> None:
    pairs = [["9.5", "-10.25"], ["1314.4", "1322.5"], ["7", "7.25"], ["undefined", "1"], ["1" * 99, "2"]]
    for pair, rows in zip(pairs, open_page().evaluate(ALIGNED, pairs), strict=True):
        texts = ["".join(text for _, text in row) for row in rows]
        assert [text.strip() for text in texts] == pair
        if max(map(len, pair)) < 9:
            assert len(texts[0]) == len(texts[1])
            assert {text.find(".") for text in texts if "." in text} in ({texts[0].find(".")}, {texts[1].find(".")})
            same = [[tag == "SPAN" and text != " " for tag, part in row for text in part] for row in rows]
            for place, signs in enumerate(zip(*texts, strict=True)):
                assert (same[0][place] and same[1][place]) == (signs[0] == signs[1])


def test_keyboard(open_page: OpensPage, server: PageServer) -> None:
    page = open_page()
    assert page.evaluate("document.querySelector('a, button, input') === document.querySelector('.skip')")
    page.focus(".skip")
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    page.keyboard.press("Enter")
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.input_value("#question") == "one\ntwo"
    composing = "e => e.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true}))"
    page.locator("#question").evaluate(composing)
    assert server.asked == [] and page.locator(".turn").count() == 0
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn")
    assert page.input_value("#question") == ""
    page.wait_for_selector("#send:not([hidden])")
    page.fill("#question", "endless")
    page.focus("#send")
    page.keyboard.press("Space")
    page.wait_for_selector("#stop:focus")
    page.keyboard.press("Space")
    page.wait_for_selector("#send:focus")
    visited = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.evaluate_handle("document.activeElement")
        name, outline = focused.evaluate(
            "e => [e === document.body ? 'body' : e.id || e.ariaLabel || e.textContent,"
            " getComputedStyle(e).outlineStyle]"
        )
        if name in visited:
            break
        visited.add(name)
        assert outline != "none" or name == "body", name
    assert {"new", "menu", "language", "theme", "question", "send", "temperature", "system", "Ask again"} <= visited


def test_everything_has_a_name(open_page: OpensPage) -> None:
    page = open_page()
    ask(page, "2*3")
    nameless = page.locator("button, input, select, textarea, a").evaluate_all(
        "all => all.filter(e => !(e.ariaLabel || e.labels?.length || e.textContent.trim())).map(e => e.outerHTML)"
    )
    assert nameless == []


def test_settings(open_page: OpensPage, server: PageServer) -> None:
    page = open_page()
    ask(page, "first")
    given = {"model", "messages", "stream", "stream_options"}
    assert all(set(body) == given for body in server.asked)  # what is left empty is not sent
    wanted = {"temperature": 0.5, "top_p": 0.9, "max_completion_tokens": 64, "seed": -3}
    for name, value in wanted.items():
        page.fill(f"#{name}", str(value))
    page.fill("#system", "Be brief.")
    ask(page, "second")
    by_model = {body["model"]: body for body in server.asked[2:]}
    assert all({name: body[name] for name in wanted} == wanted for body in by_model.values())
    system, question = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "second"}
    earlier = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "You said: first"}]
    assert by_model[TUNED_NAME]["messages"] == [system, question]  # its run learned single questions
    assert by_model["chatglm-6b"]["messages"] == [system, *earlier, question]
    page.select_option("#earlier", "none")
    ask(page, "third")
    assert [len(body["messages"]) for body in server.asked[4:]] == [2, 2]
    page.fill("#temperature", "-1")
    page.fill("#question", "fourth")
    page.press("#question", "Enter")
    assert page.evaluate("document.activeElement.id") == "temperature"
    assert page.input_value("#question") == "fourth" and len(server.asked) == 6


def test_again_edit_and_new(open_page: OpensPage, server: PageServer) -> None:
    page = open_page()
    ask(page, "1.5+1=")
    ask(page, "2.5+1=")
    page.click(".turn:last-child button:text-is('Ask again')")
    page.wait_for_selector(".turn:last-child .answer.right")
    page.wait_for_selector("#send:not([hidden])")
    assert page.locator(".turn").count() == 2 and len(server.asked) == 6
    assert page.locator(".head output").first.inner_text() == "0 of 2 right"
    assert page.locator("button:text-is('Edit'):visible").count() == 1  # of the last question
    page.click("button:text-is('Edit'):visible")
    assert page.input_value("#question") == "2.5+1=" and page.locator(".turn").count() == 1
    assert page.locator(".head output").first.inner_text() == "0 of 1 right"
    ask(page, "endless", "#stop:not([hidden])")
    page.click("#new")
    page.wait_for_selector("#empty:not([hidden])")
    assert page.locator(".turn").count() == 0 and server.gone.wait(5)
    page.wait_for_selector("#send:not([hidden])")
    ask(page, "hello")
    assert all(len(body["messages"]) == 1 for body in server.asked[-2:])


def test_runs(open_page: OpensPage) -> None:
    page = open_page()
    first, second = page.locator("#runs li").all()
    assert first.locator(".accuracy").inner_text() == "99.8%"
    assert second.locator("b").text_content() == "a/b \u202e<b>x</b>" and second.locator("a").count() == 0
    with page.context.expect_page() as opened:
        first.locator("a").click()
    opened.value.wait_for_load_state()
    assert opened.value.url.endswith(f"/api/runs/{TUNED_NAME}/report") and "The report" in opened.value.content()


def test_nothing_runs_but_files() -> None:
    """No script or style stands in the page, none is made of text, and nothing is loaded from elsewhere."""
    page = (PAGE / "index.html").read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
    named = set(re.findall(r'(?:src|href)="/page/([^"]+)"', page))
    scripts = {file.name: file.read_text("utf-8") for file in PAGE.glob("*.js")}
    imported = {name for text in scripts.values() for name in re.findall(r'from "\./([^"]+)"', text)}
    assert named | imported == {file.name for file in PAGE.iterdir()} - {"index.html"}
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|document\.write|\beval\b|new Function|DOMParser|https?://"
    )
    assert [name for name, text in scripts.items() if re.search(forbidden, text)] == []


def test_both_languages_have_all_words() -> None:
    words = (PAGE / "words.js").read_text("utf-8")
    english, chinese = (
        {
            name: set(re.findall(r"\{(\w+)\}", text))
            for name, text in re.findall(r'^    "?([\w-]+)"?: "(.*)",$', part, re.M)
        }
        for part in re.findall(r"^  \w\w: \{\n(.*?)^  \},$", words, re.M | re.S)
    )
    assert english == chinese and len(english) > 40
    used = set(re.findall(r'data-(?:word|label|hint|title)="([^"]+)"', (PAGE / "index.html").read_text("utf-8")))
    assert used <= set(english)
