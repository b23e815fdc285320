// Starts both halves of the page. What they share: the keys, the message line, calls to the server.

import { startAdapters } from "/page/adapters.js";
import { startPlayground } from "/page/playground.js";

export const find = (id) => document.getElementById(id);

export function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

export function say(text, bad = false) {
  find("message").textContent = text;
  find("message").classList.toggle("bad", bad);
}

function headers(key) {
  const said = { "Content-Type": "application/json" };
  if (key) said.Authorization = `Bearer ${key}`;
  return said;
}

export async function call(path, body, { admin = false, signal } = {}) {
  const key = find(admin ? "admin-key" : "api-key").value || find("admin-key").value;
  const options = { headers: headers(key), signal };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  const answer = await fetch(path, options);
  if (answer.ok) return answer;
  if (answer.status === 401) {
    throw new Error(`${admin ? "the admin key" : "a valid API key"} is needed; type it at the top`);
  }
  const told = await answer.json().catch(() => ({}));
  throw new Error(told.error || `the server answered ${answer.status}`);
}

for (const id of ["api-key", "admin-key"]) { // for as long as the tab lives, and no longer
  find(id).value = sessionStorage.getItem(id) || "";
  find(id).addEventListener("input", () => sessionStorage.setItem(id, find(id).value));
}

startPlayground({ find, element, call });
startAdapters({ find, element, call, say });
