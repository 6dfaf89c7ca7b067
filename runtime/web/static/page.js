"use strict";
// The page of a line: asks for numbers every half second, is sent pictures of what it shows, and tells what people do.

const ASK_MS = 500, BACK_MS = 1500, STEPS = 1000;
const cards = new Map();
const page = {csrf: null, lastNumber: 0, newestReject: undefined, socket: null, views: "", gallery: ""};
const by = (id) => document.getElementById(id);

// ---- asking and telling

async function ask(path) {
  const answer = await fetch(path, {headers: {accept: "application/json"}});
  if (answer.status === 401) { location.reload(); throw new Error("the session has ended"); }
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer.json();
}

async function tell(path, fields) {
  const answer = await fetch(path, {
    method: "POST", body: JSON.stringify(fields), headers: {"content-type": "application/json", "x-csrf-token": page.csrf || ""},
  });
  const found = await answer.json();
  if (answer.status === 401) location.reload();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

/** Does what a person asked for, and shows why it could not be done. */
async function attempt(work) {
  try { await work(); showFault(""); } catch (error) { showFault(error.message); }
  look();
}

function showFault(text) { const fault = by("fault"); fault.textContent = text; fault.hidden = !text; }
function streamPath(name, verb) { return `api/streams/${encodeURIComponent(name)}/${verb}`; }

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
  }
  looking = false;
}

function link(kind, text) { const chip = by("link"); chip.className = `chip ${kind}`; chip.textContent = text; }

function show(state) {
  const bundle = state.bundle;
  by("bundle").textContent = `${bundle.bundle} on ${bundle.runner} (${bundle.precision})`;
  by("warnings").textContent = state.warnings.join(" "); by("warnings").hidden = !state.warnings.length;
  const names = state.streams.map((stream) => stream.name);
  for (const [name, card] of cards) if (!names.includes(name)) { card.node.remove(); cards.delete(name); }
  for (const stream of state.streams) {
    if (!cards.has(stream.name)) { const card = new Card(stream.name); cards.set(stream.name, card); by("streams").append(card.node); }
    cards.get(stream.name).show(stream, state.scores[stream.name] || []);
    for (const [number] of (state.scores[stream.name] || []).slice(-1)) page.lastNumber = Math.max(page.lastNumber, number);
  }
  by("empty").hidden = names.length > 0;
  showBundles(state); showEvents(state.events); showSinks(state.sinks); fillStreams(names);
  if (state.newest_reject !== page.newestReject) { page.newestReject = state.newest_reject; showGallery(); }
  sendViews();
}

function showBundles(state) {
  const choice = by("bundles"), names = state.bundles;
  if (choice.dataset.names !== names.join("\n")) {
    choice.dataset.names = names.join("\n");
    choice.replaceChildren(...names.map((name) => new Option(name, name)));
  }
  choice.parentNode.hidden = by("swap").hidden = !names.length;
  const isLoading = state.swap !== null && state.swap.state === "loading";
  by("swap").disabled = isLoading || !names.length;
  by("swap").textContent = isLoading ? `loading ${state.swap.bundle}` : "Swap";
  if (state.swap && state.swap.state === "failed" && page.failedSwap !== JSON.stringify(state.swap)) {
    page.failedSwap = JSON.stringify(state.swap);
    showFault(`${state.swap.bundle} was not swapped in: ${state.swap.reason}`);
  }
}

function row(cells, numbers = []) {
  const line = document.createElement("tr");
  cells.forEach((cell, place) => {
    const field = document.createElement("td");
    if (cell instanceof Node) field.append(cell); else field.textContent = cell;
    if (numbers.includes(place)) field.className = "number";
    line.append(field);
  });
  return line;
}

function chip(text) { const node = document.createElement("span"); node.className = `chip ${text}`; node.textContent = text; return node; }

