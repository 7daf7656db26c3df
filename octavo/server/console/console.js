// The console. Whatever comes from the server is put into the page as text, never as markup.

const $ = (id) => document.getElementById(id);
const KEPT = 120; // points of a chart, one a second
const history = new Map(); // name of a chart -> its points
let model = "";
let previous = null; // the sample before, for rates
let conversation = [];
let answering = null; // the AbortController of the answer under way
let chosen = null; // x-request-id of the request whose timeline is shown

// -- asking the server

function headers() {
  const key = $("key").value.trim();
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function get(path) {
  const answer = await fetch(path, { headers: headers(), cache: "no-store" });
  if (!answer.ok) throw new Error(await said(answer));
  return answer;
}

async function said(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `${answer.status} ${answer.statusText}`;
  }
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function told(problem) {
  $("problem").textContent = problem ?? "";
  $("problem").hidden = !problem;
}

// -- chat

function said_by(role, text) {
  const made = element("li", text, { "data-role": role });
  $("messages").append(made);
  made.scrollIntoView({ block: "end" });
  return made;
}

function number_of(id) {
  const value = $(id).value.trim();
  return value === "" ? undefined : Number(value);
}

async function ask(prompt) {
  conversation.push({ role: "user", content: prompt });
  said_by("user", prompt);
  const shown = said_by("assistant", "");
  const thought = element("span", "", { class: "thought" });
  const content = element("span", "");
  shown.append(thought, content);
  const system = $("system").value.trim();
  const body = {
    model,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...conversation],
    stream: true,
    stream_options: { include_usage: true },
    temperature: number_of("temperature"),
    top_p: number_of("top-p"),
    max_tokens: number_of("max-tokens"),
    seed: number_of("seed"),
  };
  answering = new AbortController();
  busy(true);
  const began = performance.now();
  let first = null;
  let usage = null;
  let reason = null;
  try {
    const answer = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { ...headers(), "content-type": "application/json" },
      body: JSON.stringify(body),
      signal: answering.signal,
    });
    if (!answer.ok) throw new Error(await said(answer));
    for await (const event of events(answer.body)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) usage = event.usage;
      for (const choice of event.choices) {
        thought.textContent += choice.delta.reasoning_content ?? "";
        content.textContent += choice.delta.content ?? "";
        if (first === null && (choice.delta.content || choice.delta.reasoning_content)) first = performance.now();
        reason = choice.finish_reason ?? reason;
      }
      $("messages").scrollTop = $("messages").scrollHeight;
    }
    if (reason === null) throw new Error("the answer broke off");
  } catch (error) {
    said_by("error", error.name === "AbortError" ? "stopped" : error.message);
  }
  answering = null;
  busy(false);
  if (content.textContent) conversation.push({ role: "assistant", content: content.textContent });
  else if (reason === null) conversation.pop();
  figures(began, first, usage, reason);
}

function figures(began, first, usage, reason) {
  if (first === null) return;
  const parts = [`first token after ${seconds((first - began) / 1000)}`];
  if (usage) {
    const rate = (usage.completion_tokens - 1) / ((performance.now() - first) / 1000);
    parts.push(`${usage.prompt_tokens} tokens read, ${usage.prompt_tokens_details.cached_tokens} of them from the cache`);
    parts.push(`${usage.completion_tokens} written`);
    if (usage.completion_tokens > 1) parts.push(`${rate.toFixed(1)} tokens/s`);
  }
  if (reason === "length") parts.push("cut at the limit of tokens");
  $("figures").textContent = parts.join(" · ");
}

// Server-sent events, decoded. Ends at [DONE]; a stream that ends without it gives no more, and the caller notices.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const line = part.split("\n").find((one) => one.startsWith("data: "));
      if (line === undefined) continue;
      if (line === "data: [DONE]") return;
      yield JSON.parse(line.slice(6));
    }
  }
}

