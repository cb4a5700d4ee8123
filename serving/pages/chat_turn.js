// One turn on the page: the prompt, its answers, and what can be done with them.

import { h, iconButton } from "./dom.js";
import { markdown } from "./markdown.js";
import { answerTools, commentPanel, editPanel, pick } from "./chat_feedback.js";
import { canRate } from "./chat_state.js";

/** The element of a turn. `view` says what may be done now; see chat.js. */
export function turnElement(turn, view) {
  const children = [h("div", { class: "prompt" }, h("h2", { class: "unseen" }, "You"), h("div", { class: "prompt-text" }, turn.prompt))];
  if (turn.pair === "open") children.push(pairElement(turn, view));
  else if (turn.answers.length) children.push(answerElement(turn, turn.shown, view));
  if (turn.error) children.push(errorElement(turn.error, view));
  return h("article", { class: "turn" }, children);
}

function errorElement(error, view) {
  return h("div", { class: "notice error", role: "alert" },
    h("p", {}, h("strong", {}, "No complete answer: "), error.message),
    error.advice ? h("p", {}, error.advice) : null,
    view.last ? h("button", { type: "button", class: "quiet", onclick: view.regenerate, disabled: view.busy }, "Try again") : null);
}

function answerElement(turn, at, view) {
  const answer = turn.answers[at];
  const open = view.open?.at === at ? view.open.panel : null;
  const panel = (name) => view.setOpen(open === name ? null : { at, panel: name });
  const redraw = (next) => view.setOpen(next && next !== open ? { at, panel: next } : view.open);
  const on = { redraw, panel, open, kept: view.open ?? {}, regenerate: view.regenerate, close: () => view.setOpen(null) };
  return h("div", { class: "answer" },
    head(turn, at, view),
    open === "edit" ? editPanel(answer, on) : textElement(answer, view.writing),
    view.writing ? null : answerTools(answer, { rates: view.rates, busy: view.busy, last: view.last, on }),
    open === "comment" ? commentPanel(answer, on) : null);
}

function head(turn, at, view) {
  const answer = turn.answers[at];
  const pager = turn.answers.length > 1 && !view.writing
    ? h("div", { class: "row tight pager" },
      iconButton("prev", "Earlier answer", () => view.show(at - 1), { disabled: at === 0 }),
      h("span", { class: "muted" }, `${at + 1} / ${turn.answers.length}`),
      iconButton("next", "Later answer", () => view.show(at + 1), { disabled: at === turn.answers.length - 1 }))
    : null;
  return h("div", { class: "row answer-head" },
    h("h2", { class: "unseen" }, "Answer"), versions(answer),
    answer.edited !== null ? h("span", { class: "badge good" }, "edited by you") : null,
    answer.ended === "length" ? h("span", { class: "badge" }, "cut at the token limit") : null,
    answer.ended === "stopped" ? h("span", { class: "badge" }, "stopped") : null,
    turn.pair && turn.pair !== "open" ? h("span", { class: "badge" }, { left: "you picked A", right: "you picked B", tie: "you said: a tie" }[turn.pair]) : null,
    pager);
}

function versions(answer) {
  if (!answer.versions.length) return null;
  const mixed = answer.versions.length > 1;
  const title = mixed ? "The live version changed while this was written" : "The policy version that answered";
  return h("span", { class: "badge version", title }, answer.versions.join(" → "));
}

/** The text of an answer, as Markdown; while it is being written, with a cursor. */
export function textElement(answer, writing) {
  const text = answer.edited ?? answer.text;
  const box = h("div", { class: writing ? "text writing" : "text" });
  if (text) box.append(markdown(text));
  else box.append(h("p", { class: "muted" }, writing ? "Thinking …" : "(an empty answer)"));
  return box;
}

function pairElement(turn, view) {
  const pair = turn.answers.slice(-2);
  const ready = !view.writing && view.rates && pair.every(canRate);
  const choose = (which, label) => h("button", { type: "button", class: which === "tie" ? "quiet" : "primary", disabled: !ready, onclick: () => pick(turn, which, view.redraw) }, label);
  const column = (answer, name, which) => h("section", { class: "answer half", "aria-label": `Answer ${name}` },
    h("div", { class: "row answer-head" }, h("span", { class: "badge letter" }, name)),
    textElement(answer, view.writing), choose(which, `${name} is better`));
  const skip = h("button", { type: "button", class: "quiet", disabled: view.writing, onclick: () => view.leavePair() }, "Go on without choosing");
  return h("div", { class: "pair" }, h("p", { class: "muted", id: "pair-help" }, "Two answers to the same prompt. Which one would you rather get?"),
    h("div", { class: "pair-columns" }, column(pair[0], "A", "left"), column(pair[1], "B", "right")),
    h("div", { class: "row center" }, choose("tie", "They are equally good"), skip));
}
