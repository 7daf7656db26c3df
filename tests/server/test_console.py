"""The console: what it is served with, what it may ask for, and how it does in a real browser."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from octavo.server.console import STATIC
from tests.server.process import Served, serving
from tests.server.test_hardening import answers_still
from tests.server.test_http import error_of
from tests.server.test_keyring import tenant_row

webdriver = pytest.importorskip("selenium.webdriver")

KEYS = {"alice": "key-of-alice", "bob": "key-of-bob"}


@pytest.fixture(scope="module")
def locked(folder, tmp_path_factory) -> Iterator[Served]:
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys.write_text("".join(tenant_row(name, key) for name, key in KEYS.items()))
    with serving([str(folder), "--keys", str(keys)]) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, from the system's packages."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("Chromium is not installed: no `chromium` and `chromedriver` on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "disable-gpu",
        "window-size=1400,1500",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield started
    finally:
        started.quit()


def text(browser: Any, id_: str) -> str:
    return str(browser.find_element("id", id_).text)


def messages(browser: Any) -> list[tuple[str, str]]:
    """Who said what, so far."""
    found = browser.find_elements("css selector", "#messages li")
    return [(one.get_attribute("data-role"), one.text) for one in found]


def until(true: Callable[[], object], within_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def say(browser: Any, prompt: str) -> None:
    browser.find_element("id", "prompt").send_keys(prompt)
    browser.find_element("id", "send").click()


def complaints(browser: Any) -> list[str]:
    """What the browser's own console calls an error: refused by the policy, broken, not found."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


# What is served


def test_the_files_are_small_and_come_with_a_strict_policy(server):
    size = 0
    for path, file in STATIC.items():
        answer = server.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(file.kind)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        size += len(answer.content)
    assert size < 150 * 1024
    sources = server.get("/").text + server.get("/console.css").text + server.get("/console.js").text
    assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[\w.-]+\.\w+", sources), (
        "nothing from elsewhere"
    )
    for markup in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert markup not in sources
    assert "style=" not in sources
    assert "onclick" not in sources


def test_the_files_need_no_key_and_what_they_ask_for_does(locked):
    for path in STATIC:
        assert locked.get(path).status_code == 200
    for path in ("/console/pages", "/console/requests", "/metrics"):
        assert locked.get(path).status_code == 401
        assert locked.get(path, headers={"x-api-key": KEYS["alice"]}).status_code == 200


def test_it_can_be_switched_off(folder):
    with serving([str(folder), "--no-console"]) as served:
        for path in (*STATIC, "/console/pages", "/console/requests"):
            refused = served.get(path)
            assert (refused.status_code, error_of(refused)["code"]) == (404, "not_found")
        assert answers_still(served)


def test_others_are_counted_and_not_named(locked):
    shown = locked.get("/console/pages", headers={"x-api-key": KEYS["alice"]})
    (engine,) = shown.json()["engines"]
    assert engine == {"engine": 0, "num_blocks": 6, "states": "011223", "owners": [0, 2, 3, 2, 0, 3]}
    assert shown.json()["num_others"] == 2
    assert "somebody" not in shown.text


def test_many_who_look_at_the_blocks_ask_the_engine_once_a_second(server):
    server.until(lambda health: "steps" in health["engine"])
    began_s, before = time.monotonic(), server.health()["engine"]["steps"]
    for _ in range(100):
        assert server.get("/console/pages").status_code == 200
    took_s = time.monotonic() - began_s
    time.sleep(1.5)  # for the next pulse
    assert server.health()["engine"]["steps"] - before <= took_s + 2


def test_requests_are_ones_own_and_without_any_text(locked):
    for name, key in KEYS.items():
        body = {"prompt": f"say:the secret of {name}", "max_tokens": 30}
        headers = {"x-api-key": key, "x-request-id": f"asked-by-{name}"}
        assert locked.post("/v1/completions", body, headers=headers).status_code == 200
    shown = locked.get("/console/requests", headers={"x-api-key": KEYS["alice"]})
    ids = [span["attributes"]["octavo.request.id"] for span in shown.json()["requests"]]
    assert "asked-by-alice" in ids
    assert "asked-by-bob" not in ids
    assert "secret" not in shown.text
    (span,) = [
        one for one in shown.json()["requests"] if one["attributes"]["octavo.request.id"] == "asked-by-alice"
    ]
    assert [child["name"] for child in span["children"]] == ["text_completion fake"]
    assert span["start_s"] <= span["children"][0]["start_s"] <= span["end_s"] <= shown.json()["now_s"]


