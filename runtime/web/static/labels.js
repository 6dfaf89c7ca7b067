"use strict";
// What people say of a part: who says it (typed once), the buttons, and the labels that a part has.

const WITH_DEFECT = ["true_defect", "missed"];

/** What the form of a dialog holds when it is sent, null when it is cancelled. */
function answerOf(dialog) {
  return new Promise((resolve) => {
    const form = dialog.querySelector("form"), field = form.querySelector("input");
    const end = (value) => { form.onsubmit = dialog.onclose = null; if (dialog.open) dialog.close(); resolve(value); };
    form.onsubmit = (event) => { event.preventDefault(); end(field.value.trim()); };
    dialog.onclose = () => end(null);
    dialog.showModal(); field.select();
  });
}

async function askWho() {
  by("who-dialog").querySelector("input").value = localStorage.getItem("who") || "";
  const name = await answerOf(by("who-dialog"));
  if (name) { localStorage.setItem("who", name); showWho(); }
  return name;
}

function showWho() {
  const name = localStorage.getItem("who");
  by("who").hidden = !page.keepsHistory;
  by("who").textContent = name || t("who_none");
}

/** The kind of a defect, "" for none, null when it is cancelled; kinds that were given before are offered. */
function askDefect() {
  const dialog = by("defect-dialog"), known = JSON.parse(localStorage.getItem("defects") || "[]");
  dialog.querySelector("input").value = "";
  dialog.querySelector(".known").replaceChildren(...known.map((kind) => {
    const button = element("button", kind);
    button.type = "button";
    button.addEventListener("click", () => { dialog.querySelector("input").value = kind; dialog.querySelector("form").requestSubmit(); });
    return button;
  }));
  return answerOf(dialog);
}

/** Keeps a label of the part at `path`; gives the part with all of its labels, null when it was cancelled. */
async function labelPart(path, label) {
  const who = localStorage.getItem("who") || await askWho();
  if (!who) return null;
  const defect = WITH_DEFECT.includes(label) ? await askDefect() : "";
  if (defect === null) return null;
  if (defect) localStorage.setItem("defects", JSON.stringify([...new Set([defect, ...JSON.parse(localStorage.getItem("defects") || "[]")])].slice(0, 12)));
  return tell(path, {who, label, ...(defect ? {defect} : {})});
}

/** Buttons for a part, reject or not, and the labels that it has; `path` takes a label. */
function labelTools(path, isReject, part = null) {
  const box = element("div", "", "labels"), tools = element("div", "", "tools"), list = element("div", "", "label-list");
  box.setAttribute("role", "group"); box.setAttribute("aria-label", t("label_hint"));
  const show = (found) => {
    const labels = found ? found.labels : [], held = labels.length ? labels[labels.length - 1].label : null;
    for (const button of tools.children) button.setAttribute("aria-pressed", button.dataset.says === held);
    list.replaceChildren(...labels.slice(-4).map((one) => element("small", t("label_line", {
      who: one.who, time: clock(one.at), label: t(one.label) + (one.defect ? ` (${one.defect})` : "")}))));
    if (new Set(labels.map((one) => one.who)).size > 1) list.append(element("small", t("label_holds", {n: labels.length}), "several"));
  };
  for (const label of isReject ? ["false_alarm", "true_defect"] : ["missed", "good"]) {
    const button = element("button", t(label), label);
    button.type = "button"; button.dataset.says = label;
    button.addEventListener("click", async () => {
      try { const found = await labelPart(path, label); if (found) show(found); showFault(""); } catch (error) { showFault(error.message); }
    });
    tools.append(button);
  }
  box.append(tools, list);
  show(part);
  return box;
}

by("who").addEventListener("click", askWho);
