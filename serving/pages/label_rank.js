// Ranking all answers: by dragging, by buttons, or by keys alone. Ties share a row.

import { announce, h, icon, iconButton } from "./dom.js";
import { letter } from "./label_rate.js";
import { moved, placeAlone, placeTied, rankOf, toggledTie } from "./label_state.js";
import { markdown } from "./markdown.js";

/** The board. `on.rank(ranking, id)` takes a new ranking; `id` is what was moved. */
export function rankPanel(task, ranking, work, on) {
  const board = h("ol", { class: "ranks", id: "ranks" }, ranking.flatMap((rank, at) => [gap(at), row(task, ranking, rank, at, work, on)]), gap(ranking.length));
  const start = (event, id, card) => drag(event, id, card, board, ranking, on);
  board.addEventListener("pointerdown", (event) => {
    const card = event.target.closest(".rank-card");
    if (card && !event.target.closest("button, summary, a, pre, .opened")) start(event, card.dataset.id, card);
  });
  return h("section", { class: "rank", "aria-labelledby": "rank-name" },
    h("h2", { id: "rank-name", tabindex: "-1" }, "Put the answers in order, best first"),
    h("p", { class: "muted", id: "rank-help" }, "Drag a card between two others, or onto another to tie them. With the keyboard: ↑ and ↓ move the card that has the focus, = ties it with the one above or unties it."),
    board);
}

/** Put the focus back on a card after the board was drawn again, and say where it is now. */
export function showMoved(task, ranking, id) {
  document.querySelector(`.rank-card[data-id="${CSS.escape(id)}"]`)?.focus();
  announce(describe(task, ranking, id));
}

export function describe(task, ranking, id) {
  const at = rankOf(ranking, id);
  const name = (one) => letter(task.outputs.findIndex((output) => output.output_id === one));
  const others = ranking[at].filter((one) => one !== id).map(name);
  return `Answer ${name(id)}: rank ${at + 1} of ${ranking.length}${others.length ? `, tied with ${others.join(" and ")}` : ""}.`;
}

const gap = (at) => h("li", { class: "gap", dataset: { gap: String(at) }, role: "presentation", "aria-hidden": "true" });

function row(task, ranking, rank, at, work, on) {
  return h("li", { class: rank.length > 1 ? "rank-row tied" : "rank-row", dataset: { rank: String(at) } },
    h("div", { class: "rank-number", "aria-hidden": "true" }, String(at + 1)),
    h("div", { class: "rank-cards" }, rank.map((id) => card(task, ranking, id, work, on))));
}

function card(task, ranking, id, work, on) {
  const index = task.outputs.findIndex((output) => output.output_id === id);
  const { text } = task.outputs[index];
  const { rating } = work.outputs[id];
  const move = (next) => { if (next !== ranking) on.rank(next, id); };
  const opened = h("div", { class: "opened text" });
  const more = h("details", { ontoggle: () => { if (more.open && !opened.hasChildNodes()) opened.append(markdown(text)); } }, h("summary", {}, h("span", { class: "excerpt" }, text.replace(/[*_`#>~]+/g, "").trim() || "(an empty answer)")), opened);
  const name = letter(index);
  const tied = ranking[rankOf(ranking, id)].length > 1;
  return h("div", {
    class: "rank-card", tabindex: "0", role: "group", dataset: { id }, "aria-label": `${describe(task, ranking, id)} Rated ${rating ?? "not yet"}.`, "aria-describedby": "rank-help",
    onkeydown: (event) => { if (event.target === event.currentTarget) keys(event, ranking, id, move); },
  },
  h("span", { class: "grip" }, icon("grip")), h("span", { class: "badge letter" }, name),
  h("div", { class: "rank-text" }, more), rating ? h("span", { class: "badge", title: "Your rating" }, `${rating}/7`) : null,
  h("div", { class: "row tight rank-buttons" },
    iconButton("arrowup", `Move answer ${name} up`, () => move(moved(ranking, id, -1))),
    iconButton("arrowdown", `Move answer ${name} down`, () => move(moved(ranking, id, 1))),
    iconButton("tie", tied ? `Untie answer ${name}` : `Tie answer ${name} with its neighbour`, () => move(toggledTie(ranking, id)), { "aria-pressed": String(tied) })));
}

function keys(event, ranking, id, move) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "ArrowUp") move(moved(ranking, id, -1));
  else if (event.key === "ArrowDown") move(moved(ranking, id, 1));
  else if (event.key === "=" || event.key === "t") move(toggledTie(ranking, id));
  else return;
  event.preventDefault();
}

// --- dragging -------------------------------------------------------------------------------

const FAR = 5;
const EDGE = 60;

function drag(event, id, card, board, ranking, on) {
  if (event.button !== 0 || (event.pointerType !== "mouse" && !event.target.closest(".grip"))) return;
  const from = { x: event.clientX, y: event.clientY, scroll: scrollY };
  const at = { moving: false, target: null };
  const aim = (target) => {
    if (at.target === target) return;
    at.target?.classList.remove("aimed");
    at.target = target;
    target?.classList.add("aimed");
  };
  const move = (now) => {
    const dy = now.clientY - from.y;
    if (!at.moving && Math.hypot(now.clientX - from.x, dy) < FAR) return;
    if (!at.moving) begin(card, board);
    at.moving = true;
    card.style.transform = `translateY(${dy + scrollY - from.scroll}px)`;
    if (now.clientY < EDGE) scrollBy(0, -12);
    else if (now.clientY > innerHeight - EDGE) scrollBy(0, 12);
    aim(targetAt(board, card, now.clientY));
  };
  const finish = (drop) => {
    for (const [name, listener] of listeners) document.removeEventListener(name, listener);
    card.style.transform = "";
    card.classList.remove("dragged");
    board.classList.remove("dragging");
    const target = at.target;
    aim(null);
    if (!drop || !at.moving || !target) return;
    const next = target.dataset.gap === undefined ? placeTied(ranking, id, Number(target.dataset.rank)) : placeAlone(ranking, id, Number(target.dataset.gap));
    if (JSON.stringify(next) !== JSON.stringify(ranking)) on.rank(next, id);
  };
  const listeners = [["pointermove", move], ["pointerup", () => finish(true)], ["pointercancel", () => finish(false)], ["keydown", (key) => { if (key.key === "Escape") finish(false); }]];
  for (const [name, listener] of listeners) document.addEventListener(name, listener);
}

function begin(card, board) {
  getSelection()?.removeAllRanges();
  card.classList.add("dragged");
  board.classList.add("dragging");
}

/** The gap or the row under the pointer: the edges of a row belong to the gaps beside it. */
function targetAt(board, card, y) {
  const rows = [...board.querySelectorAll(".rank-row")];
  for (const [at, one] of rows.entries()) {
    const box = one.getBoundingClientRect();
    const margin = Math.min(box.height * 0.28, 22);
    if (y < box.top + margin) return board.querySelector(`[data-gap="${at}"]`);
    if (y <= box.bottom - margin) return one.contains(card) && one.querySelectorAll(".rank-card").length === 1 ? null : one;
  }
  return board.querySelector(`[data-gap="${rows.length}"]`);
}
