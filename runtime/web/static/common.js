"use strict";
// What every page shares: texts in the chosen language, asking and telling the line, light and dark, who labels.

const LANGUAGES = {en: "English", de: "Deutsch", zh: "中文"};
const page = {csrf: null, needsToken: false, lastNumber: 0, newestReject: undefined, socket: null, views: "", refusedUntil: 0, role: "engineer"};
const by = (id) => document.getElementById(id);
const texts = {table: {}, language: "en"};

// ---- texts

/** The text of that key in the chosen language, its {places} filled. */
function t(key, values = {}) {
  const found = texts.table[key];
  return (found ? found[texts.language] : key).replace(/\{(\w+)\}/g, (place, name) => (name in values ? values[name] : place));
}

async function loadTexts() {
  texts.table = await (await fetch("static/texts.json")).json();
  const wished = [localStorage.getItem("language"), ...navigator.languages.map((name) => name.slice(0, 2))];
  texts.language = wished.find((name) => name in LANGUAGES) || "en";
  document.documentElement.lang = texts.language;
  translate(document);
  for (const template of document.querySelectorAll("template")) translate(template.content);
  const choice = by("language");
  if (!choice) return;
  choice.replaceChildren(...Object.entries(LANGUAGES).map(([name, title]) => new Option(title, name)));
  choice.value = texts.language;
  choice.addEventListener("change", () => { localStorage.setItem("language", choice.value); location.reload(); });
}

/** Fills what says by data-text, -title, -label or -placeholder which text it wants. */
function translate(root) {
  for (const node of root.querySelectorAll("[data-text]")) node.textContent = t(node.dataset.text);
  for (const node of root.querySelectorAll("[data-title]")) node.title = t(node.dataset.title);
  for (const node of root.querySelectorAll("[data-label]")) node.setAttribute("aria-label", t(node.dataset.label));
  for (const node of root.querySelectorAll("[data-placeholder]")) node.placeholder = t(node.dataset.placeholder);
}

function clock(time) { return new Date(time).toLocaleTimeString(texts.language, {hour12: false}); }
function moment(time) { return new Date(time).toLocaleString(texts.language, {dateStyle: "short", timeStyle: "medium", hour12: false}); }
function percent(share) { return share === null || share === undefined ? "–" : `${(100 * share).toLocaleString(texts.language, {maximumFractionDigits: share > 0.999 || share < 0.1 ? 2 : 1})} %`; }
/** The number with so many digits behind its point or comma. */
function decimal(value, digits) { return value.toLocaleString(texts.language, {minimumFractionDigits: digits, maximumFractionDigits: digits}); }
function ms(value) { return value === null || value === undefined ? "–" : `${value < 10 ? decimal(value, 1) : Math.round(value)}`; }
/** Two times in milliseconds with one unit. */
function times(first, second) {
  return second >= 1000 ? `${decimal(first / 1000, 1)} / ${decimal(second / 1000, 1)} s` : `${ms(first)} / ${ms(second)} ms`;
}
function element(tag, text = "", className = "") { const node = document.createElement(tag); node.textContent = text; if (className) node.className = className; return node; }

// ---- asking and telling

async function ask(path) {
  const answer = await fetch(path, {headers: {accept: "application/json"}});
  if (answer.status === 401) { location.reload(); throw new Error(t("session_ended")); }
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer.json();
}

async function tell(path, fields, isAgain = false) {
  const answer = await fetch(path, {
    method: "POST", body: JSON.stringify(fields), headers: {"content-type": "application/json", "x-csrf-token": page.csrf || ""},
  });
  const found = await answer.json();
  if (answer.status === 401) location.reload();
  if (answer.status === 403 && !page.needsToken && !isAgain) { // a page that is open for days: a new session begins
    await fetch("./");
    page.csrf = (await ask("api/session")).csrf;
    return tell(path, fields, true);
  }
  if (!answer.ok) throw new Error(found.error);
  return found;
}

function showFault(text) { const fault = by("fault"); fault.textContent = text; fault.hidden = !text; }

/** The session: its role, and what every page's head does. */
async function openSession() {
  await loadTexts();
  const session = await ask("api/session");
  page.csrf = session.csrf; page.needsToken = session.needs_token; page.role = session.role; page.keepsHistory = session.keeps_history;
  document.body.dataset.role = session.role;
  by("role").textContent = t(session.role); by("role").hidden = !session.needs_token;
  by("logout").hidden = !session.needs_token;
  return session;
}

by("fault").addEventListener("click", () => showFault(""));
by("logout").addEventListener("click", async () => { try { await tell("logout", {}); location.reload(); } catch (error) { showFault(error.message); } });
by("theme").addEventListener("click", () => {
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches, now = document.documentElement.dataset.theme || (isDark ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
  localStorage.setItem("theme", document.documentElement.dataset.theme);
});
if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");
for (const button of document.querySelectorAll("dialog .cancel")) button.addEventListener("click", () => button.closest("dialog").close());
