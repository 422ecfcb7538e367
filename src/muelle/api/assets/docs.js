// What the page at /docs does: send an example, show the answer, copy the curl line, turn the theme.
// Talks to the server that the page came from, and to nobody else.
"use strict";

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const tries = read("tries");
const texts = read("texts");
const LINE = 76; // characters that fit on one line
const SHOWN = 200_000; // characters of an answer that are shown

// --- JSON as text: numbers keep every digit, since nothing is parsed into a float ---

function parse(text) {
  const tokens = text.match(/"(?:\\.|[^"\\])*"|[{}\[\],:]|[^\s{}\[\],:"]+/g) || [];
  let at = 0;
  const value = () => {
    const token = tokens[at++];
    if (token !== "{" && token !== "[") return token;
    const end = token === "{" ? "}" : "]";
    const parts = [];
    while (at < tokens.length && tokens[at] !== end) {
      let key = "";
      if (token === "{") {
        key = `${tokens[at]}: `;
        at += 2;
      }
      parts.push([key, value()]);
      if (tokens[at] === ",") at += 1;
    }
    at += 1;
    return { open: token, end, parts };
  };
  return value();
}

function print(node, indent) {
  if (typeof node !== "object") return String(node);
  const flat = node.parts.map(([key, part]) => key + print(part, ""));
  const line = `${node.open}${flat.join(", ")}${node.end}`;
  if (!line.includes("\n") && line.length + indent.length <= LINE) return line;
  const deeper = `${indent}  `;
  const scalars = node.open === "[" && node.parts.every(([, part]) => typeof part !== "object");
  if (scalars) {
    return `[\n${deeper}${wrapped(flat, deeper)}\n${indent}]`;
  }
  const parts = node.parts.map(([key, part]) => deeper + key + print(part, deeper));
  return `${node.open}\n${parts.join(",\n")}\n${indent}${node.end}`;
}

function wrapped(items, indent) {
  const lines = [""];
  items.forEach((item, i) => {
    const piece = i + 1 < items.length ? `${item}, ` : item;
    if (lines.at(-1) && lines.at(-1).length + piece.length + indent.length > LINE) lines.push("");
    lines[lines.length - 1] += piece;
  });
  return lines.map((line) => line.trimEnd()).join(`\n${indent}`);
}

const pretty = (text) => (text.length > SHOWN ? `${text.slice(0, SHOWN)}…` : print(parse(text), ""));

// --- one panel per model ---

class Panel {
  constructor(root) {
    this.root = root;
    this.versions = tries[root.dataset.model];
    this.protocol = "native";
    this.version = 0;
    const find = (name) => root.querySelector(`[data-${name}]`);
    [this.path, this.note, this.status, this.answer, this.curl, this.send, this.accept] = [
      "path", "note", "status", "answer", "curl", "send", "accept",
    ].map(find);
    this.body = root.querySelector("textarea");
    this.form = this.accept.querySelector("select");
    this.switches = [...root.querySelectorAll("[data-protocol]")];
    for (const button of this.switches) {
      button.addEventListener("click", () => {
        this.protocol = button.dataset.protocol;
        this.reset();
      });
    }
    find("version").addEventListener("change", (event) => {
      this.version = Number(event.target.value);
      this.reset();
    });
    this.form.addEventListener("change", () => this.showCurl());
    this.body.addEventListener("input", () => this.showCurl());
    this.body.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.ask();
    });
    this.send.addEventListener("click", () => this.ask());
    find("reset").addEventListener("click", () => this.reset());
    find("copy").addEventListener("click", (event) => copy(event.target, this.curl.textContent));
    this.reset();
  }

  get chosen() {
    return this.versions[this.version][this.protocol];
  }

  get wanted() {
    return this.protocol === "native" ? this.form.value : "application/json";
  }

  reset() {
    const { path, body, example } = this.chosen;
    for (const button of this.switches) {
      button.setAttribute("aria-pressed", String(button.dataset.protocol === this.protocol));
    }
    this.accept.hidden = this.protocol !== "native";
    this.path.textContent = `/${path}`;
    this.whole = null;
    this.body.readOnly = !body;
    this.send.disabled = !body && !example;
    this.note.hidden = Boolean(body);
    this.note.textContent = example ? texts.large : texts.no_body;
    this.body.value = body ? pretty(body) : "";
    // As tall as the example, within reason.
    this.body.rows = Math.min(16, Math.max(5, this.body.value.split("\n").length));
    this.say("", "");
    this.answer.hidden = true;
    this.showCurl();
    if (example) this.whole = this.fetchExample(example);
  }

  // A promise of the whole text: who presses Send before it is here waits for it.
  async fetchExample(address) {
    try {
      const text = await (await fetch(address)).text();
      if (this.chosen.example === address) this.body.value = `${text.slice(0, 600)}…`;
      return text;
    } catch {
      this.say(texts.unreachable, "bad");
      return "";
    }
  }

  showCurl() {
    const { path, body, example } = this.chosen;
    const url = (part) => new URL(part, document.baseURI).href;
    const accept = this.wanted === "application/json" ? "" : ` -H 'accept: ${this.wanted}'`;
    const json = `-H 'content-type: application/json'${accept}`;
    if (example) {
      this.curl.textContent = `curl -s '${url(example)}' |\n  curl '${url(path)}' ${json} -d @-`;
    } else if (body) {
      // A single quote inside single quotes, as a shell reads it.
      const text = this.compact().replaceAll("'", "'\\''");
      this.curl.textContent = `curl '${url(path)}' ${json} \\\n  -d '${text}'`;
    } else {
      this.curl.textContent = "";
    }
    this.curl.parentElement.hidden = !this.curl.textContent;
  }

  compact() {
    const text = this.body.value;
    try {
      JSON.parse(text);
    } catch {
      return text;
    }
    return text.replace(/("(?:\\.|[^"\\])*")|\s+/g, (_, string) => string || "");
  }

  say(text, kind) {
    this.status.textContent = text;
    this.status.className = kind;
  }

  async ask() {
    if (this.send.disabled) return;
    const body = (await this.whole) ?? this.body.value;
    try {
      JSON.parse(body);
    } catch (error) {
      this.say(texts.not_json.replace("{reason}", error.message), "bad");
      return;
    }
    this.send.disabled = true;
    this.say(texts.sending, "");
    const began = performance.now();
    try {
      const answer = await fetch(this.chosen.path, {
        method: "POST",
        headers: { "content-type": "application/json", accept: `${this.wanted}, application/problem+json;q=0.1` },
        body,
      });
      const text = await answer.text();
      const took = performance.now() - began;
      const isJson = (answer.headers.get("content-type") || "").includes("json");
      this.say(`${answer.status} ${answer.statusText} · ${took.toFixed(took < 10 ? 1 : 0)} ms`, answer.ok ? "good" : "bad");
      this.answer.textContent = isJson ? pretty(text) : text.slice(0, SHOWN);
      this.answer.hidden = false;
    } catch {
      this.say(texts.unreachable, "bad");
    }
    this.send.disabled = false;
  }
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // No clipboard without TLS on another host: select the text, so that a key copies it.
    getSelection().selectAllChildren(button.previousElementSibling);
    return;
  }
  button.textContent = texts.copied;
  setTimeout(() => (button.textContent = texts.copy), 1500);
}

// --- theme: the system's, until somebody chooses ---

function theme() {
  const root = document.documentElement;
  const kept = localStorage.getItem("muelle.theme");
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = root.dataset.theme || (dark ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    localStorage.setItem("muelle.theme", root.dataset.theme);
  });
}

theme();
for (const root of document.querySelectorAll(".try")) new Panel(root);
