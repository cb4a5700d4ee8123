// One version: how it did, what it was trained on, why the gate let it pass, and making it live.

import { h, icon, when } from "./dom.js";
import { percent, short } from "./chart.js";
import { curvesPart, number, verdict, winBar, winRate, winText } from "./loop_parts.js";

const RATES = [["win_rate_vs_parent", "Wins over its parent"], ["win_rate_vs_sft", "Wins over the anchor (SFT)"]];
const FIGURES = [
  ["reward", "Reward", short], ["kl_to_anchor", "KL to the anchor", short], ["pretraining_loss_change", "Change in pretraining loss", short],
  ["length_change", "Change in length", percent],
];
const DATA = [
  ["comparisons", "Comparisons"], ["rankings", "Rankings"], ["ratings", "Ratings"], ["demonstrations", "Demonstrations"],
  ["prompts", "Prompts"], ["raters", "Raters"], ["users", "End users"],
];
const KINDS = { ranking: "rankings", rating: "ratings", demonstration: "demonstrations", labeling: "labeling tasks" };

/** The panel of a version. `card` has its history; `curves` may still be unknown. */
export function versionPart({ card, curves, serving }, on) {
  if (!card) return [h("p", { class: "muted" }, "Choose a version to see how it came about.")];
  return [
    h("div", { class: "row top" },
      h("h2", { class: "grow" }, card.version, " ", card.live ? h("span", { class: "badge good" }, "live") : null, " ", verdict(card)),
      actions(card, serving, on)),
    h("p", { class: "muted" }, `${card.kind}${card.parent ? `, from ${card.parent}` : ""}, made ${when(Date.parse(card.created_at) / 1000)}`),
    rates(card), figures(card), gate(card), trainedOn(card), lineageOf(card, on),
    card.parent ? [h("h3", {}, "While it was trained"), curves === undefined ? h("p", { class: "muted" }, "Reading the curves …") : curvesPart(curves)] : null,
    probesOf(card), historyOf(card),
  ];
}

function actions(card, serving, on) {
  const why = serving.barred[card.version];
  if (!card.live && why) return h("p", { class: "badge bad" }, `Cannot go live: ${why}`);
  if (!card.live) return h("button", { type: "button", class: "primary", onclick: () => on.promote(card), dataset: { focus: "promote" } }, icon("promote"), "Make it live");
  return h("button", { type: "button", class: "quiet", disabled: !serving.previous, title: serving.previous ? null : "There is no earlier version to go back to", onclick: () => on.rollback(card, serving.previous), dataset: { focus: "rollback" } }, icon("rollback"), serving.previous ? `Roll back to ${serving.previous}` : "Roll back");
}

function rates(card) {
  const known = RATES.map(([name, label]) => [label, winRate(card.figures?.[name])]).filter(([, rate]) => rate);
  if (!known.length) return null;
  return [h("h3", {}, "Win rates"), h("dl", { class: "rates" }, known.map(([label, rate]) => h("div", {},
    h("dt", {}, label), h("dd", {}, winBar(rate, label), h("span", {}, h("strong", {}, winText(rate)), h("span", { class: "muted" }, rate.judge ? ` ${rate.judge}${rate.n ? `, ${rate.n} judgements` : ""}` : ""))))),
  ), h("p", { class: "muted" }, "The band is the 95 % interval; the line is at 50 %.")];
}

function figures(card) {
  const known = FIGURES.filter(([name]) => Number.isFinite(card.figures?.[name]));
  const regressions = card.figures?.regressions ?? [];
  if (!known.length && !regressions.length) return null;
  return [h("h3", {}, "Figures"), h("dl", { class: "facts" }, known.map(([name, label, shown]) => fact(label, shown(card.figures[name]))),
    fact("Skills", regressions.length ? regressions.map(suite).join("; ") : "not measured"))];
}

const suite = (one) => (typeof one === "string" ? one : `${one.suite}: ${percent(one.parent)} to ${percent(one.candidate)} of ${one.items} items`);
const fact = (label, value) => h("div", {}, h("dt", {}, label), h("dd", {}, value));

function gate(card) {
  const { passed, reasons = [] } = card.gate ?? {};
  if (passed === undefined || !card.parent) return null;
  return [h("h3", {}, passed ? "The gate let it pass" : "The gate refused it"), h("ul", { class: "reasons" }, reasons.map((reason) => h("li", {}, reason)))];
}

function trainedOn(card) {
  const data = card.data ?? {};
  const known = DATA.filter(([name]) => data[name] !== undefined);
  if (!known.length) return null;
  const extra = [["reward_model", "Reward model"], ["anchor", "Anchor"]].filter(([name]) => card[name]);
  return [h("h3", {}, "What it was trained on"), h("dl", { class: "facts" },
    known.map(([name, label]) => fact(label, number(data[name]))), extra.map(([name, label]) => fact(label, card[name]))),
  data.snapshot ? h("p", { class: "muted snapshot" }, "Snapshot ", h("code", {}, data.snapshot), data.sha256 ? [", SHA-256 ", h("code", { title: data.sha256 }, `${data.sha256.slice(0, 16)}…`)] : null) : null];
}

/** Which feedback made it: how much of what kind, the root of all ids, and a proof for one. */
function lineageOf(card, on) {
  const { feedback_root: root, feedback_count: count, feedback_kinds: kinds = {} } = card.data ?? {};
  if (!root) return null;
  const said = h("p", { class: "muted", role: "status" });
  const prove = async (event) => {
    event.preventDefault();
    said.textContent = await on.prove(card, new FormData(event.target).get("feedback").trim());
  };
  return [h("h3", {}, "Which feedback it learned from"),
    h("p", {}, `${number(count)} pieces: ${Object.entries(kinds).map(([kind, many]) => `${number(many)} ${KINDS[kind] ?? kind}`).join(", ") || "none"}. `,
      h("span", { class: "muted snapshot" }, "Merkle root of their ids, signed with the card: ", h("code", { title: root }, `${root.slice(0, 16)}…`))),
    h("form", { class: "row prove", onsubmit: prove },
      h("label", { for: "feedback" }, "Is this one among them?"), h("input", { id: "feedback", name: "feedback", class: "grow", required: true, placeholder: "fb-…", autocomplete: "off", spellcheck: "false", dataset: { focus: "prove-id" } }),
      h("button", { type: "submit", class: "quiet", dataset: { focus: "prove" } }, "Look it up")), said];
}

function probesOf(card) {
  const probes = card.probes ?? [];
  if (!probes.length) return null;
  return [h("h3", {}, "Engines that proved to serve it"), h("dl", { class: "facts" }, probes.map(({ replica, at }) => fact(replica, when(Date.parse(at) / 1000))))];
}

function historyOf(card) {
  const entries = [...(card.history ?? [])].reverse();
  if (!entries.length) return null;
  return h("details", { class: "history" }, h("summary", {}, `History (${entries.length})`), h("ol", {}, entries.map((entry) => h("li", {},
    h("strong", {}, entry.action), entry.from || entry.to ? ` ${entry.from ?? ""} → ${entry.to ?? ""}` : "", entry.who ? ` by ${entry.who}` : "",
    h("span", { class: "muted" }, ` ${when(Date.parse(entry.at) / 1000)}`), entry.why ? h("p", {}, `“${entry.why}”`) : null))));
}
