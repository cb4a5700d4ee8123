// Markdown to DOM nodes. A model's text never becomes HTML: each piece is a text node in an element
// that this file chose. Covers what answers use: headings, lists, code, quotes, tables, emphasis, links.

import { h, icon } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}>\s?(.*)$/;
const TABLE_LINE = /^\s*\|?\s*:?-{1,}:?\s*(\|\s*:?-{1,}:?\s*)+\|?\s*$/;
const MAX_DEPTH = 6;

/** A fragment with the text's blocks. Its highest headings become h3, since they stand below an h2. */
export function markdown(text) {
  const made = blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0);
  let level = 2;
  const levels = new Map();
  const headings = [...made.querySelectorAll("h1, h2, h3, h4, h5, h6")];
  for (const tag of [...new Set(headings.map((one) => one.tagName))].sort()) levels.set(tag, `h${Math.min(++level, 6)}`);
  for (const heading of headings) heading.replaceWith(h(levels.get(heading.tagName), {}, ...heading.childNodes));
  return made;
}

function blocks(lines, depth) {
  const made = document.createDocumentFragment();
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [node, next] = block(lines, at, depth);
    made.append(node);
    at = next;
  }
  return made;
}

function block(lines, at, depth) {
  const line = lines[at];
  let found;
  if ((found = FENCE.exec(line))) return fenced(lines, at, found);
  if ((found = HEADING.exec(line))) return [h(`h${found[1].length}`, {}, inline(found[2])), at + 1];
  if (RULE.test(line)) return [h("hr"), at + 1];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return list(lines, at, depth);
  if (line.includes("|") && TABLE_LINE.test(lines[at + 1] ?? "")) return table(lines, at);
  return paragraph(lines, at, depth);
}

function fenced(lines, at, [, fence, language]) {
  const end = new RegExp(`^ {0,3}${fence[0] === "`" ? "`" : "~"}{${fence.length},}\\s*$`);
  let to = at + 1;
  while (to < lines.length && !end.test(lines[to])) to += 1;
  return [codeBlock(lines.slice(at + 1, to).join("\n"), language), to + 1];
}

function codeBlock(code, language) {
  const button = h("button", { type: "button", class: "quiet small", onclick: () => copied(button, code) }, icon("copy"), h("span", {}, "Copy"));
  return h("div", { class: "code" },
    h("div", { class: "code-head" }, h("span", {}, language || "code"), button),
    h("pre", { tabindex: "0" }, h("code", {}, code)));
}

async function copied(button, text) {
  const label = button.querySelector("span");
  label.textContent = (await copyText(text)) ? "Copied" : "Select and copy by hand";
  setTimeout(() => { label.textContent = "Copy"; }, 1500);
}