function showEvents(events) {
  const key = events.length ? events[0].id : "";
  if (page.newestEvent === key) return;
  page.newestEvent = key;
  by("events").replaceChildren(...events.map((event) => row([
    new Date(event.time).toLocaleTimeString(), event.stream || "line", event.event, describe(event.facts)])));
}

function describe(facts) {
  if (facts.reason) return facts.reason;
  const short = (value) => typeof value === "number" ? +value.toPrecision(4) : Array.isArray(value) ? value.length : value && value.bundle ? value.bundle : value;
  return Object.entries(facts).filter(([, value]) => value !== null && (typeof value !== "object" || Array.isArray(value) || value.bundle))
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${short(value)}`).join(", ");
}

function showSinks(sinks) {
  by("sinks-panel").hidden = !sinks.length;
  by("sinks").replaceChildren(...sinks.map((sink) => row([
    sink.name, chip(sink.state), sink.delivered, sink.queued + sink.spooled, total(sink.dropped)], [2, 3, 4])));
}

function total(counts) { return Object.values(counts).reduce((sum, count) => sum + count, 0); }
function ms(value) { return value === null || value === undefined ? "–" : `${value < 10 ? value.toFixed(1) : Math.round(value)}`; }

// ---- a stream

class Card {
  constructor(name) {
    this.name = name; this.scores = []; this.tried = null; this.stream = null; this.url = null; this.room = 500;
    this.node = by("card").content.firstElementChild.cloneNode(true);
    this.node.dataset.stream = name;
    this.part = (kind) => this.node.querySelector(`.${kind}`);
    this.part("name").textContent = name;
    this.part("picture").alt = `newest picture of ${name}`;
    this.drawing = new RegionDrawing(this.part("regions"), () => this.stream && this.stream.size);
    this.on("overlay", "change", () => sendViews());
    this.on("pause", "click", () => attempt(() => tell(streamPath(name, this.stream.is_paused ? "resume" : "pause"), {})));
    this.on("remove", "click", () => { if (confirm(`Remove the stream ${name}?`)) attempt(() => tell(streamPath(name, "remove"), {})); });
    this.on("threshold", "input", () => { this.tried = this.triedValue(); this.paint(); });
    this.on("apply", "click", () => this.setThreshold(this.tried));
    this.on("reset", "click", () => this.setThreshold(null));
    this.on("draw", "click", () => this.draw(!this.drawing.isOn));
    this.on("draw-cancel", "click", () => this.draw(false));
    this.on("draw-undo", "click", () => this.drawing.undo());
    this.on("draw-save", "click", () => this.saveRegions());
    this.on("draw-clear", "click", () => attempt(async () => {
      await tell(streamPath(name, "regions"), {regions_of_interest: [], ignored: []}); this.draw(false); }));
  }
  on(kind, event, work) { this.part(kind).addEventListener(event, work); }
  get hasOverlay() { return this.part("overlay").checked; }
  triedValue() { return this.top() * this.part("threshold").valueAsNumber / STEPS; }
  top() { return 2 * Math.max(this.stream.threshold, this.stream.bundle_threshold); }
  setThreshold(value) { attempt(async () => { await tell(streamPath(this.name, "threshold"), {value}); this.tried = null; }); }
  draw(isOn) {
    this.node.classList.toggle("drawing", isOn);
    this.part("draw-tools").hidden = !isOn;
    if (isOn) this.drawing.begin(); else this.drawing.end();
  }
  saveRegions() {
    const drawn = this.drawing.drawn(), isInterest = this.part("draw-kind").value === "interest";
    if (!drawn.length) { showFault("Draw a region first: drag a rectangle, or tap at least three corners."); return; }
    const key = isInterest ? "regions_of_interest" : "ignored";
    attempt(async () => { await tell(streamPath(this.name, "regions"), {[key]: [...this.stream[key], ...drawn]}); this.draw(false); });
  }
  show(stream, scores) {
    const swapped = this.stream && this.stream.bundle_threshold !== stream.bundle_threshold;
    if (swapped) { this.scores = []; this.tried = null; }
    this.stream = stream;
    this.scores = [...this.scores, ...scores].slice(-this.room);
    const state = this.part("state");
    state.className = `chip state ${stream.state}`; state.textContent = stream.state;
    this.part("what").textContent = stream.what; this.part("what").title = stream.what;
    this.part("pause").textContent = stream.is_paused ? "Resume" : "Pause";
    this.showReason(); this.showCounts(); this.showDrift();
    if (stream.size) this.part("stage").style.aspectRatio = `${stream.size[0]} / ${stream.size[1]}`;
    this.drawing.hold(stream.regions_of_interest, stream.ignored);
    if (!this.url) this.verdict(stream.last);
    this.paint();
  }
  showReason() {
    const {stream} = this, reason = this.part("reason"), isDown = !["live", "ended"].includes(stream.source_state);
    reason.hidden = !(isDown && stream.reason);
    reason.textContent = stream.reason ? `${stream.reason} (for ${Math.round(stream.since_s)} s)` : "";
  }
  showCounts() {
    const {stream} = this, latency = stream.latency_ms.total || {}, dropped = total(stream.dropped);
    const causes = Object.entries(stream.dropped).map(([cause, count]) => `${count} ${cause}`).join(", ");
    const got = stream.got && stream.got.width ? `${stream.got.width}×${stream.got.height}${stream.got.rate_hz ? ` @ ${Math.round(stream.got.rate_hz)}` : ""}` : "–";
    const share = stream.verdicts ? ` (${(100 * stream.rejected / stream.verdicts).toFixed(1)} %)` : "";
    const facts = [["judged", stream.judged], ["rejected", `${stream.rejected}${share}`], ["dropped", dropped, causes, dropped > 0],
      ["latency p50 / p99", `${ms(latency.p50)} / ${ms(latency.p99)} ms`], ["reconnects", stream.reconnects], ["camera", got]];
    if (stream.skipped) facts.push(["damaged pictures", stream.skipped, "came damaged or could not be read: never judged", true]);
    this.part("counts").replaceChildren(...facts.map(([title, value, hint, isAlarm]) => {
      const cell = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd");
      term.textContent = title; text.textContent = value; text.dataset.fact = title;
      if (hint) cell.title = hint;
      if (isAlarm) text.className = "alarm";
      cell.append(term, text);
      return cell;
    }));
  }
  showDrift() {
    const drift = this.stream.drift, line = this.part("drift");
    line.hidden = !drift || drift.psi === null;
    if (line.hidden) return;
    const against = drift.reference === "bundle" ? "the bundle's" : "this stream's first";
    line.textContent = `${drift.is_drifted ? "Good parts have changed: " : ""}PSI ${drift.psi.toFixed(2)} (limit ${drift.psi_limit.toFixed(2)}), ` +
      `mean ${drift.mean_shift >= 0 ? "+" : ""}${drift.mean_shift.toFixed(2)} deviations, ${drift.scores} good scores against ${against}`;
    line.classList.toggle("alarm", drift.is_drifted);
  }
  verdict(last) {
    if (!last) return;
    this.node.classList.toggle("bad", last.is_anomalous); this.node.classList.toggle("good", !last.is_anomalous);
    const word = last.is_anomalous ? "REJECT" : "good";
    this.part("lamp").setAttribute("aria-label", word); this.part("word").textContent = word;
    this.part("score").textContent = `score / threshold ${(last.score / last.threshold).toFixed(2)}`;
    this.node.dataset.frame = last.id;
  }
  paint() {
    const {stream, scores} = this, slider = this.part("threshold"), tried = this.tried === null ? stream.threshold : this.tried;
    if (this.tried === null) slider.value = Math.round(STEPS * stream.threshold / this.top());
    this.part("apply").disabled = this.tried === null || !(this.tried > 0);
    this.part("threshold-value").textContent = `${(tried / stream.bundle_threshold).toFixed(3)} × bundle's`;
    this.part("threshold-value").title = `${tried.toPrecision(5)}; 1 × is the bundle's ${stream.bundle_threshold.toPrecision(5)}`;
    const above = countAbove(scores, tried), now = countAbove(scores, stream.threshold), n = scores.length;
    this.part("would").innerHTML = "";
    const count = document.createElement("b"); count.textContent = `${above} of the last ${n}`;
    this.part("would").append(this.tried === null ? "above the threshold: " : "would reject: ", count, this.tried === null ? "" : ` (now ${now})`);
    drawChart(this.part("chart"), scores, stream.threshold, this.tried, this.room);
  }
  picture(jpeg, verdict) {
    const url = URL.createObjectURL(jpeg), old = this.url;
    this.url = url;
    this.part("picture").src = url;
    this.part("waiting").hidden = true;
    if (old) URL.revokeObjectURL(old);
    this.verdict(verdict);
  }
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

