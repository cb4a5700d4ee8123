// The loop's page: looks every few seconds and redraws only what has changed.

import { json, told } from "./api.js";
import { announce, ask, byId, h, toast } from "./dom.js";
import { roundPart, servingPart, versionsPart } from "./loop_parts.js";
import { versionPart } from "./loop_version.js";
import { may, needsScope, start } from "./shell.js";

const EVERY = 3000;
const page = { selected: null, seen: new Map(), points: [], pointsOf: null, curves: new Map(), card: {}, timer: null, turn: 0 };

start((who) => {
  if (!may(who, "admin")) return byId("main").replaceChildren(needsScope("admin", "Seeing and steering the loop"));
  byId("main").replaceChildren(
    h("div", { class: "loop-page" },
      h("div", { class: "row top" }, h("h1", { class: "grow" }, "The loop"), h("span", { id: "fresh", class: "muted" })),
      h("section", { id: "serving", class: "card", "aria-label": "Serving" }),
      h("section", { id: "round", class: "card", "aria-label": "Round" }),
      h("div", { class: "two" },
        h("section", { class: "card", "aria-labelledby": "versions-name" }, h("h2", { id: "versions-name" }, "Versions"), h("div", { id: "versions" })),
        h("section", { id: "version", class: "card", "aria-label": "The chosen version" }))));
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  look();
});

/** Read everything and show it; then again in a while, as long as the page is seen. */
async function look() {
  const turn = ++page.turn;
  clearTimeout(page.timer);
  let problem = "";
  try {
    const data = await read();
    if (turn !== page.turn) return;
    await show(data);
  } catch (error) {
    problem = `Not up to date. ${told(error)}`;
  }
  if (turn !== page.turn) return;
  byId("fresh").textContent = problem;
  if (!document.hidden) page.timer = setTimeout(look, EVERY);
}

async function read() {
  const [loop, policies, serving] = await Promise.all(["/v1/loop", "/v1/policies", "/v1/loop/serving"].map((path) => json("GET", path)));
  const known = policies.policies.map((one) => one.version);
  if (!known.includes(page.selected)) page.selected = policies.target ?? known.at(-1) ?? null;
  return { loop, policies, serving, card: await readCard(policies, serving) };
}

/** The chosen version with its history: read when something about versions changed, or in a while. */
async function readCard(policies, serving) {
  if (!page.selected) return null;
  const live = policies.policies.map((one) => [one.version, one.live]);
  const key = JSON.stringify([page.selected, live, serving.since, serving.barred, Math.floor(Date.now() / 30_000)]);
  if (page.card.key !== key) page.card = { key, card: await json("GET", `/v1/policies/${page.selected}`) };
  return page.card.card;
}

async function show(data) {
  const { loop, policies, serving, card } = data;
  collect(loop.current);
  patch("serving", [serving, loop.new_comparisons], () => servingPart(data));
  patch("round", [loop, page.points.length], () => roundPart({ loop, points: page.points }, { startRound }));
  patch("versions", [policies, page.selected], () => versionsPart({ policies, selected: page.selected }, { select }));
  drawVersion(card, serving);
  const run = card?.data?.run;
  if (run && !page.curves.has(run)) {
    page.curves.set(run, (await json("GET", `/v1/loop/runs/${encodeURIComponent(run)}/curves`).catch(() => ({ curves: {} }))).curves);
    drawVersion(card, serving);
  }
}

function drawVersion(card, serving) {
  const run = card?.data?.run;
  const curves = run ? page.curves.get(run) : {};
  patch("version", [card, curves, serving.previous, serving.barred], () => versionPart({ card, curves, serving }, { promote, rollback, prove }));
}

/** Draw a part again if what it shows is not what it showed; the focus stays where it was. */
function patch(id, shown, draw) {
  const key = JSON.stringify(shown);
  if (page.seen.get(id) === key) return;
  page.seen.set(id, key);
  const focus = document.activeElement?.dataset?.focus;
  const open = Boolean(byId(id).querySelector("details[open]"));
  byId(id).replaceChildren(...draw().flat(Infinity).filter(Boolean));
  if (open) byId(id).querySelector("details")?.setAttribute("open", "");
  if (focus) byId(id).querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus();
}

/** The figures of the policy stage that runs, one point an iteration, for as long as one looks. */
function collect(run) {
  if (page.pointsOf !== (run?.id ?? null)) Object.assign(page, { pointsOf: run?.id ?? null, points: [] });
  const state = run?.stage === "policy" ? run.states.policy : null;
  if (!state || !Object.keys(state.figures).length) return;
  if (page.points.at(-1)?.fraction !== state.fraction) page.points.push({ ...state.figures, fraction: state.fraction });
}

function select(version) {
  page.selected = version;
  announce(`${version} is shown.`);
  look().then(() => { if (matchMedia("(max-width: 60rem)").matches) byId("version").scrollIntoView(); });
}

/** Ask why, then do it; `done` says what happened. */
async function change({ title, text, ok, danger, path, expected, done }) {
  const answer = await ask({
    title, ok, danger, body: [h("p", {}, text), h("label", { for: "why" }, "Why?"), h("textarea", { id: "why", name: "why", rows: "3", required: true, maxlength: "2000" }), h("p", { class: "muted" }, "It stays in the audit log, with the id of your key.")],
  });
  if (!answer) return;
  try {
    const { version } = await json("POST", path, { why: answer.get("why").trim(), expected });
    toast(done(version));
  } catch (error) {
    toast(`Nothing was changed. ${told(error)}`, { error: true });
  }
  look();
}

async function promote(card) {
  const { target } = await json("GET", "/v1/policies");
  const refused = card.parent && card.gate?.passed === false;
  await change({
    title: `Make ${card.version} live?`, ok: `Make ${card.version} live`, danger: refused,
    text: `${refused ? "The gate refused this version. " : ""}Every engine takes it up in place of ${target ?? "nothing"}; requests go on meanwhile.`,
    path: `/v1/policies/${card.version}/promote`, expected: target, done: (version) => `${version} is going live.`,
  });
}

function rollback(card, previous) {
  return change({
    title: `Roll back to ${previous}?`, ok: "Roll back", danger: true,
    text: `Every engine goes back from ${card.version} to ${previous}; requests go on meanwhile.`,
    path: "/v1/policies/rollback", expected: card.version, done: (version) => `${version} is going live again.`,
  });
}

/** Whether a version learned from a piece of feedback, in words. */
async function prove(card, id) {
  try {
    const { index, count } = await json("GET", `/v1/policies/${card.version}/feedback/${encodeURIComponent(id)}`);
    return `Yes: it is number ${index + 1} of the ${count} ids below the root.`;
  } catch (error) {
    return told(error);
  }
}

async function startRound() {
  const sure = await ask({ title: "Start a round?", ok: "Start", body: [h("p", {}, "It learns from what people have said so far: reward model, policy, evaluation, gate. It takes minutes to hours, and one round runs at a time.")] });
  if (!sure) return;
  try {
    const { run_id: id } = await json("POST", "/v1/loop/runs", {});
    toast(`${id} is waiting for a worker.`);
  } catch (error) {
    toast(`No round was started. ${told(error)}`, { error: true });
  }
  look();
}