function busy(is_busy) {
  $("send").disabled = is_busy;
  $("stop").disabled = !is_busy;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = $("prompt").value;
  if (answering || !prompt.trim()) return;
  $("prompt").value = "";
  ask(prompt);
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
$("stop").addEventListener("click", () => answering?.abort());
$("clear").addEventListener("click", () => {
  answering?.abort();
  conversation = [];
  $("messages").replaceChildren();
  $("figures").textContent = "";
});
$("key").addEventListener("change", () => {
  previous = null;
  look();
});
$("access").addEventListener("submit", (event) => event.preventDefault());

// -- charts, from /metrics

// Every sample by name, then by its labels as they are written.
function parsed(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const [, name, labels, value] = /^(\w[\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
    if (name === undefined) continue;
    if (!found.has(name)) found.set(name, new Map());
    found.get(name).set(labels ?? "", value === "+Inf" ? Infinity : Number(value));
  }
  return found;
}

function total(sample, name, having = "") {
  let sum = 0;
  for (const [labels, value] of sample.get(name) ?? []) if (labels.includes(having)) sum += value;
  return sum;
}

// The quantile of what a histogram has seen between two samples, from its buckets; null when nothing.
function quantile(before, now, name, part) {
  const buckets = [];
  for (const [labels, value] of now.get(`${name}_bucket`) ?? []) {
    const bound = /le="([^"]+)"/.exec(labels)[1];
    const grown = value - (before.get(`${name}_bucket`)?.get(labels) ?? 0);
    buckets.push([bound === "+Inf" ? Infinity : Number(bound), grown]);
  }
  buckets.sort((a, b) => a[0] - b[0]);
  const all = buckets.at(-1)?.[1] ?? 0;
  if (!all) return null;
  let [low, below] = [0, 0];
  for (const [bound, upto] of buckets) {
    if (upto >= part * all) {
      if (bound === Infinity) return low;
      return low + ((bound - low) * (part * all - below)) / Math.max(upto - below, 1);
    }
    [low, below] = [bound, upto];
  }
  return low;
}

const CHARTS = [
  ["Written", (b, n, s) => rate(b, n, s, 'direction="output"'), "tokens/s", count],
  ["Read", (b, n, s) => (total(n, "octavo_computed_tokens_total") - total(b, "octavo_computed_tokens_total")) / s, "positions/s", count],
  ["Time to first token", (b, n) => quantile(b, n, "octavo_ttft_seconds", 0.5), "median", seconds],
  ["Time per output token", (b, n) => quantile(b, n, "octavo_itl_seconds", 0.5), "median", seconds],
  ["Running", (b, n) => total(n, "octavo_requests_running"), "sequences", count],
  ["Waiting", (b, n) => total(n, "octavo_requests_waiting") + total(n, "octavo_gateway_queue_depth"), "sequences", count],
  ["Cache hits", (b, n) => hits(b, n), "of looked-up tokens", percent],
  ["Blocks in use", (b, n) => total(n, "octavo_kv_blocks", 'state="used"') / Math.max(blocks(n), 1), "of the pool", percent],
];

const rate = (b, n, s, having) =>
  (total(n, "octavo_tokens_total", having) - total(b, "octavo_tokens_total", having)) / s;
const blocks = (n) => ["used", "cached", "free"].reduce((sum, state) => sum + total(n, "octavo_kv_blocks", `state="${state}"`), 0);

function hits(before, now) {
  const grown = (name) => total(now, name) - total(before, name);
  const asked = grown("octavo_prefix_cache_query_tokens_total");
  return asked > 0 ? grown("octavo_prefix_cache_hit_tokens_total") / asked : null;
}

function count(value) {
  return value >= 100 ? value.toFixed(0) : value.toFixed(value >= 10 || value === 0 ? 0 : 1);
}

function seconds(value) {
  return value >= 1 ? `${value.toFixed(2)} s` : `${(value * 1000).toFixed(value >= 0.01 ? 0 : 1)} ms`;
}

