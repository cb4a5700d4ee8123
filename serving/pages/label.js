// Labeling: one prompt, its answers rated one at a time, then all of them ranked, then the next.

import { ApiError, call, json, randomKey, stored, told } from "./api.js";
import { announce, ask, byId, clock, h, icon, iconButton, toast } from "./dom.js";
import { letter, ratePanel } from "./label_rate.js";
import { rankPanel, showMoved } from "./label_rank.js";
import { answerOf, isRated, openWork, pruneDrafts, rankingOf } from "./label_state.js";
import { guide, modeLead, modeName, SKIP_REASONS } from "./label_words.js";
import { markdown } from "./markdown.js";
import { may, needsScope, start } from "./shell.js";

const LOOK_AGAIN = [3, 5, 10, 20, 30];
const page = { who: null, task: null, open: null, skew: 0, tally: null, progress: null, busy: false, looks: 0, lookAt: 0, expired: false };

start((who) => {
  if (!may(who, "label")) return byId("main").replaceChildren(needsScope("label", "Labeling"));
  page.who = who;
  page.tally = stored(() => sessionStorage, `il-tally:${who.id}`);
  pruneDrafts();
  document.addEventListener("keydown", onKey);
  setInterval(tick, 1000);
  next();
  count();
});

const tally = () => page.tally.read() ?? { done: 0, skipped: 0 };

/** Ask what this rater has done in all; without an answer the page shows only its own count. */
async function count() {
  try {
    page.progress = await json("GET", "/v1/labeling/progress");
  } catch { return; }
  byId("in-all")?.replaceChildren(inAll());
}

const inAll = () => (page.progress ? `${page.task ? " · " : ""}${page.progress.done_today} done today, ${page.progress.done} in total` : "");

/** Get a task, or say that there is none and look again later. */
async function next() {
  page.busy = true;
  try {
    const response = await call("GET", "/v1/labeling/next");
    const date = Date.parse(response.headers.get("date") ?? "");
    page.skew = Number.isNaN(date) ? 0 : date - Date.now();
    if (response.status === 204) nothing();
    else begin(await response.json());
  } catch (error) {
    waiting("The next task could not be fetched", told(error));
  }
  page.busy = false;
}

function nothing() {
  const { done } = tally();
  waiting("No task for you now", done ? `You have done ${done} in this session. Thank you! New tasks appear here by themselves.` : "Tasks appear here by themselves as soon as there are some.");
}

function waiting(title, text) {
  page.task = null;
  page.lookAt = Date.now() + 1000 * LOOK_AGAIN[Math.min(page.looks, LOOK_AGAIN.length - 1)];
  page.looks += 1;
  byId("main").replaceChildren(h("section", { class: "card center-card" }, icon("check"), h("h1", {}, title), h("p", {}, text), h("p", { class: "muted", id: "in-all" }, inAll()),
    h("p", { class: "muted" }, "Looking again in ", h("span", { id: "look" }, "…"), "."),
    h("button", { type: "button", class: "primary", onclick: next }, "Look now")));
  tick();
}

function begin(task) {
  Object.assign(page, { task, looks: 0, expired: false, busy: false, open: openWork(task, page.who.id) });
  build();
  if (page.open.restored) toast("Your draft of this task is back.");
}

function build() {
  const { task } = page;
  const prompt = h("aside", { class: "prompt-side", "aria-labelledby": "prompt-name" },
    h("div", { class: "row" }, h("span", { class: `badge mode-${task.mode}` }, modeName(task.mode)), h("span", { class: "badge", id: "lease", title: "How long this task is yours" })),
    h("h1", { id: "prompt-name" }, "Prompt"),
    h("div", { class: "messages" }, task.messages.map(message)),
    h("details", { class: "card how", open: tally().done === 0 && matchMedia("(min-width: 60rem)").matches }, h("summary", {}, "How to judge: ", modeLead(task.mode)), guide(task.mode)));
  byId("main").replaceChildren(h("div", { class: "label-page" }, prompt, h("div", { class: "work" }, h("div", { id: "expired" }), h("nav", { id: "steps", "aria-label": "Steps" }), h("div", { id: "step" }), h("div", { id: "bar" }))));
  draw();
  tick();
  focusStep();
}

function message({ role, content }) {
  const text = typeof content === "string" ? content : (content ?? []).map((part) => part.text ?? "").join("\n");
  const names = { user: "Person", assistant: "Assistant", system: "System message" };
  return h("div", { class: `message ${role}` }, h("div", { class: "muted" }, names[role] ?? role), h("div", { class: "text" }, markdown(text)));
}

/** Draw the step that one is at; the rest of the page stays. */
function draw() {
  const { task, open: { work } } = page;
  const ranks = work.step >= task.outputs.length;
  byId("step").replaceChildren(ranks ? rankPanel(task, rankingOf(task, work), work, { rank }) : ratePanel(task, work.step, work, { change, note: page.open.note, redraw: redrawRating, go }));
  drawSteps();
}

