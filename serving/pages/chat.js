// The playground: ask, watch the answer come, say what you think of it.

import { ApiError, json } from "./api.js";
import { announce, ask, byId, h, icon, iconButton } from "./dom.js";
import { newAnswer, newTurn, openChat, requestFor } from "./chat_state.js";
import { settingsPanel } from "./chat_settings.js";
import { textElement, turnElement } from "./chat_turn.js";
import { may, needsScope, start } from "./shell.js";
import { streamChat } from "./sse.js";

const EXAMPLES = ["Explain why the sky is blue to a ten-year-old.", "Write a polite note to a neighbour about loud music.", "Give me three ideas for dinner with rice and eggs."];
const page = { who: null, chat: null, save: null, stop: null, open: {}, box: null };

start((who) => {
  if (!may(who, "complete")) return byId("main").replaceChildren(needsScope("complete", "Chatting"));
  Object.assign(page, { who }, openChat(who.id));
  build();
});

function build() {
  page.box = h("textarea", { id: "ask", rows: "1", "aria-label": "Message", placeholder: "Ask something", oninput: grow, onkeydown: onKey });
  page.list = h("div", { id: "turns" });
  page.send = h("button", { type: "submit", class: "round primary", title: "Send", "aria-label": "Send" });
  page.options = h("div", { id: "options", hidden: true });
  const form = h("form", { class: "composer", onsubmit: onSend },
    h("div", { class: "row tight" },
      iconButton("settings", "Settings", toggleOptions, { id: "options-button", "aria-expanded": "false", "aria-controls": "options" }),
      may(page.who, "feedback", "label") ? iconButton("compare", "Two answers, pick one", toggleCompare, { id: "compare-button", "aria-pressed": String(page.chat.settings.compare) }) : null,
      iconButton("clear", "Clear the conversation", clear, { id: "clear-button" })),
    page.box, page.send);
  byId("main").replaceChildren(h("h1", { class: "unseen" }, "Playground"), page.list, h("div", { class: "dock" }, page.options, form));
  draw();
  page.box.focus();
}

function draw() {
  const { turns } = page.chat;
  const focus = document.activeElement?.dataset?.focus;
  const before = [...page.list.children];
  const now = turns.length ? turns.map((turn, at) => drawn(turn, at, before[at])) : [welcome()];
  now.forEach((element, at) => { if (element !== before[at]) before[at] ? before[at].replaceWith(element) : page.list.append(element); });
  before.slice(now.length).forEach((element) => element.remove());
  drawButtons();
  page.save();
  if (focus && document.activeElement === document.body) page.list.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus();
}

/** The element of a turn; the one that is there, if nothing about it has changed. */
function drawn(turn, at, before) {
  const view = viewOf(turn, at);
  const key = JSON.stringify([turn, view.last, view.busy, view.open?.at, view.open?.panel]);
  if (before?.key === key) return before;
  return Object.assign(turnElement(turn, view), { key });
}

function drawButtons() {
  page.send.replaceChildren(icon(page.stop ? "stop" : "send"));
  page.send.title = page.stop ? "Stop" : "Send";
  page.send.setAttribute("aria-label", page.send.title);
  byId("clear-button").disabled = Boolean(page.stop) || page.chat.turns.length === 0;
}

function viewOf(turn, at) {
  const last = at === page.chat.turns.length - 1;
  return {
    last,
    busy: last && Boolean(page.stop),
    writing: last && Boolean(page.stop),
    rates: may(page.who, "feedback", "label"),
    open: page.open[at] ?? null,
    redraw: draw,
    setOpen: (open) => { page.open[at] = open; draw(); if (open) showPanel(at); },
    show: (which) => { turn.shown = which; draw(); },
    regenerate: () => answer(turn),
    leavePair: () => { turn.pair = null; turn.shown = turn.answers.length - 2; draw(); },
  };
}

function showPanel(at) {
  const panel = page.list.children[at]?.querySelector(".panel");
  panel?.scrollIntoView({ block: "nearest" });
  panel?.querySelector("textarea").focus({ preventScroll: true });
}

function welcome() {
  const example = (text) => h("button", { type: "button", class: "example", onclick: () => send(text) }, text);
  return h("section", { class: "welcome" }, h("h2", {}, "What would you like to know?"),
    h("p", { class: "muted" }, "Answers can be wrong. What you say about them – a thumb, a comment, a better answer – is what the next version learns from."),
    h("div", { class: "examples" }, EXAMPLES.map(example)));
}

function onKey(event) {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!page.stop) onSend(event);
  }
}

