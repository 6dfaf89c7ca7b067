"use strict";
// The page of a line: asks for numbers every half second, receives pictures of what it shows, and sends what people do.

const ASK_MS = 500, BACK_MS = 1500;
const cards = new Map();
const page = {csrf: null, needsToken: false, lastNumber: 0, newestReject: undefined, socket: null, views: "", refusedUntil: 0};
const by = (id) => document.getElementById(id);

// ---- asking and telling

async function ask(path) {
  const answer = await fetch(path, {headers: {accept: "application/json"}});
  if (answer.status === 401) { location.reload(); throw new Error("the session has ended"); }
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

/** Does what a person asked for, and shows why it could not be done. */
async function attempt(work) {
  try { await work(); showFault(""); } catch (error) { showFault(error.message); }
  look();
}

function showFault(text) { const fault = by("fault"); fault.textContent = text; fault.hidden = !text; }
function streamPath(name, action) { return `api/streams/${encodeURIComponent(name)}/${action}`; }

// ---- numbers

let looking = false;
async function look() {
  if (looking) return;
  looking = true;
  try {
    const state = await ask(`api/state?after=${page.lastNumber}`);
    show(state);
    link("live", "connected");
  } catch (error) {
    link("lost", "no answer");
    for (const card of cards.values()) card.stale("NO ANSWER"); // nobody may take an old verdict for a new one
  }
  looking = false;
}

function link(kind, text) { const chip = by("link"); chip.className = `chip ${kind}`; chip.textContent = text; }

function show(state) {
  if (page.run && page.run !== state.run) location.reload(); // the line has started anew, and its page may be another
  page.run = state.run;
  const bundle = state.bundle;
  by("bundle").textContent = `${bundle.bundle} on ${bundle.runner} (${bundle.precision})`;
  const told = [...state.faults, ...state.warnings];
  by("warnings").textContent = told.join(" "); by("warnings").hidden = !told.length;
  by("warnings").classList.toggle("alarm", state.faults.length > 0);
  const names = state.streams.map((stream) => stream.name);
  for (const [name, card] of cards) if (!names.includes(name)) { card.end(); cards.delete(name); }
  for (const stream of state.streams) {
    if (!cards.has(stream.name)) { const card = new Card(stream.name); cards.set(stream.name, card); by("streams").append(card.node); }
    cards.get(stream.name).show(stream, state.scores[stream.name] || []);
    if (state.faults.length) cards.get(stream.name).stale("NO VERDICT");
    for (const [number] of (state.scores[stream.name] || []).slice(-1)) page.lastNumber = Math.max(page.lastNumber, number);
  }
  by("empty").hidden = names.length > 0;
  const live = state.streams.filter((stream) => ["live", "ended"].includes(stream.source_state)).length;
  by("summary").hidden = names.length < 2; by("summary").className = `chip ${live === names.length ? "live" : "lost"}`;
  by("summary").textContent = `${live} of ${names.length} cameras live`;
  showBundles(state); showEvents(state.events); showSinks(state.sinks); showChanges(state.changes); fillStreams(names);
  if (state.newest_reject !== page.newestReject) { page.newestReject = state.newest_reject; showGallery(); }
  sendViews();
}

function showBundles(state) {
  const choice = by("bundles"), names = state.bundles;
  if (choice.dataset.names !== names.join("\n")) {
    choice.dataset.names = names.join("\n");
    choice.replaceChildren(...names.map((name) => new Option(name, name)));
  }
  for (const option of choice.options) {
    const streams = state.judging[option.value], [first] = Object.keys(state.judging);
    option.textContent = `${option.value}${option.value === first ? " (judges now)" : streams ? ` (judges ${streams.join(", ")})` : ""}`;
  }
  by("swap-tools").hidden = !names.length;
  showSwap(state.swap);
}

const DONE_S = 20, FAILED_S = 600, REFUSED_MS = 60000; // how long the end of a swap is shown

/** How far the newest swap is, or why there was none, beside its button. */
function showSwap(swap) {
  const isGoing = swap !== null && (swap.state === "loading" || swap.stage !== null), told = by("swap-told");
  by("swap").disabled = swap !== null && swap.state === "loading";
  const isRefused = performance.now() < page.refusedUntil;
  let text = isRefused ? page.refusal : "";
  if (!text && isGoing) text = `${swap.bundle}: ${swap.stage || "loading"}, ${Math.round(swap.took_s)} s`;
  else if (!text && swap && swap.state === "failed" && swap.ago_s < FAILED_S) text = `${swap.bundle} was not swapped in, the old one judges on: ${swap.reason}`;
  else if (!text && swap && swap.state === "done" && swap.ago_s < DONE_S) text = `${swap.bundle} judges, after ${swap.took_s.toFixed(1)} s`;
  const isBad = isRefused || (swap !== null && swap.state === "failed"), isNew = isBad && told.textContent !== text;
  told.textContent = text; told.hidden = !text; told.classList.toggle("bad", isBad);
  if (isNew && page.hasAsked) told.scrollIntoView({block: "nearest"}); // on a phone the head scrolls away
}

// ---- pictures

function connect() {
  const socket = new WebSocket(new URL("live", location.href.replace(/^http/, "ws")));
  socket.binaryType = "arraybuffer";
  page.socket = socket; page.views = "";
  socket.addEventListener("open", sendViews);
  socket.addEventListener("message", ({data}) => {
    const length = new DataView(data).getUint16(0), header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 2, length)));
    const card = cards.get(header.stream);
    if (card && card.hasOverlay === header.overlay) card.picture(new Blob([new Uint8Array(data, 2 + length)], {type: "image/jpeg"}), header.verdict);
  });
  socket.addEventListener("close", ({reason}) => { if (reason) showFault(`No pictures: ${reason}`); setTimeout(connect, BACK_MS); });
}

