// What a person says of an answer: thumb, rating, comment, a better text, which of two.

import { json, randomKey, told } from "./api.js";
import { h, iconButton, toast } from "./dom.js";
import { copyText } from "./markdown.js";
import { canRate } from "./chat_state.js";

/** Run a step that tells the service something; a failure is shown with a way to repeat it. */
async function tell(step, done) {
  const idempotency = { headers: { "Idempotency-Key": randomKey() } };
  const attempt = async () => {
    try {
      await step(idempotency);
      done();
    } catch (error) {
      toast(`That was not recorded. ${told(error)}`, { error: true, action: { label: "Try again", run: attempt } });
    }
  };
  await attempt();
}

/** Record thumb, rating and comment as one word; with nothing left to say, take it back. */
function record(answer, said, done) {
  return tell(async (options) => {
    const some = Object.fromEntries(Object.entries(said).filter(([, value]) => value !== null && value !== undefined && value !== ""));
    if (Object.keys(some).length === 0) {
      if (answer.feedbackId) await json("DELETE", `/v1/feedback/${answer.feedbackId}`);
      answer.feedbackId = null;
    } else {
      const body = { completion_id: answer.id, choice: answer.choice, ...some };
      answer.feedbackId = (await json("POST", "/v1/feedback", body, options)).id;
    }
    answer.said = some;
  }, done);
}

/** The row of buttons under an answer. `on` has redraw, regenerate; `rates` is whether the key may. */
export function answerTools(answer, { rates, busy, last, on }) {
  const rateable = rates && canRate(answer);
  const thumb = (value, label) => {
    const pressed = answer.said.thumb === value;
    const set = () => record(answer, { ...answer.said, thumb: pressed ? null : value }, () => on.redraw(value === "up" || pressed ? null : "comment"));
    return iconButton(value, label, set, { "aria-pressed": String(pressed), dataset: { focus: `${answer.id}:${answer.choice}:${value}` } });
  };
  const copy = iconButton("copy", "Copy the answer", async () => toast((await copyText(answer.edited ?? answer.text)) ? "Copied." : "This browser did not allow it: select the text instead."));
  return h("div", { class: "row tools", role: "group", "aria-label": "What you think of this answer" },
    rateable ? [thumb("up", "Good answer"), thumb("down", "Bad answer"),
      iconButton("comment", "Rate and comment", () => on.panel("comment"), { "aria-expanded": String(on.open === "comment"), "aria-pressed": String(Boolean(answer.said.comment || answer.said.rating)) }),
      iconButton("edit", "Write a better answer", () => on.panel("edit"), { "aria-expanded": String(on.open === "edit"), "aria-pressed": String(answer.edited !== null) })] : null,
    copy,
    last ? iconButton("again", "Answer again", on.regenerate, { disabled: busy }) : null,
    rates && !rateable && answer.ended ? h("span", { class: "muted" }, whyNot(answer)) : null);
}

function whyNot(answer) {
  if (answer.feedbackOff) return `Takes no feedback: ${answer.feedbackOff}`;
  return answer.ended === "stopped" ? "Stopped, so it cannot be rated" : "Incomplete, so it cannot be rated";
}

/** Rating 1 to 7 and a comment. */
export function commentPanel(answer, on) {
  const { kept } = on;
  kept.rating ??= answer.said.rating ?? null;
  kept.text ??= answer.said.comment ?? "";
  const box = h("textarea", { rows: "3", maxlength: "10000", id: "comment-text", value: kept.text, oninput: () => { kept.text = box.value; } });
  const save = (event) => {
    event.preventDefault();
    record(answer, { ...answer.said, rating: kept.rating, comment: box.value.trim() }, () => { toast("Recorded. Thank you."); on.close(); });
  };
  return h("form", { class: "panel", onsubmit: save },
    likert("How good is it?", kept.rating, (value) => { kept.rating = value; }),
    h("label", { for: "comment-text" }, "Comment"), box, buttons("Save", on));
}

function buttons(label, on) {
  return h("div", { class: "row end" },
    h("button", { type: "button", class: "quiet", onclick: on.close }, "Cancel"),
    h("button", { type: "submit", class: "primary" }, label));
}

/** A row of 1 to 7 as radio buttons. */
export function likert(legend, value, change, { name = "likert" } = {}) {
  const option = (number) => h("label", { class: "likert-option" },
    h("input", { type: "radio", name, value: String(number), checked: number === value, onchange: () => change(number), "aria-label": `${number} of 7${number === 1 ? ", worst" : number === 7 ? ", best" : ""}` }),
    h("span", { "aria-hidden": "true" }, String(number)));
  return h("fieldset", { class: "likert" }, h("legend", {}, legend),
    h("div", { class: "likert-row" }, h("span", { class: "muted end-word" }, "worst"), [1, 2, 3, 4, 5, 6, 7].map(option), h("span", { class: "muted end-word" }, "best")));
}

/** A text box with the answer, to be made what it should have been. */
export function editPanel(answer, on) {
  const { kept } = on;
  kept.text ??= answer.edited ?? answer.text;
  const box = h("textarea", { rows: "8", id: "edit-text", maxlength: "200000", value: kept.text, oninput: () => { kept.text = box.value; } });
  const save = (event) => {
    event.preventDefault();
    const text = box.value.trim();
    if (!text) return box.focus();
    const body = { completion_id: answer.id, choice: answer.choice, text };
    tell((options) => json("POST", "/v1/demonstrations", body, options), () => {
      answer.edited = text;
      toast("Recorded as what the answer should have been.");
      on.close();
    });
  };
  return h("form", { class: "panel", onsubmit: save }, h("label", { for: "edit-text" }, "What the answer should have been"), box, buttons("Save this answer", on));
}

/** Say which of two answers is better, or that they are equal. */
export function pick(turn, which, done) {
  const [one, other] = turn.answers.slice(-2).map((answer) => ({ completion_id: answer.id, choice: answer.choice }));
  const ranking = { left: [[one], [other]], right: [[other], [one]], tie: [[one, other]] }[which];
  return tell((options) => json("POST", "/v1/rankings", { ranking }, options), () => {
    turn.pair = which;
    turn.shown = turn.answers.length - (which === "right" ? 1 : 2);
    done();
  });
}
