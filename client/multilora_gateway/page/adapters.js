// The table of adapters: asked for every POLL ms, updated row by row, at most `shown` rows at once.

const POLL = 1500;
const STEP = 200;
const COLUMNS = [ // [key, title, is a number, text of an entry]
  ["id", "Adapter", false, (entry) => entry.id],
  ["state", "State", false, (entry) => (entry.error ? `${entry.state}: ${entry.error}` : entry.state)],
  ["tier", "Tier", false, (entry) => (entry.pinned ? `${entry.tier}, pinned` : entry.tier)],
  ["rank", "Rank", true, (entry) => entry.rank ?? "–"],
  ["pages", "Pages", true, (entry) => entry.pages ?? "–"],
  ["running", "Running", true, (entry) => `${entry.running} + ${entry.waiting}`],
  ["requests", "Requests", true, (entry) => entry.requests],
  ["tokens", "Tokens", true, (entry) => entry.tokens],
  ["rate", "Tokens/s", true, (entry) => Math.round(entry.rate)],
];
const GIB = 2 ** 30;
const SPAN = 1000; // milliseconds that a rate is measured over, at least
const NO_ADMIN = "adapters cannot be changed here: the server was started without --admin-key";

export function startAdapters({ find, element, call, say }) {
  const rows = new Map(); // adapter id → {row, cells, pin}
  let before = new Map(); // adapter id → {tokens, then, rate}
  let entries = [];
  let more = false; // whether there are others than the server tells of
  let admin = true; // whether the server has an admin key
  let asked = 0; // how often the list was asked for
  let lost = ""; // what is said while the list cannot be had
  let sorting = { key: "id", down: false };
  let shown = STEP;

  for (const [key, title, number] of COLUMNS) {
    const cell = element("th", "", { scope: "col" });
    const button = element("button", title, { type: "button" });
    if (number) cell.className = "number";
    button.addEventListener("click", () => {
      sorting = { key, down: sorting.key === key ? !sorting.down : number };
      draw();
    });
    cell.dataset.key = key;
    cell.append(button);
    find("head").append(cell);
  }
  find("head").append(element("th", "Change", { scope: "col" }));

  async function act(action, body) {
    try {
      say(`${action} ${body.adapter_id} …`);
      await call(`/adapters/${action}`, body, { admin: true });
      say(`${action} ${body.adapter_id}: done`);
    } catch (error) {
      say(`${action} ${body.adapter_id}: ${error.message}`, true);
    }
    await refresh();
  }

  function allow(button) {
    button.disabled = !admin;
    button.title = admin ? "" : NO_ADMIN;
  }

  function makeRow(id) {
    const row = element("tr");
    const cells = COLUMNS.map(([, , number]) => {
      const cell = element("td");
      if (number) cell.className = "number";
      row.append(cell);
      return cell;
    });
    const buttons = element("td");
    const made = { row, cells, buttons: [], pinned: false };
    const add = (title, run) => {
      const button = element("button", title, { type: "button", "aria-label": `${title} ${id}` });
      button.addEventListener("click", run);
      buttons.append(button);
      made.buttons.push(button);
      return button;
    };
    add("Load", () => act("load", { adapter_id: id }));
    add("Unload", () => act("unload", { adapter_id: id }));
    made.pin = add("Pin", () => act(made.pinned ? "unpin" : "pin", { adapter_id: id }));
    row.append(buttons);
    return made;
  }

  function fill(made, entry) {
    COLUMNS.forEach(([, , , text], index) => {
      const value = String(text(entry));
      if (made.cells[index].textContent !== value) made.cells[index].textContent = value;
    });
    made.cells[1].classList.toggle("bad", Boolean(entry.error));
    made.buttons.forEach(allow);
    made.pinned = entry.pinned;
    const title = entry.pinned ? "Unpin" : "Pin";
    if (made.pin.textContent !== title) {
      made.pin.textContent = title;
      made.pin.setAttribute("aria-label", `${title} ${entry.id}`);
    }
  }

  function draw() {
    const wanted = find("filter").value.toLowerCase();
    const { key, down } = sorting;
    const found = entries.filter((entry) => entry.id.toLowerCase().includes(wanted));
    const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    found.sort((a, b) => (down ? -1 : 1) * order(a[key] ?? "", b[key] ?? "") || order(a.id, b.id));
    for (const cell of find("head").querySelectorAll("[data-key]")) {
      const sorted = cell.dataset.key === key;
      cell.setAttribute("aria-sort", sorted ? (down ? "descending" : "ascending") : "none");
    }
    const visible = found.slice(0, shown);
    const ids = new Set(visible.map((entry) => entry.id));
    for (const [id, made] of rows) if (!ids.has(id)) { made.row.remove(); rows.delete(id); }
    const body = find("rows");
    const focused = body.contains(document.activeElement) ? document.activeElement : null;
    visible.forEach((entry, index) => {
      if (!rows.has(entry.id)) rows.set(entry.id, makeRow(entry.id));
      const made = rows.get(entry.id);
      fill(made, entry);
      if (body.children[index] !== made.row) body.insertBefore(made.row, body.children[index] || null);
    });
    if (focused?.isConnected) focused.focus({ preventScroll: true }); // moving a row drops its focus
    find("more").hidden = found.length <= shown;
    find("count").textContent = found.length === entries.length
      ? `${entries.length}` : `${found.length} of ${entries.length}`;
    if (more) find("count").textContent += ", and others on the disk";
  }

  function rates(list) {
    const now = performance.now();
    before = new Map(list.map((entry) => {
      const last = before.get(entry.id) || { tokens: entry.tokens, then: now, rate: 0 };
      if (now - last.then < SPAN) return [entry.id, last];
      const rate = Math.max(0, (1000 * (entry.tokens - last.tokens)) / (now - last.then));
      return [entry.id, { tokens: entry.tokens, then: now, rate }];
    }));
    for (const entry of list) entry.rate = before.get(entry.id).rate;
  }

  function memory(held) {
    find("device").value = held.device_pages_used / held.device_pages;
    find("device-text").textContent = `${held.device_pages_used} of ${held.device_pages} pages`;
    find("host").value = held.host_bytes_used / held.host_bytes;
    find("host-text").textContent =
      `${(held.host_bytes_used / GIB).toFixed(2)} of ${(held.host_bytes / GIB).toFixed(1)} GiB`;
  }

  function names() {
    const list = find("names");
    const known = entries.map((entry) => entry.id).join("\n");
    if (list.dataset.known === known) return;
    list.dataset.known = known;
    list.replaceChildren(...entries.map((entry) => element("option", "", { value: entry.id })));
  }

  async function refresh() {
    asked += 1;
    const turn = asked;
    try {
      const told = await (await call("/adapters")).json();
      if (turn !== asked) return; // a later answer is on its way, or here
      rates(told.adapters);
      entries = told.adapters;
      more = told.more;
      admin = told.admin;
      allow(find("load-run"));
      find("base").textContent = told.base.model_id;
      memory(told.memory);
      names();
      draw();
      if (lost && find("message").textContent === lost) say("");
      lost = "";
    } catch (error) {
      if (turn !== asked || lost === `adapters: ${error.message}`) return;
      lost = `adapters: ${error.message}`;
      say(lost, true);
    }
  }

  async function poll() {
    if (!document.hidden) await refresh();
    setTimeout(poll, POLL);
  }

  find("filter").addEventListener("input", () => { shown = STEP; draw(); });
  find("more").addEventListener("click", () => { shown += STEP; draw(); });
  find("load").addEventListener("submit", (event) => {
    event.preventDefault();
    act("load", { adapter_id: find("load-id").value, source: find("load-source").value });
  });
  poll();
}