// ---- rejects

function fillStreams(names) {
  const choice = by("gallery-stream"), key = names.join("\n");
  if (choice.dataset.names === key) return;
  choice.dataset.names = key;
  const chosen = choice.value;
  choice.replaceChildren(new Option("all streams", ""), ...names.map((name) => new Option(name, name)));
  choice.value = names.includes(chosen) ? chosen : "";
}

async function showGallery() {
  const stream = by("gallery-stream").value;
  const rejects = await ask(`api/rejects${stream ? `?stream=${encodeURIComponent(stream)}` : ""}`).catch(() => null);
  if (rejects === null) return;
  by("gallery-count").textContent = rejects.length ? `${rejects.length} newest` : "";
  const kept = new Map([...by("gallery").children].map((node) => [node.dataset && node.dataset.key, node]));
  by("gallery").replaceChildren(...(rejects.length ? rejects.map((reject) => kept.get(reject.key) || thumbnail(reject)) : ["none yet"]));
}

function thumbnail(reject) {
  const button = document.createElement("button"), picture = document.createElement("img"), text = document.createElement("span");
  button.type = "button"; button.dataset.key = reject.key;
  picture.loading = "lazy"; picture.alt = `reject ${reject.index} of ${reject.stream}`; picture.src = `api/rejects/${reject.key}/thumbnail`;
  text.textContent = `${reject.stream} ${new Date(reject.time).toLocaleTimeString()} · ${(reject.score / reject.threshold).toFixed(2)}`;
  button.append(picture, text);
  button.addEventListener("click", () => openReject(reject));
  return button;
}

