// A rater's work on one task: what is said so far, undo, and a draft that survives a reload. Pure but
// for the storage. A ranking is a list of ranks, best first; a rank with several answers is a tie.

import { randomKey, stored } from "./api.js";

const MAX_UNDO = 100;
const DRAFT_DAYS = 3;
const PREFIX = "il-draft:";

/** The work on a task that nobody has begun. */
export function fresh(task) {
  const outputs = Object.fromEntries(task.outputs.map(({ output_id: id }) => [id, { rating: null, flags: {}, notes: "" }]));
  return { outputs, ranking: null, step: 0 };
}

/** The order that the ratings suggest: equal ratings are ties. */
export function suggested(task, work) {
  const ranks = new Map();
  for (const { output_id: id } of task.outputs) {
    const rating = work.outputs[id].rating ?? 0;
    ranks.set(rating, [...(ranks.get(rating) ?? []), id]);
  }
  return [...ranks.entries()].sort(([a], [b]) => b - a).map(([, ids]) => ids);
}

export const rankingOf = (task, work) => work.ranking ?? suggested(task, work);
export const rankOf = (ranking, id) => ranking.findIndex((rank) => rank.includes(id));
export const isRated = (work, id) => work.outputs[id].rating !== null;

/** The ranking with one answer taken out and put at a place of its own: before rank `at`. */
export function placeAlone(ranking, id, at) {
  const marked = ranking.map((rank) => rank.filter((other) => other !== id));
  return [...marked.slice(0, at), [id], ...marked.slice(at)].filter((rank) => rank.length);
}

/** The ranking with one answer in rank `at`, tied with what is there. */
export function placeTied(ranking, id, at) {
  if (ranking[at]?.includes(id)) return ranking;
  return ranking.map((rank, i) => (i === at ? [...rank, id] : rank.filter((other) => other !== id))).filter((rank) => rank.length);
}

/** One step up (-1) or down (1): out of a tie first, then past the next rank. */
export function moved(ranking, id, step) {
  const at = rankOf(ranking, id);
  const tied = ranking[at].length > 1;
  if (step < 0) return tied ? placeAlone(ranking, id, at) : at === 0 ? ranking : placeAlone(ranking, id, at - 1);
  return tied ? placeAlone(ranking, id, at + 1) : at === ranking.length - 1 ? ranking : placeAlone(ranking, id, at + 2);
}

/** Tie an answer with the rank above it (the first: below it), or take it out of its tie. */
export function toggledTie(ranking, id) {
  const at = rankOf(ranking, id);
  if (ranking[at].length > 1) return placeAlone(ranking, id, at + 1);
  if (ranking.length === 1) return ranking;
  return placeTied(ranking, id, at === 0 ? 1 : at - 1);
}

/** What is sent. */
export function answerOf(task, work) {
  const outputs = task.outputs.map(({ output_id: id }) => {
    const { rating, flags, notes } = work.outputs[id];
    const set = Object.fromEntries(Object.entries(flags).filter(([, value]) => value));
    return { output_id: id, rating, flags: set, ...(notes.trim() ? { notes: notes.trim() } : {}) };
  });
  return { outputs, ranking: rankingOf(task, work) };
}

/** The work on a task, with undo; every change is kept in this browser at once. */
export function openWork(task, keyId) {
  const kept = stored(() => localStorage, `${PREFIX}${keyId}:${task.id}`);
  const before = kept.read();
  const known = before && task.outputs.every(({ output_id: id }) => before.work?.outputs?.[id]);
  const state = { work: known ? before.work : fresh(task), past: [], sent: before?.sent ?? null };
  const write = () => kept.write({ work: state.work, sent: state.sent, at: Date.now() });
  return {
    restored: Boolean(known),
    get work() { return state.work; },
    get canUndo() { return state.past.length > 0; },
    change(edit) {
      state.past = [...state.past.slice(1 - MAX_UNDO), structuredClone(state.work)];
      edit(state.work);
      write();
    },
    /** A change that is no step of its own for undo: where one is, a letter typed. */
    note(edit) {
      edit(state.work);
      write();
    },
    undo() {
      if (state.past.length) state.work = state.past.pop();
      write();
    },
    /** The Idempotency-Key: the same for as long as the same is sent. */
    keyFor(body) {
      const text = JSON.stringify(body);
      if (state.sent?.text !== text) state.sent = { text, key: randomKey() };
      write();
      return state.sent.key;
    },
    forget: () => kept.remove(),
  };
}

/** Throw away drafts that are days old. */
export function pruneDrafts() {
  try {
    for (const name of Object.keys(localStorage).filter((one) => one.startsWith(PREFIX))) {
      const { at = 0 } = JSON.parse(localStorage.getItem(name)) ?? {};
      if (Date.now() - at > DRAFT_DAYS * 86_400_000) localStorage.removeItem(name);
    }
  } catch { /* without storage there are none */ }
}