function percent(value) {
  return `${(100 * value).toFixed(0)} %`;
}

for (const [name, , unit] of CHARTS) {
  const figure = element("figure");
  const caption = element("figcaption", `${name}, ${unit}`);
  caption.append(element("b", "–"));
  const drawing = svg("svg", { viewBox: `0 0 ${KEPT - 1} 40`, preserveAspectRatio: "none", role: "img", "aria-label": name });
  drawing.append(svg("path", {}));
  figure.append(caption, drawing);
  $("charts").append(figure);
  history.set(name, { points: [], shown: caption.lastChild, path: drawing.firstChild });
}

function draw(sample, elapsed) {
  for (const [name, value_of, , shown_as] of CHARTS) {
    const chart = history.get(name);
    const value = value_of(previous.sample, sample, elapsed);
    chart.points.push(value === null || Number.isNaN(value) ? null : Math.max(value, 0));
    if (chart.points.length > KEPT) chart.points.shift();
    const last = chart.points.findLast((one) => one !== null);
    chart.shown.textContent = last === undefined ? "–" : shown_as(last);
    chart.path.setAttribute("d", line(chart.points));
  }
}

function line(points) {
  const highest = Math.max(...points.filter((one) => one !== null), 1e-9);
  let steps = "";
  let pen = "M";
  points.forEach((value, index) => {
    if (value === null) return;
    steps += `${pen}${index + KEPT - points.length} ${(38 - (36 * value) / highest).toFixed(1)}`;
    pen = "L";
  });
  return steps;
}

// -- the cache

