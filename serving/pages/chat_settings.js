// How answers are drawn: version, temperature, length, a system message.

import { h } from "./dom.js";

/** The settings as a form that changes `settings` at once; `models` are the ids to choose from. */
export function settingsPanel(settings, models, save) {
  const set = (name, value) => { settings[name] = value; save(); };
  const names = models.includes(settings.model) ? models : [settings.model, ...models];
  const versions = names.map((id) => h("option", { value: id, selected: id === settings.model }, id === "instructloop" ? "the current version" : id.replace("instructloop@", "")));
  const shown = h("output", { for: "temperature" }, settings.temperature.toFixed(1));
  return h("div", { class: "card settings" },
    field("model", "Version", h("select", { id: "model", onchange: (event) => set("model", event.target.value) }, versions)),
    field("temperature", ["Temperature ", shown], h("input", {
      id: "temperature", type: "range", min: "0", max: "2", step: "0.1", value: String(settings.temperature),
      oninput: (event) => { set("temperature", Number(event.target.value)); shown.textContent = settings.temperature.toFixed(1); },
    })),
    field("max-tokens", "Longest answer, in tokens", h("input", {
      id: "max-tokens", type: "number", min: "1", max: "100000", value: String(settings.maxTokens),
      onchange: (event) => { if (event.target.validity.valid && event.target.value) set("maxTokens", Math.round(Number(event.target.value))); else event.target.value = settings.maxTokens; },
    })),
    field("system", "System message", h("textarea", { id: "system", rows: "2", value: settings.system, onchange: (event) => set("system", event.target.value) })));
}

function field(id, label, input) {
  return h("div", { class: "field" }, h("label", { for: id }, label), input);
}
