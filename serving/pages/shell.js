// What all pages share: the bar on top, signing in and out, the theme.

import { ApiError, forgetAll, json, onSignedOut, told } from "./api.js";
import { byId, h, icon, iconButton, toast } from "./dom.js";

const PAGES = [["chat", "/", "Playground"], ["label", "/label", "Label"], ["loop", "/loop", "Loop"]];

/** Start a page: `show(who)` is called once somebody is signed in. */
export async function start(show) {
  let who;
  try {
    who = await json("GET", "/v1/session");
  } catch (error) {
    drawTop(null);
    byId("main").replaceChildren(unreachable(error, () => start(show)));
    return;
  }
  drawTop(who.signed_in ? who : null);
  if (!who.signed_in) return signIn(() => start(show));
  onSignedOut(() => signInAgain(who));
  show(who);
}

export const may = (who, ...scopes) => who.scopes.includes("admin") || scopes.some((scope) => who.scopes.includes(scope));

/** What a page shows to a key that lacks the scope for it. */
export function needsScope(scope, whatFor) {
  return h("section", { class: "card center-card" },
    h("h1", {}, "This key cannot do that"),
    h("p", {}, `${whatFor} needs a key with the scope `, h("code", {}, scope), ". Whoever runs this service makes one with"),
    h("pre", { tabindex: "0" }, `instructloop keys create --name you --scope ${scope}`));
}

function drawTop(who) {
  const here = document.body.dataset.page;
  const links = PAGES.map(([name, path, label]) => h("a", { href: path, "aria-current": name === here ? "page" : null }, label));
  const right = h("div", { class: "row tight" }, iconButton("theme", "Change between light and dark", toggleTheme));
  if (who) {
    right.prepend(h("span", { class: "who", title: `tenant ${who.tenant}; scopes ${who.scopes.join(", ")}` }, who.name));
    right.append(iconButton("out", "Sign out", signOut));
  }
  byId("top").replaceChildren(
    h("a", { class: "brand", href: "/", "aria-label": "InstructLoop" }, icon("again"), h("span", {}, "InstructLoop")),
    h("nav", { "aria-label": "Pages" }, links), right);
}

function toggleTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("il-theme", root.dataset.theme); } catch { /* it holds until the reload */ }
}

async function signOut() {
  try {
    await json("DELETE", "/v1/session");
  } catch (error) {
    return toast(`You are still signed in. ${told(error)}`, { error: true });
  }
  forgetAll();
  location.reload();
}

function signInForm(done) {
  const field = h("input", { id: "key", name: "key", type: "password", autocomplete: "current-password", required: true, spellcheck: "false", "aria-describedby": "key-help key-error" });
  const problem = h("p", { id: "key-error", class: "problem", role: "alert" });
  const button = h("button", { type: "submit", class: "primary" }, "Sign in");
  const submit = async (event) => {
    event.preventDefault();
    problem.textContent = "";
    button.disabled = true;
    try {
      done(await json("POST", "/v1/session", { key: field.value.trim() }));
    } catch (error) {
      const known = error instanceof ApiError && [401, 422].includes(error.status);
      problem.textContent = known ? "This key is not known, or it was revoked or has expired." : told(error);
      field.setAttribute("aria-invalid", "true");
      field.select();
    }
    button.disabled = false;
  };
  return h("form", { onsubmit: submit },
    h("input", { type: "text", autocomplete: "username", value: "InstructLoop", hidden: true }),
    h("label", { for: "key" }, "API key"), field,
    h("p", { id: "key-help", class: "muted" }, "It starts with ", h("code", {}, "il-"), ". The key itself is not kept in this browser."),
    problem, button);
}

function signIn(done) {
  const card = h("section", { class: "card sign-in" }, h("h1", {}, "Sign in"), signInForm(done));
  byId("main").replaceChildren(card);
  byId("key").focus();
}

/** The session ended under an open page: sign in over it, so that nothing on it is lost. */
function signInAgain(before) {
  if (document.querySelector("dialog.again")) return;
  const dialog = h("dialog", { class: "again", "aria-labelledby": "again-title" });
  const done = (who) => {
    if (who.id !== before.id) location.reload();
    dialog.close();
  };
  dialog.append(h("h2", { id: "again-title" }, "Your session has ended"), h("p", {}, "Sign in again to go on. What you wrote is still here."), signInForm(done));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

function unreachable(error, again) {
  return h("section", { class: "card center-card" },
    h("h1", {}, "The service does not answer"),
    h("p", {}, told(error)),
    h("button", { type: "button", class: "primary", onclick: again }, "Try again"));
}
