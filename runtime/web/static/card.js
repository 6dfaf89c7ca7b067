"use strict";
// A stream's card: newest picture and verdict, scores against the threshold, counts, and what people may adjust.

const STEPS = 1000, PICTURE_MS = 1500; // without a picture for so long, the verdict comes with the numbers
const DOWN = {connecting: "CONNECTING", stalled: "STALLED", lost: "LOST", failed: "FAILED"};
const ASKED_FOR = ["paused", "paced", "removed", "untriggered"]; // drops that are no loss

function total(counts) { return Object.values(counts).reduce((sum, count) => sum + count, 0); }
function ms(value) { return value === null || value === undefined ? "–" : `${value < 10 ? value.toFixed(1) : Math.round(value)}`; }
/** Two times in milliseconds with one unit. */
function times(first, second) {
  return second >= 1000 ? `${(first / 1000).toFixed(1)} / ${(second / 1000).toFixed(1)} s` : `${ms(first)} / ${ms(second)} ms`;
}
function lasted(seconds) { return seconds < 120 ? `${Math.round(seconds)} s` : seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`; }

class Card {
  constructor(name) {
    this.name = name; this.scores = []; this.tried = null; this.stream = null; this.url = null; this.pictured = -Infinity; this.room = 500;
    this.node = by("card").content.firstElementChild.cloneNode(true);
    this.node.dataset.stream = name;
    this.part = (kind) => this.node.querySelector(`.${kind}`);
    this.part("name").textContent = this.part("name").title = name;
    this.part("picture").alt = `newest picture of ${name}`;
    this.drawing = new RegionDrawing(this.part("regions"), () => this.stream && this.stream.size);
    this.on("overlay", "change", () => sendViews());
    this.on("pause", "click", () => attempt(() => tell(streamPath(name, this.stream.is_paused ? "resume" : "pause"), {})));
    this.on("remove", "click", () => { if (confirm(`Remove the stream ${name}?`)) attempt(() => tell(streamPath(name, "remove"), {})); });
    this.on("threshold", "input", () => { this.tried = this.triedValue(); this.paint(); });
    this.on("apply", "click", () => this.setThreshold(this.tried));
    this.on("reset", "click", () => this.setThreshold(null));
    this.on("adapt", "click", () => attempt(async () => {
      await tell(streamPath(name, "adapt"), {pictures: this.part("adapt-count").valueAsNumber}); this.tried = null; }));
    this.on("adjust", "click", () => this.unfold(this.part("fold").hidden));
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
  unfold(isOpen) {
    this.part("fold").hidden = !isOpen; this.part("adjust").setAttribute("aria-expanded", isOpen);
    this.part("adjust").textContent = isOpen ? "Done" : "Adjust";
    if (!isOpen) { this.tried = null; this.draw(false); }
    if (this.stream) this.paint();
  }
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
    if (this.stream && this.stream.scores_from !== stream.scores_from) this.tried = null; // another bundle, or other regions
    this.stream = stream;
    this.scores = [...this.scores, ...scores].filter(([number]) => number >= stream.scores_from).slice(-this.room);
    const state = this.part("state");
    state.className = `chip state ${stream.state}`; state.textContent = stream.state;
    this.part("what").textContent = stream.what; this.part("what").title = stream.what;
    this.part("pause").textContent = stream.is_paused ? "Resume" : "Pause";
    this.part("mask-picture").hidden = !stream.has_mask_picture;
    this.showReason(); this.showCounts(); this.showDrift();
    if (stream.size) this.part("stage").style.aspectRatio = `${stream.size[0]} / ${stream.size[1]}`;
    this.drawing.hold(stream.regions_of_interest, stream.ignored);
    if (stream.is_paused) this.stale("PAUSED");
    else if (DOWN[stream.source_state]) this.stale(`${DOWN[stream.source_state]} for ${lasted(stream.since_s)}`);
    else if (stream.frozen_s !== null) this.stale(`PICTURE FROZEN for ${lasted(stream.frozen_s)}`);
    else if (performance.now() - this.pictured > PICTURE_MS || this.node.classList.contains("stale")) this.verdict(stream.last);
    this.paint();
  }
  /** Shows why there is no new verdict; the picture stays, and looks old. */
  stale(why) {
    this.node.classList.remove("good", "bad"); this.node.classList.add("stale");
    this.part("lamp").setAttribute("aria-label", why); this.part("word").textContent = why; this.part("score").textContent = "";
  }
  end() { this.node.remove(); if (this.url) URL.revokeObjectURL(this.url); }
  showReason() {
    const {stream} = this, reason = this.part("reason");
    reason.hidden = !(DOWN[stream.source_state] && stream.reason);
    reason.textContent = stream.reason || "";
  }
  showCounts() {
    const {stream} = this, latency = stream.latency_ms.total || {}, dropped = total(stream.dropped);
    const causes = Object.entries(stream.dropped).map(([cause, count]) => `${count} ${cause}`).join(", ");
    const lost = total(Object.fromEntries(Object.entries(stream.dropped).filter(([cause]) => !ASKED_FOR.includes(cause))));
    const got = stream.got && stream.got.width ? `${stream.got.width}×${stream.got.height}${stream.got.rate_hz ? ` @ ${Math.round(stream.got.rate_hz)}` : ""}` : "–";
    const share = (part, whole) => { const percent = 100 * part / whole; return whole ? `${percent.toFixed(percent && percent < 10 ? 1 : 0)} %` : ""; };
    const facts = [["judged", stream.judged], ["rejected", stream.rejected, "of all verdicts", false, share(stream.rejected, stream.verdicts)],
      ["dropped", dropped, causes, lost > 0.01 * stream.captured, share(dropped, stream.captured)],
      ["p50 / p99", times(latency.p50, latency.p99), "latency from capture to verdict"], ["reconnects", stream.reconnects], ["camera", got]];
    if (stream.low_scores) facts.push(["too low", stream.low_scores, "scores lower than any good part's: look at the picture", true]);
    if (stream.adapting) facts.push(["adapting", stream.adapting.state === "adapting" ? `${stream.adapting.seen} of ${stream.adapting.wanted}` : stream.adapting.state,
      stream.adapting.text, stream.adapting.state === "refused"]);
    if (stream.skipped) facts.push(["damaged pictures", stream.skipped, "came damaged or could not be read: never judged", true]);
    this.part("counts").replaceChildren(...facts.map(([title, value, hint, isAlarm, share]) => {
      const cell = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd");
      term.textContent = title; text.textContent = value; text.dataset.fact = title;
      if (hint) cell.title = hint;
      if (isAlarm) text.className = "alarm";
      if (share) { const small = document.createElement("small"); small.textContent = ` ${share}`; text.append(small); }
      cell.append(term, text);
      return cell;
    }));
  }
  showDrift() {
    const drift = this.stream.drift, line = this.part("drift");
    line.hidden = !drift || drift.psi === null || !(drift.is_drifted || !this.part("fold").hidden);
    if (line.hidden) return;
    const against = drift.reference === "bundle" ? "the bundle's" : "this stream's first";
    line.textContent = `${drift.is_drifted ? "Good parts have changed: " : ""}PSI ${drift.psi.toFixed(2)} (limit ${drift.psi_limit.toFixed(2)}), ` +
      `mean ${drift.mean_shift >= 0 ? "+" : ""}${drift.mean_shift.toFixed(2)} deviations, ${drift.scores} good scores against ${against}`;
    line.classList.toggle("alarm", drift.is_drifted);
  }
  verdict(last) {
    if (!last) return;
    this.node.classList.remove("stale");
    this.node.classList.toggle("bad", last.is_anomalous); this.node.classList.toggle("good", !last.is_anomalous);
    const word = last.is_anomalous ? "REJECT" : "GOOD";
    this.part("lamp").setAttribute("aria-label", word); this.part("word").textContent = word;
    this.part("score").textContent = `${(last.score / last.threshold).toFixed(2)} of the threshold`;
    this.node.dataset.frame = last.id;
  }
  paint() {
    const {stream, scores} = this, slider = this.part("threshold"), tried = this.tried === null ? stream.threshold : this.tried;
    if (this.tried === null) slider.value = Math.round(STEPS * stream.threshold / this.top());
    this.part("apply").disabled = this.tried === null || !(this.tried > 0);
    this.part("threshold-value").textContent = `${(tried / stream.bundle_threshold).toFixed(3)} × the bundle's threshold`;
    this.part("threshold-value").title = `${tried.toPrecision(5)}; 1 × is the bundle's ${stream.bundle_threshold.toPrecision(5)}`;
    const {smoothing} = stream, n = scores.length, now = countRejects(scores, stream.threshold, smoothing);
    const count = document.createElement("b"), rule = smoothing ? `, by ${smoothing[0]} of ${smoothing[1]} frames` : "";
    count.textContent = `${this.tried === null ? now : countRejects(scores, tried, smoothing)} of the last ${n}`;
    this.part("would").replaceChildren(this.tried === null ? "rejects: " : "would reject: ", count, this.tried === null ? rule : ` (now ${now})${rule}`);
    drawChart(this.part("chart"), scores, stream.threshold, this.tried, this.room);
  }
  picture(jpeg, verdict) {
    const url = URL.createObjectURL(jpeg), old = this.url;
    this.url = url;
    this.part("picture").src = url;
    this.part("waiting").hidden = true;
    if (old) URL.revokeObjectURL(old);
    this.pictured = performance.now();
    if (!this.node.classList.contains("stale")) this.verdict(verdict);
  }
}
