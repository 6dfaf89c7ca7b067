"use strict";
// The page of a line: asks for numbers every half second, receives pictures of what it shows, and sends what people do.

const ASK_MS = 500, BACK_MS = 1500;
const cards = new Map();

/** Does what a person asked for, and shows why it could not be done. */
async function attempt(work) {
  try { await work(); showFault(""); } catch (error) { showFault(error.message); }
  look();
}

function streamPath(name, action) { return `api/streams/${encodeURIComponent(name)}/${action}`; }

// ---- numbers

let looking = false;
async function look() {
  if (looking) return;
  looking = true;
  try {
    const state = await ask(`api/state?after=${page.lastNumber}`);
    show(state);
    link("live", t("connected"));
  } catch (error) {
    link("lost", t("no_answer"));
    for (const card of cards.values()) card.stale(t("NO_ANSWER")); // nobody may take an old verdict for a new one
  }
  looking = false;
}

function link(kind, text) { const chip = by("link"); chip.className = `chip ${kind}`; chip.textContent = text; }

function show(state) {
  if (page.run && page.run !== state.run) location.reload(); // the line has started anew, and its page may be another
  page.run = state.run;
  const bundle = state.bundle;
  by("bundle").textContent = t("on_runner", bundle);
  const told = [...state.faults, ...state.warnings];
  by("warnings").textContent = told.join(" "); by("warnings").hidden = !told.length;
  by("warnings").classList.toggle("alarm", state.faults.length > 0);
  const names = state.streams.map((stream) => stream.name);
  for (const [name, card] of cards) if (!names.includes(name)) { card.end(); cards.delete(name); }
  for (const stream of state.streams) {
    if (!cards.has(stream.name)) { const card = new Card(stream.name); cards.set(stream.name, card); by("streams").append(card.node); }
    cards.get(stream.name).show(stream, state.scores[stream.name] || []);
    if (state.faults.length) cards.get(stream.name).stale(t("NO_VERDICT"));
    else if (bundle.runner === "untaught" && stream.bundle === bundle.bundle) cards.get(stream.name).stale(t("NOT_TAUGHT"));
    for (const [number] of (state.scores[stream.name] || []).slice(-1)) page.lastNumber = Math.max(page.lastNumber, number);
  }
  by("empty").hidden = names.length > 0;
  const live = state.streams.filter((stream) => ["live", "ended"].includes(stream.source_state)).length;
  by("summary").hidden = names.length < 2; by("summary").className = `chip ${live === names.length ? "live" : "lost"}`;
  by("summary").textContent = t("cameras_live", {n: live, m: names.length});
  showBoard(state);
  showBundles(state); showEvents(state.events); showSinks(state.sinks); showChanges(state.changes); fillStreams(names);
  if (state.newest_reject !== page.newestReject) { page.newestReject = state.newest_reject; showGallery(); }
  sendViews();
}

function showBundles(state) {
  const choice = by("bundles"), names = state.recipes.length ? state.recipes : state.bundles; // of a line with recipes those
  page.hasRecipes = state.recipes.length > 0;
  by("swap-what").textContent = t(page.hasRecipes ? "recipe" : "bundle");
  if (choice.dataset.names !== names.join("\n")) {
    choice.dataset.names = names.join("\n");
    choice.replaceChildren(...names.map((name) => new Option(name, name)));
  }
  for (const option of choice.options) {
    const streams = page.hasRecipes ? null : state.judging[option.value], [first] = page.hasRecipes ? [state.recipe] : Object.keys(state.judging);
    option.textContent = option.value === first ? t("judges_now", {bundle: first}) : streams ? t("judges_streams", {bundle: option.value, streams: streams.join(", ")}) : option.value;
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
  if (!text && isGoing) text = t("swap_going", {bundle: swap.bundle, stage: swap.stage || t("loading"), n: Math.round(swap.took_s)});
  else if (!text && swap && swap.state === "failed" && swap.ago_s < FAILED_S) text = t("swap_failed", swap);
  else if (!text && swap && swap.state === "done" && swap.ago_s < DONE_S) text = t("swap_done", {bundle: swap.bundle, n: decimal(swap.took_s, 1)});
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
  socket.addEventListener("close", ({reason}) => { if (reason) showFault(t("no_pictures", {reason})); setTimeout(connect, BACK_MS); });
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
by("swap").addEventListener("click", async () => {
  const bundle = by("bundles").value;
  if (!confirm(t(page.hasRecipes ? "ask_recipe" : "ask_swap", {bundle}))) return;
  page.hasAsked = true;
  try { await tell("api/swap", {[page.hasRecipes ? "recipe" : "bundle"]: bundle}); page.refusedUntil = 0; } catch (error) {
    page.refusal = t("swap_refused", {bundle, reason: error.message}); page.refusedUntil = performance.now() + REFUSED_MS;
  }
  look();
});
for (const [action, question] of [["write", "ask_write"], ["forget", "ask_forget"]])
  by(`changes-${action}`).addEventListener("click", () => { if (confirm(t(question))) attempt(() => tell(`api/changes/${action}`, {})); });
by("gallery-stream").addEventListener("change", showGallery);
document.addEventListener("visibilitychange", sendViews);
addEventListener("scroll", sendViews, {passive: true});
addEventListener("resize", sendViews);

async function begin() {
  const session = await openSession();
  showWho();
  by("to-teach").hidden = !session.can_teach;
  by("add-form").elements.address.placeholder = session.sources.join(", ");
  connect();
  await look();
  setInterval(look, ASK_MS);
}
begin().catch((error) => showFault(error.message));
