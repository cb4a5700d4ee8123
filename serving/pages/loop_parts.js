// The parts of the loop's page: what serves, the round that runs, the versions.

import { h, icon, when } from "./dom.js";
import { lineage, lineChart, winBar, winRate, winText } from "./chart.js";

const STAGES = { snapshot: "Snapshot", reward_model: "Reward model", policy: "Policy", evaluate: "Evaluation", vote: "Votes", gate: "Gate" };
const OUTCOMES = { running: "running", promoted: "promoted", passed: "passed the gate", refused: "refused by the gate", not_enough_data: "not enough data", failed: "failed", cancelled: "cancelled" };
const COUNTS = { prompts: "prompts", ratings: "ratings", rankings: "rankings", demonstrations: "demonstrations", comparisons: "comparisons" };
const number = (value) => Number(value ?? 0).toLocaleString("en");

/** What is live, since when, on how many engines. */
export function servingPart({ serving, loop }) {
  const { target, since, replicas, counts } = serving;
  const split = serving.canary?.mode === "split" ? serving.canary.candidate : null;
  const current = replicas.filter((one) => [target, split].includes(one.version) && one.state === "ready").length;
  return [
    h("div", { class: "row top" },
      h("div", {}, h("p", { class: "muted" }, "Serving"), h("p", { class: "big" }, target ?? replicas[0]?.version ?? "nothing yet"),
        h("p", { class: "muted" }, since ? `since ${when(Date.parse(since) / 1000)}` : null)),
      h("ul", { class: "replicas", "aria-label": "Engines" }, replicas.length ? replicas.map(replica) : h("li", { class: "muted" }, "No engine reports."))),
    replicas.length && current < replicas.length ? h("p", { class: "notice" }, `${current} of ${replicas.length} engines serve ${target}; the others are on their way.`) : null,
    serving.canary ? h("p", { class: "notice" }, canaryText(serving.canary)) : null,
    h("dl", { class: "counts" }, Object.entries(COUNTS).map(([name, label]) => h("div", {}, h("dt", {}, label), h("dd", {}, number(counts[name]))))),
    h("p", { class: "muted" }, `${number(loop.new_comparisons)} comparisons are new since the last round that came to a verdict.`),
  ];
}

function canaryText({ mode, candidate, parent, share, started_at: began }) {
  const who = mode === "split" ? `${(100 * share).toFixed(0)} % of users get ${candidate}, the others ${parent}` : `All users get ${candidate} in place of ${parent}`;
  return `A canary is on since ${when(began)}: ${who}. What they say decides, or you do: making a version live ends it.`;
}

function replica({ name, version, state, detail }) {
  return h("li", { class: "replica", title: detail || null }, h("span", { class: `light ${state}`, "aria-hidden": "true" }), `${name} `, h("span", { class: "muted" }, `${version} · ${state}`));
}

/** The round that runs, or how the last one ended. */
export function roundPart({ loop, points }, on) {
  const run = loop.current ?? loop.last;
  const button = h("button", { type: "button", class: "primary", disabled: Boolean(loop.current) || loop.paused, onclick: on.startRound, dataset: { focus: "start-round" } }, icon("play"), "Start a round");
  return [
    h("div", { class: "row top" }, h("h2", { class: "grow" }, loop.current ? "This round" : "The last round"), button),
    loop.paused ? h("p", { class: "notice" }, "The loop is paused: no new round begins. Whoever runs the service ends that with ", h("code", {}, "instructloop loop resume"), ".") : null,
    loop.worker ? null : h("p", { class: "notice" }, "No learning worker is there. A round waits until one is."),
    run ? runElement(run, Boolean(loop.current)) : h("p", { class: "muted" }, "There was none yet."),
    loop.current && points.length > 1 ? h("div", { class: "charts" }, ["reward", "kl_to_anchor"].filter((name) => points.every((one) => Number.isFinite(one[name]))).map((name) => lineChart(`${CURVE_NAMES[name]}, as seen here`, points.map((one) => one[name])))) : null,
  ];
}