# In a browser


@pytest.fixture
def page(browser, server) -> Iterator[Any]:
    browser.get_log("browser")
    browser.get(server.url + "/")
    until(lambda: "fake" in text(browser, "model"))
    yield browser
    assert complaints(browser) == []


def test_a_chat_streams_and_goes_on(page):
    say(page, "say:hello there")
    until(lambda: "first token after" in text(page, "figures"))
    assert messages(page) == [("user", "say:hello there"), ("assistant", "hello there")]
    assert "tokens/s" in text(page, "figures")
    say(page, "say:again")
    until(lambda: messages(page)[2:] == [("user", "say:again"), ("assistant", "again")])
    page.find_element("id", "clear").click()
    assert messages(page) == []


def test_an_answer_can_be_stopped_and_the_server_lets_go_of_it(page, server):
    say(page, "!forever !slow")
    until(lambda: len(messages(page)) == 2 and len(messages(page)[1][1]) > 3)
    page.find_element("id", "stop").click()
    until(lambda: messages(page)[-1] == ("error", "stopped"))
    server.until(lambda health: health["requests"] == 0)


def test_what_fails_is_said(page):
    say(page, "!error")
    until(lambda: "the logits are NaN" in text(page, "messages"))


def test_what_a_model_says_is_shown_as_text(page):
    evil = "say:<img src=x onerror=alert(1)><script>document.title='gone'</script>"
    say(page, evil)
    until(lambda: "first token after" in text(page, "figures"))
    assert evil.removeprefix("say:") in text(page, "messages")
    assert page.title == "Octavo"
    assert page.find_elements("css selector", "#messages img, #messages script") == []


def test_charts_pages_and_timelines(page, server):
    server.post("/v1/completions", {"prompt": "say:one two three"}, headers={"x-request-id": "looked-at"})
    until(lambda: "fake" in text(page, "requests") or "POST" in text(page, "requests"))
    assert text(page, "pages-figures") == "1 free, 2 in use, 2 cached, 1 pinned"
    assert "in use by others" in text(page, "legend")
    (canvas,) = page.find_elements("css selector", "#pages canvas")
    color_of = "[...arguments[0].getContext('2d').getImageData(10 * i + 1, 1, 1, 1).data].join()"
    colors = page.execute_script(f"return [0, 1, 2].map(i => {color_of})", canvas)
    assert len(set(colors)) == 3, "free, in use by the caller, in use by another"
    page.find_element("css selector", "#requests button").click()
    until(lambda: "text_completion fake" in text(page, "timeline") or "chat fake" in text(page, "timeline"))
    assert "octavo.request.id" in text(page, "timeline")
    until(lambda: page.find_elements("css selector", "#charts path[d*='L']"), 30)
    assert len(page.find_elements("css selector", "#charts figure")) == 8


def test_it_asks_nobody_but_its_own_server(page, server):
    time.sleep(1.5)
    asked = [
        message["params"]["request"]["url"]
        for entry in page.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    ]
    assert asked
    assert [url for url in asked if not url.startswith((server.url, "data:", "chrome:"))] == []


def test_a_wrong_key_is_said_and_a_right_one_helps(browser, locked):
    browser.get(locked.url + "/")
    until(lambda: "API key is missing" in text(browser, "problem"))
    field = browser.find_element("id", "key")
    field.send_keys(KEYS["alice"])
    browser.find_element("id", "prompt").click()
    with contextlib.suppress(AssertionError):
        until(lambda: not browser.find_element("id", "problem").is_displayed())
    assert not browser.find_element("id", "problem").is_displayed()
    say(browser, "say:with a key")
    until(lambda: messages(browser)[-1] == ("assistant", "with a key"))
    browser.get("about:blank")
    browser.get_log("browser")
