"use strict";
// The form for the token: a session begins when it is right.
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
    fault.textContent = "The line does not answer.";
  }
  token.value = "";
  token.focus();
});