function runElement(run, running) {
  const state = run.states[run.stage];
  return [
    h("p", {}, h("code", {}, run.id), " ", h("span", { class: `badge outcome-${run.outcome}` }, OUTCOMES[run.outcome] ?? run.outcome), " ", run.version ? h("span", { class: "badge version" }, run.version) : null, " ",
      h("span", { class: "muted" }, `started ${when(run.created_at)}, wanted by ${run.wanted_by}`)),
    run.reason ? h("p", {}, run.reason) : null,
    h("ol", { class: "stages" }, run.stages.map((stage) => stageElement(stage, run))),
    running && state?.message ? h("p", { class: "muted" }, state.message) : null,
  ];
}

function stageElement(stage, run) {
  const state = run.states[stage] ?? {};
  const done = Boolean(state.finished_at);
  const now = run.stage === stage && !run.finished_at;
  const share = done ? 1 : state.fraction ?? 0;
  const seconds = done && state.started_at ? Math.round(state.finished_at - state.started_at) : null;
  const word = done ? `done in ${seconds} s` : now ? `${Math.round(100 * share)} %` : run.finished_at ? "not run" : "to come";
  return h("li", { class: done ? "done" : now ? "now" : "", "aria-current": now ? "step" : null },
    h("div", { class: "row tight" }, h("span", { class: "grow" }, STAGES[stage] ?? stage), h("span", { class: "muted" }, word)),
    h("progress", { max: "1", value: String(share), "aria-label": `${STAGES[stage] ?? stage}: ${word}` }));
}

/** All versions, newest on top, with lines from parent to child. */
export function versionsPart({ policies, selected }, on) {
  if (!policies.policies.length) return [h("p", { class: "muted" }, "No version is registered yet.")];
  const { svg, width } = lineage(policies.policies, policies.target);
  const rows = [...policies.policies].reverse().map((card) => versionRow(card, card.version === selected, on));
  const list = h("ul", { class: "versions" }, rows);
  list.style.paddingLeft = `${width}px`;
  return [h("div", { class: "lineage" }, svg, list)];
}

function versionRow(card, selected, on) {
  const rate = winRate(card.figures?.win_rate_vs_parent);
  return h("li", {}, h("button", { type: "button", class: "version-row", "aria-pressed": String(selected), onclick: () => on.select(card.version), dataset: { focus: `row-${card.version}` } },
    h("span", { class: "row tight" }, h("strong", {}, card.version), card.live ? h("span", { class: "badge good" }, "live") : null, verdict(card),
      h("span", { class: "muted" }, card.parent ? `${card.kind} from ${card.parent}` : card.kind)),
    h("span", { class: "row tight" }, rate ? [h("span", { class: "win-mini" }, winBar(rate, `Win rate over ${card.parent}`, 110)), h("span", { class: "muted" }, percentOf(rate))] : h("span", { class: "muted" }, "the model this service began with"))));
}

const percentOf = (rate) => `wins ${(100 * rate.value).toFixed(0)} %`;

export function verdict(card) {
  if (!card.parent || card.gate?.passed === undefined) return null;
  return card.gate.passed ? h("span", { class: "badge" }, "passed") : h("span", { class: "badge bad" }, "refused");
}

export const CURVE_NAMES = { reward: "Reward", kl_to_anchor: "KL to the anchor, per answer", kl_per_token: "KL per token", entropy: "Entropy", clip_fraction: "Clipped share", ptx_loss: "Pretraining loss" };

/** The curves of the run that made a version. */
export function curvesPart(curves) {
  const names = Object.keys(CURVE_NAMES).filter((name) => curves?.[name]?.some((value) => value !== null));
  if (!names.length) return h("p", { class: "muted" }, "No curves are kept for this version where the gateway can read them.");
  return h("div", { class: "charts" }, names.map((name) => lineChart(CURVE_NAMES[name], curves[name])));
}

export { number, winBar, winRate, winText };
