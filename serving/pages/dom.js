// Building the page: elements, icons, dialogs, messages. Text only ever becomes text nodes.

const SVG = "http://www.w3.org/2000/svg";

/** An element: h("p", {class: "x", onclick: f, "aria-label": "y"}, "text", child, …). */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else if (name === "dataset") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const PATHS = {
  up: "M7 11v9H4a1 1 0 0 1-1-1v-7a1 1 0 0 1 1-1h3Zm0 0 4-8a2.5 2.5 0 0 1 2.5 2.5V9h5.2a2 2 0 0 1 2 2.3l-1.1 7a2 2 0 0 1-2 1.7H7",
  down: "M17 13V4h3a1 1 0 0 1 1 1v7a1 1 0 0 1-1 1h-3Zm0 0-4 8a2.5 2.5 0 0 1-2.5-2.5V15H5.3a2 2 0 0 1-2-2.3l1.1-7a2 2 0 0 1 2-1.7H17",
  copy: "M9 9h10a1 1 0 0 1 1 1v10a1 1 0 0 1-1 1H9a1 1 0 0 1-1-1V10a1 1 0 0 1 1-1ZM5 15H4a1 1 0 0 1-1-1V4a1 1 0 0 1 1-1h10a1 1 0 0 1 1 1v1",
  again: "M20 11a8 8 0 1 0-.6 4M20 4v7h-7",
  edit: "m4 20 1-4L16.5 4.5a2.1 2.1 0 0 1 3 3L8 19l-4 1Z",
  comment: "M4 5h16a1 1 0 0 1 1 1v10a1 1 0 0 1-1 1h-8l-5 4v-4H4a1 1 0 0 1-1-1V6a1 1 0 0 1 1-1Z",
  send: "M12 20V5m0 0-6 6m6-6 6 6",
  stop: "M7 7h10v10H7z",
  settings: "M4 7h9m5 0h2M4 17h2m5 0h9M15.5 9.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5ZM8.5 19.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5Z",
  clear: "M4 7h16M9 7V4h6v3m-8 0 1 13h8l1-13M10 11v5m4-5v5",
  theme: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5Z",
  out: "M14 4h5a1 1 0 0 1 1 1v14a1 1 0 0 1-1 1h-5M10 8l-4 4 4 4m-4-4h10",
  close: "M6 6l12 12M18 6 6 18",
  prev: "m14 6-6 6 6 6",
  next: "m10 6 6 6-6 6",
  arrowup: "M12 19V5m0 0-6 6m6-6 6 6",
  arrowdown: "M12 5v14m0 0 6-6m-6 6-6-6",
  tie: "M5 9h14M5 15h14",
  grip: "M9 6h.01M9 12h.01M9 18h.01M15 6h.01M15 12h.01M15 18h.01",
  undo: "M9 14 4 9l5-5M4 9h10a6 6 0 0 1 0 12h-3",
  check: "m5 12.5 4.5 4.5L19 7.5",
  clock: "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18Zm0-14v5l3 2",
  compare: "M4 5h6v14H4zM14 5h6v14h-6z",
  play: "M8 5v14l11-7z",
  rollback: "M9 14 4 9l5-5M4 9h11a5 5 0 0 1 5 5v5",
  promote: "M12 3v12m0-12L7 8m5-5 5 5M5 21h14",
};

/** A line icon; it says nothing to a screen reader, so its button needs a name. */
export function icon(name) {
  const path = s("path", { d: PATHS[name] });
  return s("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" }, path);
}

/** A button that is an icon; `label` is its name and its tooltip. */
export function iconButton(name, label, onclick, attributes = {}) {
  return h("button", { type: "button", class: "icon-button", title: label, "aria-label": label, onclick, ...attributes }, icon(name));
}

export const byId = (id) => document.getElementById(id);

/** Say something to a screen reader only. */
export function announce(text) {
  byId("said").textContent = "";
  setTimeout(() => { byId("said").textContent = text; }, 30);
}

/** A message that goes by itself; an error stays until it is closed. */
export function toast(text, { error = false, action = null } = {}) {
  const box = h("div", { class: error ? "toast error" : "toast", role: error ? "alert" : "status" }, h("span", {}, text));
  if (action) box.append(h("button", { type: "button", class: "quiet", onclick: () => { box.remove(); action.run(); } }, action.label));
  box.append(iconButton("close", "Close this message", () => box.remove()));
  const room = byId("toasts");
  while (room.children.length > 2) room.firstChild.remove();
  room.append(box);
  if (!error) setTimeout(() => box.remove(), 6000);
}

/** Ask in a modal dialog; resolves with the form's data, or null when it was left. */
export function ask({ title, body = [], ok = "OK", danger = false }) {
  return new Promise((resolve) => {
    const cancel = h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Cancel");
    const confirm = h("button", { type: "submit", class: danger ? "danger" : "primary" }, ok);
    const form = h("form", { method: "dialog" }, h("h2", { id: "dialog-title" }, title), body, h("div", { class: "row end" }, cancel, confirm));
    const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, form);
    let answer = null;
    form.addEventListener("submit", () => { answer = new FormData(form); });
    dialog.addEventListener("close", () => { dialog.remove(); resolve(answer); });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** A moment as people say it. */
export function when(seconds) {
  const date = new Date(seconds * 1000);
  if (Number.isNaN(date.getTime())) return "";
  const today = date.toDateString() === new Date().toDateString();
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return today ? `today ${time}` : `${date.toLocaleDateString([], { day: "numeric", month: "short" })} ${time}`;
}

/** A duration in seconds as m:ss. */
export function clock(seconds) {
  const left = Math.max(0, Math.floor(seconds));
  return `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
}
