"""The page at `/docs`: what each model takes and gives, with its example ready to be sent. Pure.

Written on the server; a small script of our own adds sending, copying and the theme. Every asset
lies in the package, and the page's policy forbids the browser to load anything from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import msgspec

from muelle.api.answers import EXAMPLE_LIMIT_BYTES
from muelle.api.examples import example_body, example_of, v2_example_body
from muelle.core.signature import TensorSpec
from muelle.core.status import ModelStatus, VersionStatus
from muelle.protocols.http import Answer

LANGUAGES = {"en": "English", "es": "Español"}

HEADERS = (
    (
        b"Content-Security-Policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"Referrer-Policy", b"no-referrer"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Cache-Control", b"no-cache"),
    (b"Vary", b"Accept-Language"),
)

_HERE = Path(__file__).parent
_TYPES = {
    "docs.css": b"text/css; charset=utf-8",
    "docs.js": b"text/javascript; charset=utf-8",
    "logo.svg": b"image/svg+xml",
}
_SHOWN_NAMES = 6
"""Columns or classes that are shown before the rest folds away."""

Text = Callable[[str], str]


def assets() -> Mapping[str, Answer]:
    """Return the page's files by name. Their address has their hash, so they never grow old."""
    headers = (
        (b"Cache-Control", b"public, max-age=31536000, immutable"),
        (b"X-Content-Type-Options", b"nosniff"),
    )
    return {name: Answer(200, kind, _asset(name), headers) for name, kind in _TYPES.items()}


def choose_language(asked: str, accepted: str) -> str:
    """Return a language that we have: `?lang=`, else the first of Accept-Language, else English."""
    wishes = [asked, *(part.partition(";")[0] for part in accepted.split(","))]
    for wish in wishes:
        code = wish.strip().lower().partition("-")[0]
        if code in LANGUAGES:
            return code
    return "en"


def render(
    models: Sequence[ModelStatus], ready: tuple[bool, str], server_version: str, language: str
) -> bytes:
    """Return the page as UTF-8 HTML."""
    text = texts(language)
    tries: dict[str, Any] = {}
    cards = "".join(_card(model, text, tries) for model in models)
    is_ready, reason = ready
    parts = [
        f'<!doctype html><html lang="{language}"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>Muelle · {text('title')}</title>",
        f'<link rel="icon" type="image/svg+xml" href="{_address("logo.svg")}">',
        f'<link rel="stylesheet" href="{_address("docs.css")}">',
        f'<script src="{_address("docs.js")}" defer></script></head><body>',
        f'<header class="top"><a class="brand" href="docs"><img src="{_address("logo.svg")}" '
        f'alt="" width="28" height="28"><span>Muelle</span><small>{_(server_version)}</small></a>',
        _pill(is_ready, text("ready") if is_ready else text("not_ready"), reason),
        f'<nav class="tools">{_languages(language)}<button type="button" id="theme" '
        f'title="{text("theme")}" aria-label="{text("theme")}">◐</button></nav></header>',
        f'<main><p class="lead">{text("lead")}</p>{_index(models, text)}',
        cards or f'<p class="card empty">{text("no_models")}</p>',
        _endpoints(text),
        "</main>",
        f'<script type="application/json" id="tries">{_embedded(tries)}</script>',
        f'<script type="application/json" id="texts">{_embedded(_catalogue(language))}</script>',
        "</body></html>",
    ]
    return "".join(parts).encode()


def texts(language: str) -> Text:
    """Return a function from key to HTML-safe text."""
    catalogue = _catalogue(language)
    return lambda key: _(catalogue[key])


@cache
def _catalogue(language: str) -> dict[str, str]:
    found: dict[str, str] = json.loads((_HERE / "locales" / f"{language}.json").read_text("utf-8"))
    return found


@cache
def _asset(name: str) -> bytes:
    return (_HERE / "assets" / name).read_bytes()


def _address(name: str) -> str:
    return f"docs/assets/{name}?v={hashlib.sha256(_asset(name)).hexdigest()[:12]}"


def _(value: object) -> str:
    return escape(str(value))


def _embedded(value: Any) -> str:
    """Return JSON that cannot end the element it stands in."""
    return msgspec.json.encode(value).decode().replace("<", "\\u003c")


