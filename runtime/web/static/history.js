"use strict";
// The page of the shift: sums of the line's history, charts, and the parts with what people said of them.

const LOOK_MS = 5000, TONES = ["--main", "--bad", "--warn", "--good", "--soft", "--ink"];
const shown = {only: "rejects", limit: 24, cameras: []};

function query(more = {}) {
  const asked = {since: by("since").value, stream: by("stream").value, ...more};
  return new URLSearchParams(Object.entries(asked).filter(([, value]) => value)).toString();
}
function tone(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
function toneOf(camera) { return tone(TONES[shown.cameras.indexOf(camera) % TONES.length]); }

async function look() {
  try {
    const found = await ask(`api/history?${query()}`);
    show(found);
    await showParts();
    showFault("");
  } catch (error) { showFault(error.message); }
}

function show(found) {
  shown.cameras = found.cameras.map((one) => one.camera);
  by("range").textContent = t("from_to", {since: moment(found.since), until: moment(found.until)});
  by("report").href = `api/history/report?${query({language: texts.language})}`;
  const labelled = Object.entries(found.labels.held).map(([label, count]) => `${count} ${t(label)}`).join(", ");
  const latency = found.latency ? times(found.latency.mean_ms, found.latency.max_ms) : "–";
  const figures = [["parts", found.verdicts.toLocaleString(texts.language)], ["rejected", found.rejects.toLocaleString(texts.language)], ["yield", percent(found.yield)],
    ["latency", latency, t("mean_max")], ["labelled_counts", Object.values(found.labels.held).reduce((sum, count) => sum + count, 0), labelled]];
  const unanswered = Object.entries(found.outcomes);
  if (unanswered.length) figures.push(["unanswered", unanswered.reduce((sum, [, count]) => sum + count, 0), unanswered.map(([name, count]) => `${count} ${name}`).join(", ")]);
  by("totals").replaceChildren(...figures.map(([key, value, more]) => {
    const cell = element("div"), text = element("dd", value);
    cell.append(element("dt", t(key)), text);
    if (more) cell.append(element("small", more));
    return cell;
  }));
  by("legend").replaceChildren(...found.cameras.map((one) => {
    const line = element("span"), dot = document.createElementNS("http://www.w3.org/2000/svg", "svg"), disc = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    for (const [name, value] of [["cx", 6], ["cy", 6], ["r", 6], ["fill", toneOf(one.camera)]]) disc.setAttribute(name, value);
    dot.setAttribute("aria-hidden", "true"); dot.append(disc);
    line.append(dot, `${one.camera}: ${one.rejects.toLocaleString(texts.language)} / ${one.verdicts.toLocaleString(texts.language)}, ${percent(one.yield)}`);
    return line;
  }));
  shown.found = found;
  paint();
  showPlaces(found.places);
  list("outages", found.outages.slice(0, 12).map((one) => `${one.stream}: ${one.what}, ${moment(one.since)} – ${one.until ? clock(one.until) : t("until_now")}, ${Math.round(one.took_s)} s${one.reason ? ` (${one.reason})` : ""}`), "outages_none");
  list("drift", found.drift.slice(0, 12).map((one) => `${one.stream}, ${moment(one.time)}: PSI ${decimal(Number(one.facts.psi), 2)}`), "drift_none");
}

function list(id, lines, none) { by(id).replaceChildren(...(lines.length ? lines : [t(none)]).map((line) => element("li", line))); }

/** A canvas of its element's size, cleared; gives pen, width, height and pixels of a CSS pixel. */
function canvas(id) {
  const node = by(id), ratio = window.devicePixelRatio || 1, width = Math.max(1, Math.round(node.clientWidth * ratio)), height = Math.max(1, Math.round(node.clientHeight * ratio));
  node.width = width; node.height = height;
  const pen = node.getContext("2d");
  pen.font = `${12 * ratio}px system-ui, sans-serif`; pen.fillStyle = tone("--soft"); pen.strokeStyle = tone("--line"); pen.lineWidth = ratio;
  return {node, pen, width, height, ratio};
}

function paint() {
  const {found} = shown;
  if (!found) return;
  paintHours(found); paintScores(found);
}

function paintHours(found) {
  const {node, pen, width, height, ratio} = canvas("hours"), hour = 3600000, begin = Math.floor(new Date(found.since) / hour) * hour;
  const count = Math.max(1, Math.ceil((new Date(found.until) - begin) / hour)), sums = new Map();
  for (const one of found.hours) sums.set(one.time, (sums.get(one.time) || 0) + one.rejects);
  const top = Math.max(1, ...sums.values()), left = 34 * ratio, foot = 20 * ratio, step = (width - left) / count, tall = height - foot - 12 * ratio;
  pen.textAlign = "right"; pen.fillText(top, left - 6 * ratio, 16 * ratio); pen.fillText("0", left - 6 * ratio, height - foot);
  pen.beginPath(); pen.moveTo(left, height - foot); pen.lineTo(width, height - foot); pen.stroke();
  const stacked = new Map();
  for (const one of found.hours) {
    const place = (new Date(one.time) - begin) / hour, below = stacked.get(one.time) || 0, tallness = tall * one.rejects / top;
    pen.fillStyle = toneOf(one.camera);
    pen.fillRect(left + step * (place + 0.12), height - foot - below - tallness, step * 0.76, tallness);
    stacked.set(one.time, below + tallness);
  }
  marks(pen, begin, hour, count, left, step, height, ratio);
  node.setAttribute("aria-label", `${t("rejects_per_hour")}: ${found.hours.filter((one) => one.rejects).map((one) => `${clock(one.time).slice(0, 5)} ${one.camera} ${one.rejects}`).join(", ") || 0}`);
}

/** The hours (or days) below a chart. */
function marks(pen, begin, hour, count, left, step, height, ratio) {
  const every = Math.max(1, Math.ceil(46 * ratio / step));
  pen.fillStyle = tone("--soft"); pen.textAlign = "left";
  for (let place = 0; place < count; place += every) {
    const time = new Date(begin + place * hour);
    pen.fillText(count > 48 ? time.toLocaleDateString(texts.language, {day: "numeric", month: "numeric"}) : clock(time).slice(0, 5), left + step * place, height - 5 * ratio);
  }
}

function paintScores(found) {
  const {pen, width, height, ratio} = canvas("scores"), left = 34 * ratio, foot = 20 * ratio, begin = new Date(found.since) - 0, end = new Date(found.until) - 0, hour = 3600000;
  const top = Math.min(4, Math.max(1.3, ...found.scores.map((one) => one.max))), column = (time) => left + (width - left) * (new Date(time) - begin) / Math.max(1, end - begin);
  const row = (score) => height - foot - (height - foot - 8 * ratio) * Math.min(score / top, 1);
  for (const one of found.scores) {
    pen.fillStyle = one.max > 1 ? tone("--bad") : toneOf(one.camera);
    pen.globalAlpha = 0.7;
    pen.fillRect(column(one.time) - 1.5 * ratio, row(one.max) - 1.5 * ratio, 3 * ratio, 3 * ratio);
  }
  pen.globalAlpha = 1; pen.lineWidth = 2 * ratio;
  for (const camera of shown.cameras) {
    pen.strokeStyle = toneOf(camera); pen.beginPath();
    let isDown = false;
    for (const one of found.scores.filter((one) => one.camera === camera)) {
      if (one.mean === null) { isDown = false; continue; }
      if (isDown) pen.lineTo(column(one.time), row(one.mean)); else pen.moveTo(column(one.time), row(one.mean));
      isDown = true;
    }
    pen.stroke();
  }
  pen.strokeStyle = tone("--ink"); pen.lineWidth = 1.5 * ratio;
  pen.beginPath(); pen.moveTo(left, row(1)); pen.lineTo(width, row(1)); pen.stroke();
  pen.fillStyle = tone("--soft"); pen.textAlign = "right"; pen.fillText("1", left - 6 * ratio, row(1) + 4 * ratio); pen.fillText("0", left - 6 * ratio, height - foot);
  const first = Math.ceil(begin / hour) * hour, count = Math.max(1, Math.ceil((end - first) / hour));
  marks(pen, first, hour, count, column(first), (width - column(first)) * hour / Math.max(hour, end - first), height, ratio);
}

// ---- where on the part

async function showPlaces(places) {
  const key = JSON.stringify(places);
  if (shown.places === key) return;
  shown.places = key;
  const rejects = await ask(`api/history/parts?${query({only: "rejects"})}`).catch(() => []);
  by("places").replaceChildren(...(places.length ? places.map((place) => placeOf(place, rejects)) : [element("p", t("where_none"), "soft")]));
}

function placeOf(place, rejects) {
  const box = element("figure"), stage = element("div", "", "place"), map = element("canvas"), name = element("figcaption", place.camera);
  box.className = "place-box"; map.width = map.height = 16 * place.grid;
  if (place.width && place.height) stage.style.aspectRatio = `${place.width} / ${place.height}`;
  const like = rejects.find((one) => one.pictures.includes("original") && (one.crop ? `${one.stream}/${one.crop}` : one.stream) === place.camera);
  if (like) { const picture = element("img"); picture.alt = ""; picture.src = `api/history/parts/${like.row}/original`; stage.append(picture); }
  const pen = map.getContext("2d"), most = Math.max(...place.cells.map((cell) => cell.regions));
  pen.fillStyle = "#ff3b30";
  for (const cell of place.cells) { pen.globalAlpha = 0.2 + 0.65 * cell.regions / most; pen.fillRect(16 * cell.column, 16 * cell.row, 16, 16); }
  stage.append(map);
  const lines = element("ul", "", "plain");
  for (const cell of place.cells.slice(0, 4)) lines.append(element("li", t("where_line", {n: cell.regions, x: cell.x, y: cell.y})));
  box.append(name, stage, lines);
  return box;
}

// ---- parts

async function showParts() {
  const parts = await ask(`api/history/parts?${query({only: shown.only, limit: shown.limit})}`);
  const known = new Map([...by("parts").children].map((node) => [node.dataset.part, node])); // one that is the same keeps its picture
  by("part-count").textContent = parts.length ? t("newest", {n: parts.length}) : "";
  by("parts").replaceChildren(...(parts.length ? parts.map((part) => known.get(JSON.stringify(part)) || partOf(part)) : [element("p", t("parts_none"), "soft")]));
  by("more").hidden = parts.length < shown.limit;
}

function partOf(part) {
  const isBad = part.verdict === "anomalous", box = element("article", "", `part ${isBad ? "bad" : "good"}`), button = element("button", "", "last-picture");
  button.type = "button"; box.dataset.row = part.row; box.dataset.part = JSON.stringify(part);
  if (part.pictures.length) {
    const picture = element("img");
    picture.loading = "lazy"; picture.src = `api/history/parts/${part.row}/thumbnail`; picture.alt = `${t(isBad ? "REJECT" : "GOOD")} ${part.stream} ${part.index}`;
    button.append(picture);
    button.addEventListener("click", () => openPart(part));
  } else { button.textContent = t("no_picture"); button.disabled = true; }
  const where = [part.crop ? `${part.stream}/${part.crop}` : part.stream, part.recipe, part.trigger === null ? null : `#${part.trigger}`].filter(Boolean).join(" · ");
  box.append(button, element("p", `${where} · ${moment(part.time)}`), element("p", t("of_threshold", {n: decimal(part.relative_score, 2)}), "soft"),
    labelTools(`api/history/parts/${part.row}/label`, isBad, part));
  return box;
}

function openPart(part) {
  const kind = ["overlay", "accepted", "original"].find((kind) => part.pictures.includes(kind));
  by("reject-title").textContent = t("reject_title", {stream: part.stream, index: part.index, time: moment(part.time), n: decimal(part.relative_score, 2)});
  by("reject-picture").src = `api/history/parts/${part.row}/${kind}`;
  by("part-files").replaceChildren(...part.pictures.map((name) => {
    const link = element("a", {overlay: t("overlay_jpeg"), original: t("original_png"), accepted: t("original_png")}[name] || "map (PNG)", "button");
    link.href = `api/history/parts/${part.row}/${name}?download=1`; link.download = "";
    return link;
  }));
  by("reject-dialog").showModal();
}

for (const button of by("tabs").children) button.addEventListener("click", () => {
  shown.only = button.dataset.only; shown.limit = 24;
  for (const other of by("tabs").children) other.setAttribute("aria-pressed", other === button);
  look();
});
for (const id of ["since", "stream"]) by(id).addEventListener("change", look);
by("more").addEventListener("click", () => { shown.limit *= 2; look(); });
by("theme").addEventListener("click", paint);
addEventListener("resize", paint);

async function begin() {
  await openSession();
  document.title = `nnet-edge: ${t("history")}`;
  showWho();
  if (!page.keepsHistory) { showFault(t("no_history")); return; }
  const state = await ask("api/state");
  for (const stream of state.streams) by("stream").append(new Option(stream.name, stream.name));
  await look();
  setInterval(() => { if (!document.hidden) look(); }, LOOK_MS);
}
begin().catch((error) => showFault(error.message));
