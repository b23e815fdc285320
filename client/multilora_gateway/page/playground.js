// One prompt, several adapters, their answers side by side as they stream.

const BASE = "(base model)";
const MOST = 5; // answers at a time: browsers open six connections, and the table needs one

export function startPlayground({ find, element, call }) {
  const chosen = new Set([BASE]);
  let running = null; // the AbortController of the answers on the page

  function drawChosen() {
    find("chosen").replaceChildren(...[...chosen].map((name) => {
      const item = element("li");
      const button = element("button", `${name} ✕`, { type: "button", "aria-label": `Remove ${name}` });
      button.addEventListener("click", () => { chosen.delete(name); drawChosen(); });
      item.append(button);
      return item;
    }));
  }

  function add() {
    const name = find("choose").value.trim();
    if (name) chosen.add(name);
    find("choose").value = "";
    find("choose").focus();
    drawChosen();
  }

  function makeAnswer(name) {
    // busy: read out once, when it is complete
    const article = element("article", "", { "aria-live": "polite", "aria-busy": "true" });
    const text = element("pre", "", { "aria-label": `Answer of ${name}` });
    const facts = element("footer", "waiting");
    article.append(element("h3", name), text, facts);
    article.dataset.adapter = name;
    find("answers").append(article);
    return { name, article, text, facts };
  }

  async function* events(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) if (part.startsWith("data:")) yield JSON.parse(part.slice(5));
    }
  }

  async function stream({ name, article, text, facts }, { inputs, parameters }, signal) {
    facts.textContent = "";
    const began = performance.now();
    let first = 0;
    let tokens = 0;
    let complete = false;
    try {
      const body = { inputs, parameters: { ...parameters } };
      if (name !== BASE) body.parameters.adapter_id = name;
      for await (const event of events(await call("/generate_stream", body, { signal }))) {
        if (event.error) throw new Error(event.error);
        first ||= performance.now();
        tokens += 1;
        complete ||= event.generated_text !== null;
        if (!event.token.special) text.append(event.token.text);
        const seconds = (performance.now() - first) / 1000;
        const rate = tokens > 1 && seconds ? `, ${Math.round((tokens - 1) / seconds)} tokens/s` : "";
        facts.textContent = `first token ${Math.round(first - began)} ms${rate}, ${tokens} tokens`;
      }
      if (!complete) throw new Error("the answer broke off; run it again");
    } catch (error) {
      const end = error.name === "AbortError" ? "stopped" : error.message;
      facts.textContent = [facts.textContent, end].filter(Boolean).join(", ");
      facts.classList.toggle("bad", error.name !== "AbortError");
    } finally {
      article.setAttribute("aria-busy", "false");
    }
  }

  async function run() {
    if (!chosen.size) { find("choose").focus(); return; }
    running?.abort();
    const mine = new AbortController();
    running = mine;
    find("answers").replaceChildren();
    find("stop").disabled = false;
    const inputs = find("prompt").value; // those that wait get the same
    const parameters = { max_new_tokens: Number(find("max-tokens").value) };
    const temperature = Number(find("temperature").value);
    if (temperature > 0) parameters.temperature = temperature;
    const waiting = [...chosen].map(makeAnswer).values();
    await Promise.all(Array.from({ length: MOST }, async () => {
      for (const next of waiting) await stream(next, { inputs, parameters }, mine.signal);
    }));
    if (running === mine) find("stop").disabled = true;
  }

  find("playground").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  find("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    find("playground").requestSubmit(); // checks the fields, as the button does
  });
  find("choose").addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); add(); }
  });
  find("add").addEventListener("click", add);
  find("stop").addEventListener("click", () => running?.abort());
  drawChosen();
}
