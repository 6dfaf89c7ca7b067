"use strict";
// Below the cameras: newest events, sinks, and the gallery of rejects.

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

/** The newest events; what is told of a stream again and again stands once, with its count. */
function showEvents(events) {
  const key = events.length ? events[0].id : "";
  if (page.newestEvent === key) return;
  page.newestEvent = key;
  const found = new Map();
  for (const event of events) {
    const text = describe(event.facts), kind = `${event.stream} ${event.event} ${text.replace(/[0-9.]+/g, "")}`;
    if (found.has(kind)) found.get(kind).count += 1; else found.set(kind, {event, text, count: 1});
  }
  by("events").replaceChildren(...[...found.values()].map(({event, text, count}) => {
    const line = document.createElement("li"), time = document.createElement("time"), what = document.createElement("b"), more = document.createElement("span");
    time.textContent = clock(event.time);
    what.textContent = `${event.stream || t("line")} ${event.event}${count > 1 ? ` ×${count}` : ""}`;
    what.className = /lost|failed|dead/.test(event.event) ? "bad" : /stalled|warning|late/.test(event.event) ? "warn" : "";
    more.textContent = text;
    line.append(time, what, more);
    return line;
  }));
}

function describe(facts) {
  if (facts.reason) return facts.sink ? `${facts.sink}: ${facts.reason}` : facts.reason;
  const short = (value) => typeof value === "number" ? +value.toPrecision(4) : Array.isArray(value) ? value.length : value && value.bundle ? value.bundle : value;
  return Object.entries(facts).filter(([, value]) => value !== null && (typeof value !== "object" || Array.isArray(value) || value.bundle))
    .map(([name, value]) => { const [, word, unit] = name.match(/^(.*?)(?:_(s|ms|hz))?$/); return `${word.replaceAll("_", " ")} ${short(value)}${unit ? ` ${unit}` : ""}`; })
    .join(", ");
}

function showSinks(sinks) {
  by("sinks-panel").hidden = !sinks.length;
  by("sinks").replaceChildren(...sinks.flatMap((sink) => [row([
    sink.name, chip(sink.state), sink.delivered, sink.queued + sink.spooled, total(sink.dropped)], [2, 3, 4]), ...(sink.reason ? [why(sink.reason)] : [])]));
}

/** What differs from the settings that the line was written with. */
function showChanges(changes) {
  const rows = changes ? changes.rows : [];
  by("changes-panel").hidden = !rows.length && !(changes && changes.fault);
  by("changes-title").textContent = t("changes_differ", {file: changes && changes.file ? changes.file : t("command_line")});
  by("changes-fault").textContent = changes ? changes.fault || t("kept_in", {file: changes.state}) : "";
  by("changes-write").hidden = !changes || !changes.file;
  const texts = rows.map((row) => row.text);
  if (by("changes").dataset.texts === texts.join("\n")) return;
  by("changes").dataset.texts = texts.join("\n");
  by("changes").replaceChildren(...texts.map((text) => { const line = document.createElement("li"); line.textContent = text; return line; }));
}

/** Why the sink above takes nothing. */
function why(reason) {
  const line = row([reason]);
  line.className = "why"; line.firstChild.colSpan = 5;
  return line;
}

// ---- rejects

function fillStreams(names) {
  const choice = by("gallery-stream"), key = names.join("\n");
  if (choice.dataset.names === key) return;
  choice.dataset.names = key;
  const chosen = choice.value;
  choice.replaceChildren(new Option(t("all_streams"), ""), ...names.map((name) => new Option(name, name)));
  choice.value = names.includes(chosen) ? chosen : "";
}

async function showGallery() {
  const stream = by("gallery-stream").value;
  const rejects = await ask(`api/rejects${stream ? `?stream=${encodeURIComponent(stream)}` : ""}`).catch(() => null);
  if (rejects === null) return;
  by("gallery-count").textContent = rejects.length ? t("newest", {n: rejects.length}) : "";
  const kept = new Map([...by("gallery").children].map((node) => [node.dataset && node.dataset.key, node]));
  by("gallery").replaceChildren(...(rejects.length ? rejects.map((reject) => kept.get(reject.key) || thumbnail(reject)) : [t("none_yet")]));
  if (!stream) showLastReject(rejects[0]);
}

function thumbnail(reject) {
  const button = document.createElement("button"), picture = document.createElement("img"), text = document.createElement("span");
  button.type = "button"; button.dataset.key = reject.key;
  picture.loading = "lazy"; picture.alt = t("reject_alt", reject); picture.src = `api/rejects/${reject.key}/thumbnail`;
  text.textContent = `${reject.stream} ${clock(reject.time)} · ${decimal(reject.score / reject.threshold, 2)}`;
  button.append(picture, text);
  button.addEventListener("click", () => openReject(reject));
  return button;
}

function openReject(reject) {
  by("reject-title").textContent = t("reject_title", {...reject, time: moment(reject.time), n: decimal(reject.score / reject.threshold, 2)});
  by("reject-picture").src = `api/rejects/${reject.key}/overlay`;
  for (const kind of ["overlay", "original"]) by(`reject-${kind}`).href = `api/rejects/${reject.key}/${kind}?download=1`;
  const path = `api/rejects/${reject.key}/label`;
  by("reject-labels").replaceChildren();
  if (page.keepsHistory) tell(path, {}).catch(() => null).then((part) => by("reject-labels").replaceChildren(labelTools(path, true, part)));
  by("reject-dialog").showModal();
}
