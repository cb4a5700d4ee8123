// The conversation: what was asked, what was answered, what was said of it. Kept for this tab.

import { stored } from "./api.js";

export const DEFAULTS = { model: "instructloop", temperature: 0.7, maxTokens: 512, system: "", compare: false };

/** The conversation of one key: turns of {prompt, answers, shown, pair}. */
export function openChat(keyId) {
  const kept = stored(() => sessionStorage, `il-chat:${keyId}`);
  const { turns = [], settings = {} } = kept.read() ?? {};
  const chat = { turns: turns.map(whole), settings: { ...DEFAULTS, ...settings } };
  return { chat, save: () => kept.write(chat) };
}

/** A turn as it is after a reload: what was still being written broke off. */
function whole(turn) {
  const answers = turn.answers.filter((answer) => answer.ended || answer.text);
  if (answers.length === turn.answers.length && answers.every((answer) => answer.ended)) return turn;
  const error = answers.length ? turn.error : { message: "the page was reloaded before it came.", advice: "" };
  const pair = turn.pair === "open" ? null : turn.pair;
  return { ...turn, answers: answers.map((answer) => ({ ...answer, ended: answer.ended ?? "broke" })), shown: Math.max(0, answers.length - 1), pair, error };
}

/** A new turn, not yet answered. */
export function newTurn(prompt) {
  return { prompt, answers: [], shown: 0, pair: null, error: null };
}

export function newAnswer() {
  return { id: null, choice: 0, text: "", versions: [], feedbackOff: null, ended: null, said: {}, feedbackId: null, edited: null };
}

/** What the model is asked for a turn: all turns before it, as they are shown, and its prompt. */
export function messagesFor(chat, turn) {
  const messages = chat.settings.system.trim() ? [{ role: "system", content: chat.settings.system.trim() }] : [];
  for (const before of chat.turns) {
    messages.push({ role: "user", content: before.prompt });
    if (before === turn) break;
    const answer = before.answers[before.shown];
    if (answer) messages.push({ role: "assistant", content: answer.edited ?? answer.text });
  }
  return messages;
}

/** The body of the request for a turn. */
export function requestFor(chat, turn, { n }) {
  const { model, temperature, maxTokens } = chat.settings;
  return { model, messages: messagesFor(chat, turn), temperature, max_tokens: maxTokens, ...(n > 1 ? { n } : {}) };
}

/** Whether an answer can be rated: it is whole, and the service knows it. */
export function canRate(answer) {
  return Boolean(answer.id) && !answer.feedbackOff && ["stop", "length"].includes(answer.ended);
}
