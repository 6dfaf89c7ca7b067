"use strict";
// The page for teaching: good parts are collected until they are enough, a bundle is trained, compared and swapped in.

const LOOK_MS = 1000;
let newest = null, toldFault = null;

/** Whether the line did it. */
async function act(action, fields = {}) {
  try { showFault(""); show(await tell(`api/teach/${action}`, fields)); return true; } catch (error) { showFault(error.message); return false; }
}

async function look() {
  try { show(await ask("api/teach")); } catch (error) { showFault(error.message); }
}

function show(state) {
  newest = state;
  const {stage, compared} = state, has = state.parts > 0, isTrained = ["trained", "comparing", "compared"].includes(stage);
  by("start").hidden = stage === "collecting"; by("stop").hidden = stage !== "collecting";
  by("start").disabled = ["training", "comparing"].includes(stage) || !by("stream").value;
  by("stream").disabled = !["idle", "collected"].includes(stage);
  if (state.stream && stage !== "idle") by("stream").value = state.stream;
  by("discard").hidden = !has || stage === "training";
  by("count").textContent = t("teach_count", {n: state.parts});
  by("enough").textContent = [state.is_enough ? t("teach_enough") : t("teach_more", {n: state.fewest}), state.same ? t("teach_same", {n: state.same}) : ""].filter(Boolean).join("; ");
  by("enough").className = state.is_enough ? "ready" : "soft";
  paintCurve(state);
  shots("pictures", state.pictures, (number) => {
    const button = element("button"), picture = element("img");
    button.type = "button"; button.title = t("teach_remove", {n: number});
    picture.loading = "lazy"; picture.alt = button.title; picture.src = `api/teach/pictures/${number}`;
    button.append(picture);
    button.addEventListener("click", () => { if (confirm(t("ask_teach_remove"))) act("remove", {number}); });
    return button;
  });
  by("train").hidden = stage === "training"; by("cancel").hidden = stage !== "training";
  by("train").disabled = state.parts < state.fewest || !state.can_train || stage === "comparing" || stage === "idle";
  by("progress").textContent = !state.can_train ? t("teach_no_torch") : stage === "training" ? t("teach_training", {time: `${state.took_s} s`, line: state.progress || "…"}) : isTrained ? t("teach_trained") : "";
  by("compare").disabled = !["trained", "compared"].includes(stage); by("halt").hidden = stage !== "comparing";
  by("seen").textContent = compared ? t("teach_seen", {n: compared.seen, m: compared.wanted}) : "";
  by("compared").replaceChildren(...(compared ? figuresOf(compared) : []).map(([title, value]) => {
    const cell = element("div");
    cell.append(element("dt", title), element("dd", value));
    return cell;
  }));
  shots("differences", compared ? compared.pictures : [], (number) => {
    const picture = element("img");
    picture.alt = t("teach_differ"); picture.src = `api/teach/differences/${number}`;
    return picture;
  });
  by("swap").disabled = !isTrained;
  if (state.fault && state.fault !== toldFault) showFault(state.fault); // once: somebody may have put it away
  toldFault = state.fault;
}

function figuresOf(compared) {
  const counts = compared.is_first ? [["teach_new_rejects", compared.new_rejects]] : [["teach_both_good", compared.both_good], ["teach_both_reject", compared.both_reject],
    ["teach_only_old", compared.only_old], ["teach_only_new", compared.only_new]];
  const scores = compared.median === null ? [] : [["teach_median", `${decimal(compared.median, 2)} / ${decimal(compared.largest, 2)}`]];
  return [...counts, ...scores].map(([key, value]) => [t(key), value]);
}

/** Pictures by their numbers; one that is there stays. */
function shots(id, numbers, make) {
  const known = new Map([...by(id).children].map((node) => [node.dataset.number, node]));
  by(id).replaceChildren(...numbers.map((number) => {
    const node = known.get(String(number)) || make(number);
    node.dataset.number = number;
    return node;
  }));
}

function paintCurve({curve, fewest}) {
  const node = by("curve"), ratio = window.devicePixelRatio || 1, width = Math.max(1, Math.round(node.clientWidth * ratio)), height = Math.max(1, Math.round(node.clientHeight * ratio));
  node.width = width; node.height = height;
  const pen = node.getContext("2d"), tone = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  if (!curve.length) return;
  const room = Math.max(curve.length, fewest), top = 1.05 * [...curve].sort((a, b) => a - b)[Math.floor(0.98 * (curve.length - 1))] || 1;
  const column = (place) => width * (place + 0.5) / room, row = (value) => height - 6 * ratio - (height - 12 * ratio) * Math.min(value / top, 1);
  pen.fillStyle = tone("--soft");
  curve.forEach((value, place) => pen.fillRect(column(place) - 1.5 * ratio, row(value) - 1.5 * ratio, 3 * ratio, 3 * ratio));
  pen.strokeStyle = tone("--main"); pen.lineWidth = 2.5 * ratio; pen.beginPath();
  curve.forEach((_, place) => { // the mean of the last 15
    const last = curve.slice(Math.max(0, place - 14), place + 1), mean = last.reduce((sum, value) => sum + value, 0) / last.length;
    if (place) pen.lineTo(column(place), row(mean)); else pen.moveTo(column(place), row(mean));
  });
  pen.stroke();
}

by("start").addEventListener("click", () => act("start", {stream: by("stream").value, every_s: by("every").valueAsNumber}));
by("stop").addEventListener("click", () => act("stop"));
by("halt").addEventListener("click", () => act("stop"));
by("train").addEventListener("click", () => act("train"));
by("cancel").addEventListener("click", () => act("cancel"));
by("compare").addEventListener("click", () => act("compare", {parts: by("wanted").valueAsNumber}));
by("discard").addEventListener("click", () => { if (confirm(t("ask_teach_discard"))) act("discard"); });
by("swap").addEventListener("click", async () => { if (confirm(t("ask_teach_swap")) && await act("swap")) by("swapped").hidden = false; });
addEventListener("resize", () => { if (newest) paintCurve(newest); });

async function begin() {
  const session = await openSession();
  document.title = `nnet-edge: ${t("teach")}`;
  if (!session.can_teach) { showFault(t("teach_no")); return; }
  const state = await ask("api/state"), teaching = await ask("api/teach");
  by("stream").replaceChildren(...state.streams.map((stream) => new Option(stream.name, stream.name)));
  if (!state.streams.length) by("told").textContent = t("teach_no_camera");
  by("steps").hidden = false;
  show(teaching);
  setInterval(() => { if (!document.hidden) look(); }, LOOK_MS);
}
begin().catch((error) => showFault(error.message));
