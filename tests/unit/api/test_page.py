"""The page at `/docs`: complete without a script, safe with hostile names, and from here only."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import muelle.api
from muelle.api import page
from muelle.core.signature import Signature, TensorSpec
from tests.unit.api.served import MODELS, model, version

READY = (True, "")
FOLDER = Path(muelle.api.__file__).parent
VOID = {"meta", "link", "img"}


class Outline(HTMLParser):
    """Collects addresses, and fails when elements do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.inline: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.addresses += [given[key] or "" for key in ("href", "src", "action") if key in given]
        self.inline += [key for key in given if key.startswith("on") or key == "style"]
        if tag == "script" and "src" not in given and given.get("type") != "application/json":
            self.inline.append("script")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def rendered(language: str = "en") -> str:
    """The page of all models."""
    return page.render(MODELS, READY, "0.0.test", language).decode()


def test_it_shows_each_model_s_signature() -> None:
    """Names, datatypes, columns and classes are in the page itself, before any script runs."""
    html = rendered()
    for name in ("churn", "iris", "sepal length", "virginica", "FP32", "bad magic number"):
        assert name in html
    assert "scikit-learn skops" in html


@pytest.mark.parametrize("language", page.LANGUAGES)
def test_it_is_well_formed_and_loads_nothing_from_elsewhere(language: str) -> None:
    """Elements close in order; all addresses are relative; no inline script, handler or style."""
    outline = Outline(rendered(language))
    assert len(outline.addresses) > 10
    assert not [a for a in outline.addresses if ":" in a or a.startswith("/")]
    assert outline.inline == []


def test_the_outline_finds_faults() -> None:
    """Negative control for the test above."""
    assert Outline('<p onclick="x()"></p><script>1</script>').inline == ["onclick", "script"]
    assert Outline('<img src="https://cdn.example/x.png">').addresses == [
        "https://cdn.example/x.png"
    ]
    with pytest.raises(AssertionError):
        Outline("<p><b></p></b>")


def test_assets_name_no_other_host() -> None:
    """The only address with a host is the name of SVG's namespace, which nothing loads."""
    for file in (FOLDER / "assets").iterdir():
        text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"//[\w-]+\.\w|@import|[^.\w]url\(['\"h]", text), file.name


def test_the_policy_forbids_what_is_not_ours() -> None:
    """The browser may load from here only, and run no inline code."""
    policy = dict(page.HEADERS)[b"Content-Security-Policy"]
    assert b"default-src 'none'" in policy and b"unsafe" not in policy
    assert b"frame-ancestors 'none'" in policy


def test_hostile_texts_stay_texts() -> None:
    """Names from a model file cannot become elements, also not inside the data for the script."""
    nasty = "</script><script>alert(1)</script>\"'<img src=x onerror=y>"
    signature = Signature(
        inputs=(TensorSpec(name=nasty, datatype="FP32", shape=(-1, 1), columns=(nasty,)),),
        outputs=(
            TensorSpec(
                name="p", datatype="FP32", shape=(-1, 2), role="probabilities", classes=(nasty, 1)
            ),
        ),
    )
    models = (model("m", version(signature, format=nasty, reason=nasty)),)
    html = page.render(models, (False, nasty), nasty, "en").decode()
    outline = Outline(html)
    assert outline.tags.count("script") == 3
    assert outline.inline == [] and "x" not in outline.addresses


def test_the_data_for_the_script_is_whole() -> None:
    """Small examples are there as text, so that large integers keep their digits."""
    found = re.search(r'id="tries">(.*?)</script>', rendered())
    assert found is not None
    tries = json.loads(found[1])
    first, second = tries["churn"]
    assert first["native"]["path"] == "models/churn/predict"
    assert second["v2"]["path"] == "v2/models/churn/versions/1/infer"
    assert str(2**53 + 1) in first["native"]["body"]
    assert tries["image.net"][0]["v2"] == {
        "path": "v2/models/image.net/infer",
        "example": "models/image.net/example?protocol=v2",
    }
    assert "sick" not in tries or tries["sick"] == []


@pytest.mark.parametrize(
    ("asked", "accepted", "language"),
    [
        ("", "", "en"),
        ("es", "en", "es"),
        ("", "es-MX,es;q=0.9", "es"),
        ("", "de, es;q=0.5", "es"),
        ("", "de", "en"),
        ("../../x", "fr", "en"),
    ],
)
def test_the_language_is_the_reader_s(asked: str, accepted: str, language: str) -> None:
    """The link decides, then the browser's wishes in order, then English."""
    assert page.choose_language(asked, accepted) == language


def test_the_languages_say_the_same() -> None:
    """Each catalogue has every text, and the same places to fill."""
    english, *others = (
        json.loads((FOLDER / "locales" / f"{language}.json").read_text("utf-8"))
        for language in page.LANGUAGES
    )
    for other in others:
        assert other.keys() == english.keys()
        for key, text in english.items():
            assert re.findall(r"\{\w+\}", other[key]) == re.findall(r"\{\w+\}", text)


def test_asset_addresses_change_with_their_content() -> None:
    """They may be kept for ever, since an address names one content."""
    for name, answer in page.assets().items():
        assert (FOLDER / "assets" / name).read_bytes() == answer.body
        assert b"immutable" in dict(answer.headers)[b"Cache-Control"]
        assert f"docs/assets/{name}?v=" in rendered()