function onSend(event) {
  event.preventDefault();
  if (page.stop) return page.stop.abort();
  const text = page.box.value.trim();
  if (!text) return;
  page.box.value = "";
  grow();
  send(text);
}

function send(text) {
  const before = page.chat.turns.at(-1);
  if (before?.pair === "open") before.pair = null;
  const turn = newTurn(text);
  page.chat.turns.push(turn);
  answer(turn);
}

/** Ask for an answer to the last turn (two when comparing) and show it as it comes. */
async function answer(turn) {
  if (page.stop) return;
  const n = page.chat.settings.compare && may(page.who, "feedback", "label") ? 2 : 1;
  page.stop = new AbortController();
  turn.error = null;
  const fresh = Array.from({ length: n }, (_, choice) => ({ ...newAnswer(), choice }));
  const before = { pair: turn.pair, shown: turn.shown };
  const body = requestFor(page.chat, turn, { n });
  turn.answers.push(...fresh);
  turn.shown = turn.answers.length - n;
  turn.pair = n === 2 ? "open" : null;
  page.open = {};
  draw();
  page.list.lastElementChild.scrollIntoView({ block: "end" });
  try {
    await streamChat(body, receiver(fresh), page.stop.signal);
  } catch (error) {
    broke(turn, fresh, error, before);
  }
  page.stop = null;
  draw();
  announce(turn.error ? "The answer failed." : n === 2 ? "Two answers are complete." : "The answer is complete.");
}

function receiver(fresh) {
  const paint = painter(fresh);
  return {
    start: ({ version, feedbackOff }) => fresh.forEach((one) => Object.assign(one, { versions: version ? [version] : [], feedbackOff })),
    version: (name) => fresh.forEach((one) => { if (one.versions.at(-1) !== name) one.versions.push(name); }),
    text: (choice, piece, id) => {
      const one = fresh[choice];
      if (!one) return;
      one.id = id;
      one.text += piece;
      paint();
    },
    finish: (choice, reason) => { if (fresh[choice]) fresh[choice].ended = reason; },
  };
}

/** Repaint the texts being written, at most once a frame, and stay at the end if one is there. */
function painter(fresh) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => {
      waits = false;
      const room = document.scrollingElement;
      const atEnd = room.scrollHeight - room.scrollTop - room.clientHeight < 120;
      const boxes = page.list.lastElementChild?.querySelectorAll(".text.writing") ?? [];
      if (page.stop) boxes.forEach((box, at) => { if (fresh[at]) box.replaceWith(textElement(fresh[at], true)); });
      if (atEnd) room.scrollTop = room.scrollHeight;
    });
  };
}

function broke(turn, fresh, error, before) {
  const stopped = error.name === "AbortError";
  for (const one of fresh) one.ended ??= stopped ? "stopped" : "broke";
  const empty = fresh.every((one) => !one.text);
  if (empty) {
    turn.answers = turn.answers.filter((one) => !fresh.includes(one));
    Object.assign(turn, before);
  } else if (turn.pair === "open") turn.pair = null;
  if (stopped && empty && turn.answers.length === 0) turn.error = { message: "you stopped it.", advice: "" };
  if (stopped) return;
  const known = error instanceof ApiError;
  turn.error = { message: known ? error.message : "something went wrong in this page.", advice: known ? error.advice : "Reload the page." };
  if (!known) throw error;
}

async function clear() {
  const sure = await ask({ title: "Clear the conversation?", body: [h("p", {}, "It goes from this page. What you said about the answers stays recorded.")], ok: "Clear" });
  if (!sure) return;
  page.chat.turns.length = 0;
  page.open = {};
  draw();
  page.box.focus();
}

function toggleCompare() {
  const { settings } = page.chat;
  settings.compare = !settings.compare;
  byId("compare-button").setAttribute("aria-pressed", String(settings.compare));
  announce(settings.compare ? "Two answers from now on." : "One answer from now on.");
  page.save();
}

async function toggleOptions() {
  page.options.hidden = !page.options.hidden;
  byId("options-button").setAttribute("aria-expanded", String(!page.options.hidden));
  if (page.options.hidden) return;
  page.options.replaceChildren(settingsPanel(page.chat.settings, [], page.save));
  const models = await json("GET", "/v1/models").catch(() => ({ data: [] }));
  page.options.replaceChildren(settingsPanel(page.chat.settings, models.data.map((model) => model.id), page.save));
}

function grow() {
  page.box.style.height = "auto";
  page.box.style.height = `${Math.min(page.box.scrollHeight, 220)}px`;
}
