// Small drawings in SVG: a line over iterations, a win rate with its interval, who came from whom.

import { h, s } from "./dom.js";

const W = 320, H = 150, LEFT = 44, RIGHT = 10, TOP = 12, BOTTOM = 24;

export function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e5)) return value.toExponential(1);
  return String(Number(value.toFixed(size < 1 ? 3 : size < 100 ? 2 : 0)));
}

export const percent = (value) => `${(100 * value).toFixed(1)} %`;

/** A line chart of one series; gaps where a value is missing. */
export function lineChart(title, values) {
  const known = values.filter((value) => value !== null);
  let [low, high] = [Math.min(...known), Math.max(...known)];
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const x = (at) => LEFT + (values.length < 2 ? 0.5 : at / (values.length - 1)) * (W - LEFT - RIGHT);
  const y = (value) => H - BOTTOM - ((value - low) / (high - low)) * (H - TOP - BOTTOM);
  const path = values.map((value, at) => (value === null ? "" : `${at && values[at - 1] !== null ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`)).join("");
  const grid = [low, (low + high) / 2, high].map((value) => [
    s("line", { x1: LEFT, x2: W - RIGHT, y1: y(value), y2: y(value), class: "grid" }),
    s("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, short(value))]);
  const dots = values.map((value, at) => (value === null ? null : s("circle", { cx: x(at), cy: y(value), r: 3.2, class: "dot" }, s("title", {}, `iteration ${at + 1}: ${short(value)}`))));
  const summary = `${title} over ${values.length} iterations, from ${short(known[0])} to ${short(known.at(-1))}`;
  return h("figure", { class: "chart" }, h("figcaption", {}, h("span", {}, title), h("strong", {}, short(known.at(-1)))),
    s("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": summary }, grid,
      s("path", { d: path, class: "line" }), dots,
      s("text", { x: LEFT, y: H - 6 }, "1"), s("text", { x: W - RIGHT, y: H - 6, "text-anchor": "end" }, values.length > 1 ? String(values.length) : ""),
      s("text", { x: (W + LEFT) / 2, y: H - 6, "text-anchor": "middle" }, "iteration")));
}

/** A win rate as cards have it, {value, interval} or a number, or null. */
export function winRate(said) {
  if (typeof said === "number") return { value: said, low: null, high: null };
  if (typeof said?.value !== "number") return null;
  const [low = null, high = null] = said.interval ?? [];
  return { value: said.value, low, high, judge: said.judge, n: said.judgements };
}

export function winText(rate) {
  return rate.low === null ? percent(rate.value) : `${percent(rate.value)} (${(100 * rate.low).toFixed(1)} to ${percent(rate.high)})`;
}

/** A bar from 0 to 100 % with the interval, the value and the line at 50 %. */
export function winBar(rate, label, w = 240) {
  const t = 26;
  const x = (share) => 4 + Math.max(0, Math.min(1, share)) * (w - 8);
  const kind = rate.low !== null && rate.low > 0.5 ? "better" : rate.high !== null && rate.high < 0.5 ? "worse" : "even";
  return s("svg", { viewBox: `0 0 ${w} ${t}`, class: `win ${kind}`, role: "img", "aria-label": `${label}: ${winText(rate)}` },
    s("rect", { x: 4, y: 10, width: w - 8, height: 6, rx: 3, class: "track" }),
    rate.low === null ? null : s("rect", { x: x(rate.low), y: 7, width: Math.max(2, x(rate.high) - x(rate.low)), height: 12, rx: 4, class: "interval" }),
    s("line", { x1: x(0.5), x2: x(0.5), y1: 2, y2: 24, class: "half" }),
    s("circle", { cx: x(rate.value), cy: 13, r: 5.5, class: "value" }));
}

const ROW = 68, LANE = 20;

/** The lines from parents to children beside a list of rows of 68 px, newest on top. */
export function lineage(versions, live) {
  const lanes = laneOf(versions);
  const row = new Map([...versions].reverse().map((one, at) => [one.version, at]));
  const x = (name) => 14 + lanes.get(name) * LANE;
  const y = (name) => ROW * row.get(name) + ROW / 2;
  const width = 28 + LANE * Math.max(0, ...lanes.values());
  const edges = versions.filter((one) => row.has(one.parent)).map(({ version, parent }) => {
    const [x1, y1, x2, y2] = [x(parent), y(parent) - 9, x(version), y(version) + 12];
    const bend = x1 === x2 ? `L${x2} ${y2}` : `C${x1} ${y1 - 26} ${x2} ${y2 + 34} ${x2} ${y2}`;
    return [s("path", { d: `M${x1} ${y1}${bend}`, class: "edge" }), s("path", { d: `M${x2 - 4} ${y2 + 5}L${x2} ${y2}L${x2 + 4} ${y2 + 5}`, class: "edge" })];
  });
  const nodes = versions.map(({ version }) => s("circle", { cx: x(version), cy: y(version), r: 7, class: version === live ? "node live" : "node" }));
  return { width, svg: s("svg", { width, height: ROW * versions.length, class: "lines", "aria-hidden": "true" }, edges, nodes) };
}

/** A child goes on in its parent's lane if it is the first there; the others branch off. */
function laneOf(versions) {
  const lanes = new Map();
  const continued = new Set();
  let free = 1;
  for (const { version, parent } of versions) {
    const straight = lanes.has(parent) && !continued.has(parent);
    lanes.set(version, straight ? lanes.get(parent) : lanes.size === 0 ? 0 : free++);
    if (straight) continued.add(parent);
  }
  return lanes;
}
