"use strict";
// The board: lamps to be read at arm's length, the last reject, the counts of the shift, a sound at each reject.

const board = {tiles: new Map(), rejected: null, sound: null, reject: undefined};

/** How many letters the longest word has, a Chinese one as one and a half: the lamp's word is to fit its tile unbroken. */
function widestWord(text) {
  return Math.max(2, ...text.split(/\s+/).map((word) => [...word].reduce((sum, letter) => sum + (letter > "\u2e7f" ? 1.5 : 1), 0)));
}

/** The verdict of a stream, "good", "bad" or "stale", as its lamp shows it. */
function showLamp(name, kind, word, more) {
  let tile = board.tiles.get(name);
  if (!tile) {
    tile = by("lamp").content.firstElementChild.cloneNode(true);
    tile.querySelector(".lamp-name").textContent = name;
    board.tiles.set(name, tile);
    by("lamps").append(tile);
  }
  const shown = `${kind} ${word}`;
  if (tile.dataset.shown !== shown) {
    tile.dataset.shown = shown;
    tile.className = `lamp-tile ${kind}`;
    tile.querySelector(".lamp-word").textContent = word;
    tile.style.setProperty("--letters", widestWord(word));
  }
  tile.querySelector(".lamp-more").textContent = more;
}

function showBoard(state) {
  const names = state.streams.map((stream) => stream.name), {shift} = state;
  for (const [name, tile] of board.tiles) if (!names.includes(name)) { tile.remove(); board.tiles.delete(name); }
  by("board").hidden = !names.length;
  by("lamps").classList.toggle("single", names.length === 1);
  const rejected = state.streams.reduce((sum, stream) => sum + stream.rejected, 0), judged = state.streams.reduce((sum, stream) => sum + stream.verdicts, 0);
  if (board.rejected !== null && rejected > board.rejected) beep();
  board.rejected = rejected;
  const isKept = shift && !shift.fault, counts = isKept ? shift : {verdicts: judged, rejects: rejected, yield: judged ? 1 - rejected / judged : null};
  by("shift-title").textContent = isKept ? t("this_shift", {time: clock(shift.since).slice(0, 5)}) : t("since_start");
  by("shift-parts").textContent = counts.verdicts.toLocaleString(texts.language);
  by("shift-rejects").textContent = counts.rejects.toLocaleString(texts.language);
  by("shift-yield").textContent = percent(counts.yield);
  by("shift-fault").textContent = shift && shift.fault ? shift.fault : "";
}

/** The newest reject of the gallery, with what one may say of it. */
function showLastReject(reject) {
  if (board.reject === (reject ? reject.key : null)) return;
  board.reject = reject ? reject.key : null;
  const box = by("last-reject");
  if (!reject) { box.replaceChildren(element("p", t("no_reject"), "soft")); return; }
  const button = element("button", "", "last-picture"), picture = element("img");
  button.type = "button";
  picture.src = `api/rejects/${reject.key}/overlay`; picture.alt = t("reject_alt", {index: reject.index, stream: reject.stream});
  button.append(picture);
  button.addEventListener("click", () => openReject(reject));
  const line = element("p", `${reject.stream} · ${clock(reject.time)} · ${t("of_threshold", {n: decimal(reject.score / reject.threshold, 2)})}`, "soft");
  box.replaceChildren(button, line, ...(page.keepsHistory ? [labelTools(`api/rejects/${reject.key}/label`, true)] : []));
}

// ---- sound, off until somebody wants it

function beep() {
  const {sound} = board;
  if (!sound || sound.state !== "running") return;
  for (const [hertz, after] of [[880, 0], [620, 0.16]]) {
    const tone = sound.createOscillator(), loud = sound.createGain(), begin = sound.currentTime + after;
    tone.frequency.value = hertz; tone.type = "square";
    loud.gain.setValueAtTime(0.12, begin); loud.gain.exponentialRampToValueAtTime(0.001, begin + 0.15);
    tone.connect(loud).connect(sound.destination); tone.start(begin); tone.stop(begin + 0.16);
  }
}

function setSound(isOn) {
  if (isOn && !board.sound) board.sound = new AudioContext();
  if (board.sound) { if (isOn) board.sound.resume(); else board.sound.suspend(); }
  by("sound").setAttribute("aria-pressed", isOn);
  localStorage.setItem("sound", isOn ? "on" : "off");
}

by("sound").addEventListener("click", () => { const isOn = by("sound").getAttribute("aria-pressed") !== "true"; setSound(isOn); beep(); });
// a browser plays nothing before somebody has touched the page
if (localStorage.getItem("sound") === "on") addEventListener("pointerdown", () => setSound(localStorage.getItem("sound") === "on"), {once: true});