function openReject(reject) {
  by("reject-title").textContent = `${reject.stream}, frame ${reject.index}, ${new Date(reject.time).toLocaleString()}: score / threshold ${(reject.score / reject.threshold).toFixed(2)}`;
  by("reject-picture").src = `api/rejects/${reject.key}/overlay`;
  for (const kind of ["overlay", "original"]) by(`reject-${kind}`).href = `api/rejects/${reject.key}/${kind}?download=1`;
  by("reject-dialog").showModal();
}

// ---- the head of the page

by("add").addEventListener("click", () => by("add-dialog").showModal());
by("add-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target, fields = Object.fromEntries([...new FormData(form)].filter(([, value]) => value !== "")), fault = form.querySelector(".dialog-fault");
  try { await tell("api/streams", fields); fault.textContent = ""; form.reset(); by("add-dialog").close(); look(); } catch (error) { fault.textContent = error.message; }
});
for (const button of document.querySelectorAll("dialog .cancel")) button.addEventListener("click", () => button.closest("dialog").close());
by("swap").addEventListener("click", () => { const bundle = by("bundles").value; if (confirm(`Judge by the bundle ${bundle} from now on?`)) attempt(() => tell("api/swap", {bundle})); });
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
  page.csrf = session.csrf;
  by("logout").hidden = !session.needs_token;
  connect();
  await look();
  setInterval(look, ASK_MS);
}
begin().catch((error) => showFault(error.message));