# --- parts of the page ---


def _languages(language: str) -> str:
    return "".join(
        f'<a href="docs?lang={code}" lang="{code}" title="{name}"'
        f"{' aria-current=true' if code == language else ''}>{code.upper()}</a>"
        for code, name in LANGUAGES.items()
    )


def _pill(good: bool, label: str, reason: str = "") -> str:
    return (
        f'<span class="pill {"good" if good else "bad"}" title="{_(reason)}"><i></i>{label}</span>'
    )


def _index(models: Sequence[ModelStatus], text: Text) -> str:
    if len(models) < 2:
        return ""
    links = "".join(f'<a href="docs#{_(m.name)}">{_(m.name)}</a>' for m in models)
    return f'<nav class="index" aria-label="{text("models")}">{links}</nav>'


def _card(model: ModelStatus, text: Text, tries: dict[str, Any]) -> str:
    version = model.default_version or next(iter(model.versions), None)
    if version is None:
        return ""
    usable = [v for v in model.versions if v.signature is not None]
    ordered = sorted(usable, key=lambda v: v.version != model.default)
    tries[model.name] = [_try(model, v) for v in ordered]
    state = _pill(version.state == "READY", _(version.state.lower()), version.reason)
    parts = [
        f'<article class="card" id="{_(model.name)}"><header><h2>{_(model.name)}</h2>{state}',
        f'<p class="facts">{_facts(model, version, text)}</p></header>',
    ]
    if version.reason:
        parts.append(f'<p class="reason">{_(version.reason)}</p>')
    if len(model.versions) > 1:
        parts.append(_versions(model, text))
    if version.signature is not None:
        parts.append('<div class="halves"><section>')
        parts.append(_tensors(text("takes"), version.signature.inputs, text))
        parts.append(_tensors(text("gives"), version.signature.outputs, text))
        parts.append("</section>")
        parts.append(_panel(model, ordered, text))
        parts.append("</div>")
    parts.append("</article>")
    return "".join(parts)


def _facts(model: ModelStatus, version: VersionStatus, text: Text) -> str:
    facts = [
        (text("format"), _(version.format)),
        (text("version"), _(version.version)),
        (text("workers"), str(len(version.workers))),
        (text("batch"), str(version.max_batch_size)),
    ]
    if version.digest:
        short = version.digest.partition(":")[2][:12]
        facts.append((text("digest"), f'<code title="{_(version.digest)}">{_(short)}</code>'))
    return "".join(f"<span>{name} <b>{value}</b></span>" for name, value in facts)


def _versions(model: ModelStatus, text: Text) -> str:
    rows = "".join(
        f"<tr><td>{_(v.version)}{_star(v.version == model.default, text)}</td>"
        f"<td>{_pill(v.state == 'READY', _(v.state.lower()), v.reason)}</td>"
        f"<td>{_(v.format)}</td></tr>"
        for v in model.versions
    )
    head = f"<tr><th>{text('version')}</th><th>{text('state')}</th><th>{text('format')}</th></tr>"
    summary = f"{text('versions')} ({len(model.versions)})"
    return (
        f'<details class="versions"><summary>{summary}</summary>'
        f"<table>{head}{rows}</table></details>"
    )


def _star(is_default: bool, text: Text) -> str:
    return f' <span class="tag">{text("default")}</span>' if is_default else ""


def _tensors(title: str, specs: Iterable[TensorSpec], text: Text) -> str:
    rows = "".join(
        f"<tr><td><code>{_(s.name)}</code>{_notes(s, text)}</td><td>{_(s.datatype)}</td>"
        f"<td class=shape>{_shape(s, text)}</td></tr>"
        for s in specs
    )
    head = f"<tr><th>{text('tensor')}</th><th>{text('datatype')}</th><th>{text('shape')}</th></tr>"
    return f"<h3>{title}</h3><table>{head}{rows}</table>"


def _shape(spec: TensorSpec, text: Text) -> str:
    sizes = [str(size) if size >= 0 else "?" for size in spec.shape]
    if sizes and sizes[0] == "?":
        sizes[0] = f"<i>{text('rows')}</i>"
    return " × ".join(sizes) or text("one_value")


