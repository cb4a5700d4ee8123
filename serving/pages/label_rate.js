// Rating one answer: its text, 1 to 7, the flags, notes.

import { h } from "./dom.js";
import { likert } from "./chat_feedback.js";
import { FLAGS } from "./label_words.js";
import { markdown } from "./markdown.js";

export const letter = (at) => String.fromCharCode(65 + at);

/** The panel of one answer. `on.change(edit, {redraw})` changes the work. */
export function ratePanel(task, at, work, on) {
  const { output_id: id, text } = task.outputs[at];
  const said = work.outputs[id];
  const edit = (step) => on.change((all) => step(all.outputs[id]));
  const notes = h("textarea", { id: "notes", rows: "2", maxlength: "10000", value: said.notes, placeholder: "Optional", oninput: () => on.note((all) => { all.outputs[id].notes = notes.value; }) });
  return h("section", { class: "rate", "aria-labelledby": "answer-name", onkeydown: (event) => keys(event, edit, on) },
    h("h2", { id: "answer-name", tabindex: "-1" }, `Answer ${letter(at)}`, h("span", { class: "muted" }, ` of ${task.outputs.length}`)),
    h("div", { class: "card text answer-text" }, text.trim() ? markdown(text) : h("p", { class: "muted" }, "(an empty answer)")),
    likert("How good is this answer?", said.rating, (value) => edit((one) => { one.rating = value; }), { name: "rating" }),
    flagSet(said, edit),
    h("div", { class: "field" }, h("label", { for: "notes" }, "Notes"), notes));
}

function flagSet(said, edit) {
  const flag = ([name, label, meaning]) => h("div", { class: "flag" },
    h("input", { type: "checkbox", id: `flag-${name}`, checked: Boolean(said.flags[name]), "aria-describedby": `means-${name}`, onchange: (event) => edit((one) => { one.flags[name] = event.target.checked; }) }),
    h("div", {}, h("label", { for: `flag-${name}` }, label), h("p", { class: "muted", id: `means-${name}` }, meaning)));
  return h("fieldset", { class: "flags" }, h("legend", {}, "Does any of this hold?"), h("div", { class: "flag-grid" }, FLAGS.map(flag)));
}

/** 1 to 7 rate, [ and ] go back and on, as long as the focus is in this panel and not in a text. */
function keys(event, edit, on) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "TEXTAREA") return;
  if (/^[1-7]$/.test(event.key)) {
    edit((one) => { one.rating = Number(event.key); });
    on.redraw();
  } else if (event.key === "[") on.go(-1);
  else if (event.key === "]") on.go(1);
  else return;
  event.preventDefault();
}