function drawSteps() {
  const { task, open: { work, canUndo } } = page;
  const last = task.outputs.length;
  const step = (at, label, done) => h("button", { type: "button", class: done ? "step done" : "step", "aria-current": work.step === at ? "step" : null, "aria-label": at === last ? "Rank all answers" : `Answer ${label}${done ? ", rated" : ""}`, onclick: () => goTo(at) }, label, done ? icon("check") : null);
  byId("steps").replaceChildren(...task.outputs.map(({ output_id: id }, at) => step(at, letter(at), isRated(work, id))), step(last, "Rank", false));
  const missing = task.outputs.filter(({ output_id: id }) => !isRated(work, id)).length;
  const { done, skipped } = tally();
  const forward = work.step < last
    ? h("button", { type: "button", class: "primary", id: "forward", onclick: () => go(1) }, work.step === last - 1 ? "Rank them" : "Next answer", icon("next"))
    : h("button", { type: "button", class: "primary", id: "submit", disabled: page.busy, onclick: submit }, page.busy ? "Submitting …" : "Submit", icon("check"));
  byId("bar").replaceChildren(h("div", { class: "row bar" },
    iconButton("undo", "Undo", undo, { disabled: !canUndo, id: "undo" }),
    h("button", { type: "button", class: "quiet", onclick: skip }, "Skip"),
    h("span", { class: "muted grow", id: "tally" }, `${done} done${skipped ? `, ${skipped} skipped` : ""} in this session`, work.step === last && missing ? ` · ${missing} not rated yet` : "", h("span", { id: "in-all" }, inAll())),
    work.step > 0 ? h("button", { type: "button", class: "quiet", onclick: () => go(-1) }, "Back") : null, forward));
}

function redrawRating() {
  const { task, open: { work } } = page;
  const rating = work.outputs[task.outputs[work.step].output_id].rating;
  for (const input of document.querySelectorAll("input[name=rating]")) input.checked = Number(input.value) === rating;
}

function change(edit) {
  page.open.change(edit);
  drawSteps();
}

function rank(ranking, id) {
  page.open.change((work) => { work.ranking = ranking; });
  draw();
  showMoved(page.task, ranking, id);
}

const go = (by) => goTo(page.open.work.step + by);

function goTo(step) {
  page.open.note((work) => { work.step = Math.max(0, Math.min(page.task.outputs.length, step)); });
  draw();
  focusStep();
}

function focusStep() {
  const heading = document.querySelector("#step h2");
  heading.focus({ preventScroll: true });
  const top = heading.getBoundingClientRect().top;
  if (top < 72 || top > innerHeight / 2) byId("steps").scrollIntoView({ block: "start" });
}

function undo() {
  page.open.undo();
  draw();
  announce("Undone.");
}

function onKey(event) {
  if (!page.task || document.querySelector("dialog")) return;
  if (!(event.ctrlKey || event.metaKey)) return;
  if (event.key === "z" && event.target.tagName !== "TEXTAREA") {
    event.preventDefault();
    if (page.open.canUndo) undo();
  } else if (event.key === "Enter" && page.open.work.step === page.task.outputs.length) submit();
}

/** Send the answer. Whatever goes wrong, the draft stays. */
async function submit() {
  if (page.busy) return;
  const { task, open } = page;
  const unrated = task.outputs.findIndex(({ output_id: id }) => !isRated(open.work, id));
  if (unrated >= 0) {
    toast(`Answer ${letter(unrated)} has no rating yet.`);
    return goTo(unrated);
  }
  page.busy = true;
  drawSteps();
  const body = answerOf(task, open.work);
  try {
    await json("POST", `/v1/labeling/${task.id}`, body, { headers: { "Idempotency-Key": open.keyFor(body) } });
  } catch (error) {
    page.busy = false;
    drawSteps();
    return refused(error);
  }
  finished({ done: 1 });
}

function refused(error) {
  const gone = error instanceof ApiError && error.status === 409;
  const text = gone ? `This task went to somebody else, so your answer could not be recorded. ${told(error)}` : `It was not recorded. ${told(error)} Your work is kept here.`;
  toast(text, { error: true, action: gone ? { label: "Next task", run: next } : { label: "Try again", run: submit } });
}

function finished({ done = 0, skipped = 0 }) {
  const before = tally();
  page.tally.write({ done: before.done + done, skipped: before.skipped + skipped });
  page.open.forget();
  page.task = null;
  announce(done ? "Recorded. Thank you." : "Skipped.");
  next();
  count();
}

async function skip() {
  const reasons = SKIP_REASONS.map((text, at) => h("label", { class: "choice" }, h("input", { type: "radio", name: "reason", value: text, required: true, checked: at === 0 }), text));
  const answer = await ask({ title: "Skip this task?", body: [h("fieldset", {}, h("legend", {}, "Why?"), reasons), h("label", { for: "skip-more" }, "Anything else (optional)"), h("textarea", { id: "skip-more", name: "more", rows: "2", maxlength: "2000" })], ok: "Skip" });
  if (!answer) return;
  const reason = [answer.get("reason"), answer.get("more").trim()].filter(Boolean).join(": ");
  try {
    await json("POST", `/v1/labeling/${page.task.id}/skip`, { reason }, { headers: { "Idempotency-Key": randomKey() } });
  } catch (error) {
    return refused(error);
  }
  finished({ skipped: 1 });
}

/** Every second: how long the task is still ours, or when we look for one again. */
function tick() {
  if (!page.task) {
    const left = (page.lookAt - Date.now()) / 1000;
    const shown = byId("look");
    if (shown) shown.textContent = clock(left);
    if (shown && left <= 0 && !page.busy && !document.hidden) next();
    return;
  }
  const left = page.task.leased_until - (Date.now() + page.skew) / 1000;
  const lease = byId("lease");
  lease.replaceChildren(icon("clock"), left > 0 ? clock(left) : "time is up");
  lease.classList.toggle("bad", left < 60);
  if (left <= 0 && !page.expired) expire();
}

function expire() {
  page.expired = true;
  byId("expired").replaceChildren(h("div", { class: "notice", role: "alert" },
    h("p", {}, h("strong", {}, "The time for this task has run out. "), "You can still submit as long as nobody else has taken it. Your draft is kept in any case."),
    h("button", { type: "button", class: "quiet", onclick: next }, "Renew, or get another task")));
}
