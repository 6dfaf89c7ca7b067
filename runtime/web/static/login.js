"use strict";
// The form for the token: a session begins when it is right.
const words = {language: [localStorage.getItem("language"), ...navigator.languages.map((name) => name.slice(0, 2))].find((name) => ["en", "de", "zh"].includes(name)) || "en"};
fetch("static/texts.json").then((answer) => answer.json()).then((table) => {
  words.silent = table.line_silent[words.language];
  document.documentElement.lang = words.language; document.title = table.login_title[words.language];
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = table[node.dataset.text][words.language];
});
document.getElementById("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = document.getElementById("token");
  const fault = document.getElementById("fault");
  fault.textContent = "";
  try {
    const answer = await fetch("login", {
      method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify({token: token.value}),
    });
    if (answer.ok) { location.reload(); return; }
    fault.textContent = (await answer.json()).error;
  } catch (error) {
    fault.textContent = words.silent || "The line does not answer.";
  }
  token.value = "";
  token.focus();
});
