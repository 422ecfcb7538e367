"""The docs page in a real browser against a real server: every example is sent and answered."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests import models
from tests.e2e.chromium import PROGRAM, Chromium, chromium
from tests.serving import Served

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")

BIG_IMAGE = '''
from muelle import Model, TensorSpec


class Image(Model):
    """The brightness of a picture that is too large for a page."""

    inputs = (TensorSpec(name="image", datatype="FP32", shape=(-1, 3, 64, 64)),)
    outputs = (TensorSpec(name="mean", datatype="FP32", shape=(-1,)),)

    def predict(self, inputs):
        return {"mean": inputs["image"].mean(axis=(1, 2, 3))}
'''


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """A server of three models: records of text and numbers, plain rows, large rows."""
    image = models.write_python("image/model.py", BIG_IMAGE)
    with Served(
        f"people={models.sklearn_mixed().path}",
        f"iris={models.onnx_classifier().path}",
        f"image={image}",
        "--trust",
    ) as served:
        served.wait_for_line("docs")
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    """One browser for the file."""
    with chromium() as started:
        yield started


@pytest.fixture
def page(server: Served, browser: Chromium) -> Chromium:
    """The browser on the page, with nothing noted yet."""
    browser.urls.clear()
    browser.complaints.clear()
    browser.open(f"http://127.0.0.1:{server.port}/docs")
    return browser


def panel(name: str, part: str) -> str:
    """A part of one model's panel, as the browser finds it."""
    return f"document.querySelector('[data-model={name}] {part}')"


def answer(page: Chromium, name: str) -> tuple[str, str]:
    """Wait for a model's answer; return the status line and the text."""
    page.wait_for(f"/^\\d/.test({panel(name, '[data-status]')}.textContent)")
    status = page.ask(f"{panel(name, '[data-status]')}.textContent")
    return status, page.ask(f"{panel(name, '[data-answer]')}.textContent")


@pytest.mark.parametrize("protocol", ["native", "v2"])
@pytest.mark.parametrize("name", ["people", "iris", "image"])
def test_every_example_is_answered_with_200(page: Chromium, name: str, protocol: str) -> None:
    """Send, untouched, gives an answer of the model, in both protocols."""
    page.ask(f"{panel(name, f'[data-protocol={protocol}]')}.click()")
    # At once: a large example may still be on its way to the page.
    page.ask(f"{panel(name, '[data-send]')}.click()")
    status, text = answer(page, name)
    assert status.startswith("200 OK"), text
    told = json.loads(text)
    assert told["model" if protocol == "native" else "model_name"] == name
    if protocol == "native":
        assert len(told["predictions"]) == 1


def test_the_page_is_this_server_s_alone(page: Chromium, server: Served) -> None:
    """No request goes to another host, and no policy is broken while everything is used."""
    page.ask("document.querySelectorAll('[data-send]').forEach((b) => b.click())")
    for name in ("people", "iris", "image"):
        answer(page, name)
    hosts = {urlsplit(url).netloc for url in page.urls}
    assert hosts == {f"127.0.0.1:{server.port}"}
    assert page.complaints == []


def test_the_browser_s_notes_find_a_stranger(page: Chromium) -> None:
    """Negative control: a load from elsewhere is noted, and the policy stops it."""
    page.ask("document.head.append(Object.assign(new Image(), {src: 'http://elsewhere.test/x'}))")
    page.wait_for("document.querySelector('head img').complete")
    assert any("elsewhere.test" in text for text in (*page.complaints, *page.urls))


def test_a_wrong_body_shows_what_is_wrong(page: Chromium) -> None:
    """An error of the server is shown in its words, one of JSON before anything is sent."""
    area = panel("iris", "textarea")
    page.ask(
        f"{area}.value = '{{\"instances\": [[1, 2]]}}'; {panel('iris', '[data-send]')}.click()"
    )
    status, text = answer(page, "iris")
    assert status.startswith("400")
    assert json.loads(text)["field"] == "instances[0]"
    before = len(page.urls)
    page.ask(f"{area}.value = '{{'; {panel('iris', '[data-send]')}.click()")
    page.wait_for(f"{panel('iris', '[data-status]')}.textContent.includes('JSON')")
    assert len(page.urls) == before
    page.ask(f"{panel('iris', '[data-reset]')}.click()")
    assert "instances" in page.ask(f"{area}.value")


@pytest.mark.parametrize("name", ["people", "iris", "image"])
def test_the_curl_line_works_as_it_stands(page: Chromium, name: str) -> None:
    """Pasted into a shell, the line that the page shows gets a prediction."""
    page.wait_for(f"{panel(name, '[data-curl]')}.textContent != ''")
    line = page.ask(f"{panel(name, '[data-curl]')}.textContent")
    done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=30, check=True)
    assert len(json.loads(done.stdout)["predictions"]) == 1


def test_an_answer_comes_as_csv_too(page: Chromium) -> None:
    """The form is the reader's choice."""
    page.ask(
        f"{panel('people', '[data-accept] select')}.value = 'text/csv';"
        f"{panel('people', '[data-send]')}.click()"
    )
    status, text = answer(page, "people")
    assert status.startswith("200") and text.splitlines()[0].startswith("label,")


def test_the_page_speaks_spanish(browser: Chromium, server: Served) -> None:
    """A link turns the language; the page's own texts follow, also those of the script."""
    browser.open(f"http://127.0.0.1:{server.port}/docs?lang=es")
    assert browser.ask("document.documentElement.lang") == "es"
    assert browser.ask(f"{panel('iris', '[data-send]')}.textContent") == "Enviar"
    browser.ask(f"{panel('iris', 'textarea')}.value = '{{'; {panel('iris', '[data-send]')}.click()")
    text = browser.ask(f"{panel('iris', '[data-status]')}.textContent")
    assert re.search("Esto todavía no es JSON", text)


def test_the_theme_is_kept(page: Chromium, server: Served) -> None:
    """Who chose dark finds it dark again."""
    page.ask("localStorage.setItem('muelle.theme', 'light')")
    page.open(f"http://127.0.0.1:{server.port}/docs?again")
    page.ask("document.getElementById('theme').click()")
    dark = page.ask("getComputedStyle(document.body).backgroundColor")
    page.open(f"http://127.0.0.1:{server.port}/docs?once-more")
    assert page.ask("document.documentElement.dataset.theme") == "dark"
    assert page.ask("getComputedStyle(document.body).backgroundColor") == dark