const STATES = ["free", "in use", "cached", "pinned"];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Colors come resolved, so that light and dark both work on a canvas.
function palette() {
  const probe = element("i");
  document.body.append(probe);
  const colors = {};
  for (const name of ["--free", "--yours", "--other", "--shared"]) {
    probe.style.color = `var(${name})`;
    colors[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return colors;
}

function paint(context, x, y, size, state, owner, colors) {
  const base = owner === 1 ? colors["--yours"] : owner > 1 ? colors["--other"] : colors["--shared"];
  context.globalAlpha = 1;
  context.fillStyle = colors["--free"];
  context.fillRect(x, y, size, size);
  if (state === 0) return;
  context.fillStyle = base;
  context.globalAlpha = (state === 2 ? 0.4 : 1) * (owner > 1 ? [1, 0.8, 0.6][owner % 3] : 1);
  context.fillRect(x, y, size, size);
  if (state === 3) {
    context.globalAlpha = 1;
    context.fillStyle = colors["--free"];
    context.fillRect(x + size / 3, y + size / 3, size / 3, size / 3);
  }
}

function show_pages(shown) {
  const colors = palette();
  const counts = [0, 0, 0, 0];
  const drawings = shown.engines.map((engine) => {
    const size = 9;
    const columns = Math.max(32, Math.min(128, Math.ceil(Math.sqrt(engine.states.length * 4))));
    const canvas = element("canvas", undefined, { role: "img", "aria-label": `blocks of engine ${engine.engine}` });
    canvas.width = columns * (size + 1);
    canvas.height = Math.ceil(engine.states.length / columns) * (size + 1);
    const context = canvas.getContext("2d");
    [...engine.states].forEach((digit, index) => {
      counts[digit] += engine.num_blocks / engine.states.length;
      paint(context, (index % columns) * (size + 1), Math.floor(index / columns) * (size + 1), size, Number(digit), engine.owners[index], colors);
    });
    return canvas;
  });
  $("pages").replaceChildren(...drawings);
  $("pages-figures").textContent = STATES.map((name, state) => `${Math.round(counts[state])} ${name}`).join(", ");
  legend(shown.num_others, colors);
}

function legend(num_others, colors) {
  const rows = [["free", 0, 0], ["in use by you", 1, 1], ["cached of yours", 2, 1], ["pinned", 3, 1], ["everybody's or not known", 2, 0]];
  if (num_others) rows.push(["in use by others", 1, 2], ["cached of others", 2, 2]);
  $("legend").replaceChildren(
    ...rows.map(([name, state, owner]) => {
      const canvas = element("canvas");
      canvas.width = canvas.height = 9;
      paint(canvas.getContext("2d"), 0, 0, 9, state, owner, colors);
      const row = element("li");
      row.append(canvas, name);
      return row;
    }),
  );
}

// -- requests

const id_of = (span) => span.attributes["octavo.request.id"];

function show_requests({ now_s, requests }) {
  const rows = requests.slice(-100).reverse();
  $("requests").replaceChildren(
    ...rows.map((span) => {
      const row = element("li");
      const button = element("button", undefined, { type: "button", "aria-current": id_of(span) === chosen });
      const usage = span.children[0]?.attributes ?? {};
      const tokens = usage["gen_ai.usage.input_tokens"];
      button.append(
        element("span", span.error ? `${span.name} – ${span.error}` : span.name),
        element("span", tokens === undefined ? "" : `${tokens} → ${usage["gen_ai.usage.output_tokens"]} tokens`),
        element("span", `${seconds(span.end_s - span.start_s)}, ${ago(now_s - span.end_s)}`),
      );
      button.addEventListener("click", () => {
        chosen = id_of(span);
        show_requests({ now_s, requests });
        show_timeline(span);
      });
      row.append(button);
      return row;
    }),
  );
}

function ago(passed) {
  return passed < 60 ? `${passed.toFixed(0)} s ago` : `${(passed / 60).toFixed(0)} min ago`;
}

function show_timeline(request) {
  const length = Math.max(request.end_s - request.start_s, 1e-9);
  const bars = [];
  const add = (span, depth) => {
    const bar = element("div", undefined, { class: "bar" });
    const drawing = svg("svg", { viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img", "aria-label": span.name });
    drawing.append(
      svg("rect", {
        x: (1000 * (span.start_s - request.start_s)) / length,
        width: Math.max((1000 * (span.end_s - span.start_s)) / length, 2),
        height: 10,
        class: span.name.replace(".", "-").replace(/[^\w-].*/, ""),
      }),
    );
    bar.append(element("span", "\u00a0\u00a0".repeat(depth) + span.name.replace(/^octavo\./, "")), drawing, element("span", seconds(span.end_s - span.start_s)));
    bars.push(bar);
    for (const child of span.children) add(child, depth + 1);
  };
  add(request, 0);
  const facts = element("dl");
  for (const span of [request, ...request.children, ...request.children.flatMap((child) => child.children)])
    for (const [name, value] of Object.entries(span.attributes)) facts.append(element("dt", name), element("dd", String(value)));
  $("timeline").replaceChildren(...bars, facts);
}

// -- looking, once a second while somebody does

async function look() {
  try {
    const health = await (await fetch("/health", { cache: "no-store" })).json();
    $("status").textContent = health.loading ? `${health.status}, ${health.loading.phase}` : health.status;
    $("status").dataset.is = health.status;
    model = health.model;
    $("model").textContent = `${health.model} · ${health.version}`;
    const sample = parsed(await (await get("/metrics")).text());
    const now = performance.now();
    if (previous) draw(sample, (now - previous.at) / 1000);
    previous = { sample, at: now };
    if (health.status === "ready") show_pages(await (await get("/console/pages")).json());
    show_requests(await (await get("/console/requests")).json());
    told(null);
  } catch (error) {
    if (error instanceof TypeError) {
      $("status").dataset.is = "away";
      $("status").textContent = "not reached";
    }
    told(error instanceof TypeError ? "The server is not reached." : error.message);
  }
}

async function watch() {
  for (;;) {
    if (!document.hidden) await look();
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

watch();