def _notes(spec: TensorSpec, text: Text) -> str:
    notes = ""
    if spec.optional:
        notes += f' <span class="tag">{text("optional")}</span>'
    if spec.role and spec.role != spec.name:
        notes += f' <span class="tag">{text(spec.role)}</span>'
    if spec.columns:
        notes += _names(text("columns"), spec.columns)
    if spec.classes:
        notes += _names(text("classes"), spec.classes)
    return notes


def _names(title: str, names: Sequence[object]) -> str:
    shown = ", ".join(_(name) for name in names)
    if len(names) <= _SHOWN_NAMES:
        return f'<small class="names">{title}: {shown}</small>'
    return (
        f'<details class="names"><summary>{title} ({len(names)})</summary>'
        f"<small>{shown}</small></details>"
    )


def _panel(model: ModelStatus, usable: Sequence[VersionStatus], text: Text) -> str:
    if not usable:
        return f"<section><p>{text('no_example')}</p></section>"
    options = "".join(f'<option value="{i}">{_(v.version)}</option>' for i, v in enumerate(usable))
    hidden = " hidden" if len(usable) < 2 else ""
    body = _(_try(model, usable[0])["native"].get("body", ""))
    name = _(model.name)
    return (
        f'<section class="try" data-model="{name}"><h3>{text("try")}</h3>'
        f'<div class="row"><div class="switch" role="group" aria-label="{text("protocol")}">'
        '<button type="button" data-protocol="native" aria-pressed="true">'
        f"{text('native')}</button>"
        f'<button type="button" data-protocol="v2" aria-pressed="false">Open Inference v2</button>'
        f"</div><label{hidden}>{text('version')} <select data-version>{options}</select></label>"
        f"<label data-accept>{text('answer_as')} <select><option value='application/json'>JSON"
        f"</option><option value='text/csv'>CSV</option></select></label></div>"
        f'<p class="address"><b>POST</b> <code data-path>/models/{name}/predict</code></p>'
        f'<textarea spellcheck="false" aria-label="{text("body")}" rows="9">{body}</textarea>'
        f'<p class="note" data-note hidden></p>'
        f'<div class="row"><button type="button" class="main" data-send>{text("send")}</button>'
        f'<button type="button" data-reset>{text("reset")}</button>'
        f'<output data-status aria-live="polite"></output></div>'
        f'<pre class="answer" data-answer tabindex="0" hidden></pre>'
        f'<div class="curl"><pre data-curl tabindex="0"></pre>'
        f'<button type="button" data-copy>{text("copy")}</button></div>'
        f"<noscript><p>{text('no_script')}</p></noscript></section>"
    )


def _try(model: ModelStatus, version: VersionStatus) -> dict[str, Any]:
    """Return what the script needs of one version: path and body (or its address) by protocol."""
    assert version.signature is not None
    example = example_of(version)
    address = f"models/{model.name}"
    if version.version != model.default:
        address += f"/versions/{version.version}"
    bodies = {
        "native": (f"{address}/predict", "", example_body(version.signature, example)),
        "v2": (
            f"v2/{address}/infer",
            "?protocol=v2",
            v2_example_body(version.signature, example),
        ),
    }
    told: dict[str, Any] = {}
    for protocol, (path, query, body) in bodies.items():
        one: dict[str, Any] = {"path": path}
        # As text: a browser would read the digits of a large integer into a float.
        written = msgspec.json.encode(body).decode() if body is not None else ""
        if len(written) > EXAMPLE_LIMIT_BYTES:
            one["example"] = f"{address}/example{query}"
        elif written:
            one["body"] = written
        told[protocol] = one
    return told


def _endpoints(text: Text) -> str:
    rows = "".join(
        f'<tr><td><b>GET</b> <a href="{path}"><code>/{path}</code></a></td>'
        f"<td>{text(key)}</td></tr>"
        for path, key in (
            ("models", "about_models"),
            ("live", "about_live"),
            ("ready", "about_ready"),
            ("metrics", "about_metrics"),
            ("v2", "about_v2"),
            ("openapi.json", "about_openapi"),
        )
    )
    return (
        f'<article class="card" id="endpoints"><header><h2>{text("endpoints")}</h2></header>'
        f"<table>{rows}</table></article>"
    )