/** Says which pictures are wanted: of the cards on the screen, of none while the page is hidden. */
function sendViews() {
  if (!page.socket || page.socket.readyState !== WebSocket.OPEN) return;
  const seen = (card) => { const box = card.part("stage").getBoundingClientRect(); return box.bottom > -200 && box.top < innerHeight + 200; };
  const views = document.hidden ? [] : [...cards.values()].filter(seen).map((card) => ({stream: card.name, overlay: card.hasOverlay}));
  const message = JSON.stringify({views});
  if (message !== page.views) { page.views = message; page.socket.send(message); }
}

// ---- the head of the page

by("add").addEventListener("click", () => by("add-dialog").showModal());
by("add-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target, fields = Object.fromEntries([...new FormData(form)].filter(([, value]) => value !== "")), fault = form.querySelector(".dialog-fault");
  try { await tell("api/streams", fields); fault.textContent = ""; form.reset(); by("add-dialog").close(); look(); } catch (error) { fault.textContent = error.message; }
});
for (const button of document.querySelectorAll("dialog .cancel")) button.addEventListener("click", () => button.closest("dialog").close());
by("swap").addEventListener("click", async () => {
  const bundle = by("bundles").value;
  if (!confirm(`Judge by the bundle ${bundle} from now on?`)) return;
  page.hasAsked = true;
  try { await tell("api/swap", {bundle}); page.refusedUntil = 0; } catch (error) {
    page.refusal = `${bundle} was not swapped in: ${error.message}`; page.refusedUntil = performance.now() + REFUSED_MS;
  }
  look();
});
by("fault").addEventListener("click", () => showFault(""));
for (const [action, question] of [["write", "Write these changes into the settings file?"], ["forget", "Forget these changes? The line then judges as the file says."]])
  by(`changes-${action}`).addEventListener("click", () => { if (confirm(question)) attempt(() => tell(`api/changes/${action}`, {})); });
by("gallery-stream").addEventListener("change", showGallery);
by("logout").addEventListener("click", () => attempt(async () => { await tell("logout", {}); location.reload(); }));
by("theme").addEventListener("click", () => {
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches, now = document.documentElement.dataset.theme || (isDark ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
  localStorage.setItem("theme", document.documentElement.dataset.theme);
});
if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");
document.addEventListener("visibilitychange", sendViews);
addEventListener("scroll", sendViews, {passive: true});
addEventListener("resize", sendViews);

async function begin() {
  const session = await ask("api/session");
  page.csrf = session.csrf; page.needsToken = session.needs_token;
  by("logout").hidden = !session.needs_token;
  by("add-form").elements.address.placeholder = session.sources.join(", ");
  connect();
  await look();
  setInterval(look, ASK_MS);
}
begin().catch((error) => showFault(error.message));
