"use strict";
// A stream's card: newest picture and verdict, scores against the threshold, counts, and what people may adjust.

const STEPS = 1000, PICTURE_MS = 1500; // without a picture for so long, the verdict comes with the numbers
const DOWN = ["connecting", "stalled", "lost", "failed"];
const ASKED_FOR = ["paused", "paced", "removed", "untriggered"]; // drops that are no loss

function total(counts) { return Object.values(counts).reduce((sum, count) => sum + count, 0); }
function lasted(seconds) { return seconds < 120 ? `${Math.round(seconds)} s` : seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`; }

class Card {
  constructor(name) {
    this.name = name; this.scores = []; this.tried = null; this.stream = null; this.url = null; this.pictured = -Infinity; this.room = 500;
    this.node = by("card").content.firstElementChild.cloneNode(true);
    this.node.dataset.stream = name;
    this.part = (kind) => this.node.querySelector(`.${kind}`);
    this.part("name").textContent = this.part("name").title = name;
    this.part("picture").alt = t("newest_picture", {name});
    this.drawing = new RegionDrawing(this.part("regions"), () => this.stream && this.stream.size);
    this.on("overlay", "change", () => sendViews());
    this.on("pause", "click", () => attempt(() => tell(streamPath(name, this.stream.is_paused ? "resume" : "pause"), {})));
    this.on("trigger", "click", () => attempt(() => tell(streamPath(name, "trigger"), {})));
    this.on("remove", "click", () => { if (confirm(t("ask_remove", {name}))) attempt(() => tell(streamPath(name, "remove"), {})); });
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
    this.part("adjust").textContent = t(isOpen ? "done" : "adjust");
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
    if (!drawn.length) { showFault(t("draw_first")); return; }
    const key = isInterest ? "regions_of_interest" : "ignored";
    attempt(async () => { await tell(streamPath(this.name, "regions"), {[key]: [...this.stream[key], ...drawn]}); this.draw(false); });
  }
  show(stream, scores) {
    if (this.stream && this.stream.scores_from !== stream.scores_from) this.tried = null; // another bundle, or other regions
    this.stream = stream;
    this.scores = [...this.scores, ...scores].filter(([number]) => number >= stream.scores_from).slice(-this.room);
    const state = this.part("state");
    state.className = `chip state ${stream.state}`; state.textContent = `state_${stream.state}` in texts.table ? t(`state_${stream.state}`) : stream.state;
    this.part("what").textContent = stream.what; this.part("what").title = stream.what;
    this.part("pause").textContent = t(stream.is_paused ? "resume" : "pause");
    this.part("trigger").hidden = !["any", "page"].includes(stream.triggered_by);
    this.part("mask-picture").hidden = !stream.has_mask_picture;
    this.showReason(); this.showCounts(); this.showDrift();
    if (stream.size) this.part("stage").style.aspectRatio = `${stream.size[0]} / ${stream.size[1]}`;
    this.drawing.hold(stream.regions_of_interest, stream.ignored);
    if (stream.is_paused) this.stale(t("PAUSED"));
    else if (DOWN.includes(stream.source_state)) this.stale(t(`DOWN_${stream.source_state}`, {time: lasted(stream.since_s)}));
    else if (stream.frozen_s !== null) this.stale(t("FROZEN", {time: lasted(stream.frozen_s)}));
    else if (performance.now() - this.pictured > PICTURE_MS || this.node.classList.contains("stale")) this.verdict(stream.last);
    this.paint();
  }
  /** Shows why there is no new verdict; the picture stays, and looks old. */
  stale(why) {
    this.node.classList.remove("good", "bad"); this.node.classList.add("stale");
    this.part("lamp").setAttribute("aria-label", why); this.part("word").textContent = why; this.part("score").textContent = "";
    showLamp(this.name, "stale", why, "");
  }
  end() { this.node.remove(); if (this.url) URL.revokeObjectURL(this.url); }
  showReason() {
    const {stream} = this, reason = this.part("reason");
    reason.hidden = !(DOWN.includes(stream.source_state) && stream.reason);
    reason.textContent = stream.reason || "";
  }
  showCounts() {
    const {stream} = this, latency = stream.latency_ms.total || {}, dropped = total(stream.dropped);
    const causes = Object.entries(stream.dropped).map(([cause, count]) => `${count} ${cause}`).join(", ");
    const lost = total(Object.fromEntries(Object.entries(stream.dropped).filter(([cause]) => !ASKED_FOR.includes(cause))));
    const got = stream.got && stream.got.width ? `${stream.got.width}×${stream.got.height}${stream.got.rate_hz ? ` @ ${Math.round(stream.got.rate_hz)}` : ""}` : "–";
    const share = (part, whole) => { const percent = 100 * part / whole; return whole ? `${decimal(percent, percent && percent < 10 ? 1 : 0)} %` : ""; };
    const facts = [["judged", stream.judged], ["rejected", stream.rejected, t("of_all_verdicts"), false, share(stream.rejected, stream.verdicts)],
      ["dropped", dropped, causes, lost > 0.01 * stream.captured, share(dropped, stream.captured)],
      ["p50_p99", times(latency.p50, latency.p99), t("latency_hint")], ["reconnects", stream.reconnects], ["camera", got]];
    if (stream.got?.automatic?.length) facts.push(["automatic", stream.got.automatic.join(", "), t("automatic_hint"), true]);
    if (stream.triggers) {
      const {triggers, outcomes} = stream.triggers, waited = stream.latency_ms.trigger || {}, failed = total(outcomes);
      facts.push(["triggers", triggers], ["without_verdict", failed, Object.entries(outcomes).map(([name, count]) => `${count} ${name}`).join(", "), failed > 0.01 * triggers],
        ["trigger_p50_p99", times(waited.p50, waited.p99), t("trigger_latency_hint"), false, `max ${ms(waited.max)}`]);
    }
    if (stream.low_scores) facts.push(["too_low", stream.low_scores, t("too_low_hint"), true]);
    if (stream.adapting) facts.push(["adapting", stream.adapting.state === "adapting" ? t("seen_of", {n: stream.adapting.seen, m: stream.adapting.wanted}) : stream.adapting.state,
      stream.adapting.text, stream.adapting.state === "refused"]);
    if (stream.skipped) facts.push(["damaged_pictures", stream.skipped, t("damaged_hint"), true]);
    this.part("counts").replaceChildren(...facts.map(([title, value, hint, isAlarm, share]) => {
      const cell = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd");
      term.textContent = title in texts.table ? t(title) : title; text.textContent = value; text.dataset.fact = title;
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
    const against = t(drift.reference === "bundle" ? "against_bundle" : "against_own");
    line.textContent = (drift.is_drifted ? t("changed_parts") : "") + t("drift_line", {psi: decimal(drift.psi, 2), limit: decimal(drift.psi_limit, 2),
      mean: `${drift.mean_shift >= 0 ? "+" : ""}${decimal(drift.mean_shift, 2)}`, n: drift.scores, against});
    line.classList.toggle("alarm", drift.is_drifted);
  }
  verdict(last) {
    if (!last) return;
    this.node.classList.remove("stale");
    this.node.classList.toggle("bad", last.is_anomalous); this.node.classList.toggle("good", !last.is_anomalous);
    const word = t(last.is_anomalous ? "REJECT" : "GOOD"), more = t("of_threshold", {n: decimal(last.score / last.threshold, 2)});
    this.part("lamp").setAttribute("aria-label", word); this.part("word").textContent = word;
    this.part("score").textContent = more;
    showLamp(this.name, last.is_anomalous ? "bad" : "good", word, more);
    this.node.dataset.frame = last.id;
  }
  paint() {
    const {stream, scores} = this, slider = this.part("threshold"), tried = this.tried === null ? stream.threshold : this.tried;
    if (this.tried === null) slider.value = Math.round(STEPS * stream.threshold / this.top());
    this.part("apply").disabled = this.tried === null || !(this.tried > 0);
    this.part("threshold-value").textContent = t("times_bundle", {n: decimal(tried / stream.bundle_threshold, 3)});
    this.part("threshold-value").title = `${tried.toPrecision(5)}; 1 × is the bundle's ${stream.bundle_threshold.toPrecision(5)}`;
    const {smoothing} = stream, n = scores.length, now = countRejects(scores, stream.threshold, smoothing);
    const count = document.createElement("b"), rule = smoothing ? t("by_rule", {n: smoothing[0], m: smoothing[1]}) : "";
    count.textContent = t("of_last", {n: this.tried === null ? now : countRejects(scores, tried, smoothing), m: n});
    this.part("would").replaceChildren(t(this.tried === null ? "rejects_now" : "would_reject"), count, this.tried === null ? rule : t("now_count", {n: now}) + rule);
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