/** Put text on the clipboard; false where the browser does not allow it. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

function quote(lines, at, depth) {
  const inside = [];
  let found;
  while (at < lines.length && (found = QUOTE.exec(lines[at]))) {
    inside.push(found[1]);
    at += 1;
  }
  return [h("blockquote", {}, blocks(inside, depth + 1)), at];
}

function list(lines, at, depth) {
  const [, indent, marker] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(marker);
  const element = h(ordered ? "ol" : "ul", ordered && marker !== "1." ? { start: String(parseInt(marker, 10)) } : {});
  while (at < lines.length) {
    const found = ITEM.exec(lines[at]);
    if (!found || found[1].length > indent.length + 1 || found[1].length < indent.length || /\d/.test(found[2]) !== ordered) break;
    const inside = [found[3]];
    const hang = found[1].length + found[2].length + 1;
    at += 1;
    while (at < lines.length && continues(lines, at, indent.length)) {
      inside.push(lines[at].slice(Math.min(hang, lines[at].length - lines[at].trimStart().length)));
      at += 1;
    }
    element.append(item(inside, depth));
    while (at < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1] ?? "")) at += 1;
  }
  return [element, at];
}

function continues(lines, at, indent) {
  const line = lines[at];
  if (!line.trim()) return /^\s{2,}\S/.test(lines[at + 1] ?? "") && lines[at + 1].search(/\S/) > indent;
  return line.search(/\S/) > indent;
}

function item(inside, depth) {
  const made = blocks(inside, depth + 1);
  const only = made.childElementCount === 1 && made.firstElementChild.tagName === "P";
  const [first] = made.children;
  if (!only && first?.tagName === "P") first.replaceWith(...first.childNodes);
  return h("li", {}, only ? [...made.firstElementChild.childNodes] : made);
}

function table(lines, at) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (line, tag) => h("tr", {}, cells(line).map((cell) => h(tag, {}, inline(cell))));
  const head = row(lines[at], "th");
  const body = [];
  at += 2;
  while (at < lines.length && lines[at].includes("|")) {
    body.push(row(lines[at], "td"));
    at += 1;
  }
  return [h("div", { class: "wide", tabindex: "0" }, h("table", {}, h("thead", {}, head), h("tbody", {}, body))), at];
}

function paragraph(lines, at, depth) {
  const inside = [lines[at]];
  at += 1;
  const stops = (line) => !line.trim() || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || (depth < MAX_DEPTH && (QUOTE.test(line) || ITEM.test(line)));
  while (at < lines.length && !stops(lines[at])) {
    inside.push(lines[at]);
    at += 1;
  }
  return [h("p", {}, inline(inside.map((line) => line.trim()).join("\n"))), at];
}

const INLINE = new RegExp([
  "(?<tick>`+)(?<code>[^`](?:.*?[^`])?)\\k<tick>(?!`)",
  "\\[(?<label>[^\\[\\]\\n]{1,500})\\]\\((?<href>[^\\s()<>]{1,2000})(?:\\s+\"[^\"\\n]*\")?\\)",
  "(?<url>https?://[^\\s<>()\\[\\]\"'`]{1,2000}[^\\s<>()\\[\\]\"'`.,;:!?*_~])",
  "\\*\\*\\*(?<both>[^\\s*](?:[^*\\n]{0,2000}?[^\\s*])?)\\*\\*\\*",
  "(?<strong>\\*\\*|__)(?<bold>[^\\s*_]|[^\\s][^\\n]{0,2000}?\\S)\\k<strong>",
  "(?<![\\w*])(?<em>[*_])(?=[^\\s*_])(?<italic>[^*_\\n]{0,2000}?[^\\s*_])\\k<em>(?![\\w*])",
  "~~(?<gone>[^~\\n]{1,2000})~~",
  "\\\\(?<escaped>[!-/:-@\\[-`{-~])",
].join("|"), "gs");

/** Nodes of a line of text. */
export function inline(text, depth = 0) {
  if (depth > MAX_DEPTH) return [text];
  const nodes = [];
  let from = 0;
  for (const found of text.matchAll(INLINE)) {
    if (found.index > from) nodes.push(text.slice(from, found.index));
    nodes.push(piece(found, depth));
    from = found.index + found[0].length;
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes.flatMap((node) => (typeof node === "string" ? broken(node) : [node]));
}

function piece(found, depth) {
  const { code, label, href, url, both, bold, italic, gone, escaped } = found.groups;
  if (code !== undefined) return h("code", {}, code);
  if (label !== undefined) return link(href, inline(label, MAX_DEPTH), found[0]);
  if (url !== undefined) return link(url, [url], url);
  if (both !== undefined) return h("strong", {}, h("em", {}, inline(both, depth + 1)));
  if (bold !== undefined) return h("strong", {}, inline(bold, depth + 1));
  if (italic !== undefined) return h("em", {}, inline(italic, depth + 1));
  if (gone !== undefined) return h("del", {}, inline(gone, depth + 1));
  return escaped;
}

/** A link, if it leads to http or https; else the text as it was written. */
function link(href, content, written) {
  let url;
  try {
    url = new URL(href);
  } catch {
    return written;
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") return written;
  return h("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, content);
}

function broken(text) {
  return text.split("\n").flatMap((line, at) => (at ? [h("br"), line] : [line]));
}
