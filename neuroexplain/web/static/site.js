// The static site's two pages that have no server: a neuron, and search.
"use strict";

const PAGE = 50;

async function load(name) {
  const answer = await fetch(`data/${name}`);
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  return answer.json();
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

async function randomNeuron(index) {
  const any = (n) => Math.floor(Math.random() * n);
  if (index.rows) {
    const number = any(index.rows);
    const row = (await load(`rows-${Math.floor(number / index.rows_in_a_file)}.json`))[number % index.rows_in_a_file];
    return [row.layer, row.neuron];
  }
  const layer = index.layers[any(index.layers.length)];
  return [layer, any(index.widths[layer])];
}

// 15:16 or 15/16; of layers with groups, such as heads, 15:3.40 too.
function numbersOf(asked, index) {
  const [layer, name] = asked.split(/[:/]/);
  const [group, place] = String(name).split(".");
  const size = index.groups[Number(layer)];
  return [Number(layer), place === undefined ? Number(group) : size && Number(place) < size ? Number(group) * size + Number(place) : NaN];
}

async function showNeuron(into) {
  const state = new URLSearchParams(location.search);
  const asked = state.get("at") || "random";
  const index = await load("index.json");
  const [layer, neuron] = asked === "random" ? await randomNeuron(index) : numbersOf(asked, index);
  const name = `${layer}:${neuron}`;
  const isThere = index.layers.includes(layer) && neuron >= 0 && neuron < index.widths[layer];
  const chunk = isThere ? await load(`neurons/${layer}-${Math.floor(neuron / index.chunk)}.json`).catch(() => ({})) : {};
  if (!Object.hasOwn(chunk, name)) {
    into.replaceChildren(element("h1", "not found"), element("p", `This site does not hold neuron ${asked}. It has layers ${index.layers.join(", ")}.`));
    return;
  }
  if (asked === "random") history.replaceState(null, "", `neuron.html?at=${name}`);
  into.innerHTML = chunk[name]; // written by the same escaping templates; the policy runs no script in it
  document.title = `Neuron ${name} · neuroexplain`;
  drawCharts(into);
  openAsTheAddressSays(into);
}

// Which file of an index holds a word or token: FNV-1a, as in formats/site.py.
function bucketOf(key, buckets) {
  let found = 2166136261;
  for (const byte of new TextEncoder().encode(key)) found = Math.imul(found ^ byte, 16777619) >>> 0;
  return found % buckets;
}

async function rowsWith(kind, key, index) {
  const held = await load(`${kind}/${bucketOf(key, index.buckets)}.json`);
  return Object.hasOwn(held, key) ? held[key] : [];
}

// The numbers of the rows that hold every word and whose neurons peak on the token, best first; null: all of them.
async function candidates(words, token, index) {
  const lists = await Promise.all(words.map((word) => rowsWith("words", word, index)));
  if (token) {
    const both = await Promise.all([token, ` ${token}`].map((text) => rowsWith("tokens", text, index)));
    lists.push([...new Set(both.flat())].sort((a, b) => a - b));
  }
  if (!lists.length) return null;
  const others = lists.slice(1).map((list) => new Set(list));
  return lists[0].filter((row) => others.every((list) => list.has(row)));
}

function layersOf(text) {
  const wanted = new Set();
  for (const part of text.split(",")) {
    const [first, last] = part.split("-").map((one) => Number(one.trim()));
    for (let at = first; at <= (last ?? first) && at - first < 10000; at++) wanted.add(at);
  }
  return wanted;
}

async function showResults(into) {
  const state = new URLSearchParams(location.search);
  for (const [name, value] of state) {
    const field = document.querySelector(`.filters [name="${CSS.escape(name)}"]`);
    if (field) field.value = value;
  }
  const index = await load("index.json");
  const words = [...new Set((state.get("q") || "").toLowerCase().match(/[\p{L}\p{N}_]+/gu) || [])];
  const layers = state.get("layer") ? layersOf(state.get("layer")) : null;
  const low = state.get("min_score") ? Number(state.get("min_score")) : null;
  const high = state.get("max_score") ? Number(state.get("max_score")) : null;
  const scorer = state.get("scorer");
  const sort = state.get("sort") || "score";
  const page = Math.max(0, Math.floor(Number(state.get("page"))) || 0);
  const fits = (row) => (!layers || layers.has(row.layer)) && (!scorer || row.scorer === scorer)
    && (low === null || (row.score !== null && row.score >= low)) && (high === null || (row.score !== null && row.score <= high));
  const numbers = await candidates(words, state.get("token"), index);
  const found = [];
  for (let file = 0; file * index.rows_in_a_file < index.rows; file++) {
    const from = file * index.rows_in_a_file, own = numbers && numbers.filter((n) => n >= from && n < from + index.rows_in_a_file);
    if (own && !own.length) continue;
    const rows = await load(`rows-${file}.json`);
    found.push(...(own ? own.map((n) => rows[n - from]) : rows).filter(fits));
    if (sort === "score" && found.length > (page + 1) * PAGE) break; // the files are sorted by score
  }
  if (sort === "activation") found.sort((a, b) => b.max_activation - a.max_activation);
  if (sort === "unit" || sort === "neuron") found.sort((a, b) => a.layer - b.layer || a.neuron - b.neuron);
  const table = element("table", undefined, { class: "results" });
  const head = element("tr");
  for (const name of ["unit", "score", "95% interval", "explanation", "by", "scorer", "max"]) head.append(element("th", name));
  table.append(head);
  const two = (value) => (value === null ? "-" : value.toFixed(2));
  for (const row of found.slice(page * PAGE, (page + 1) * PAGE)) {
    const line = element("tr"), at = `${row.layer}:${row.neuron}`, first = element("td"), explained = element("td", undefined, { class: "words" });
    first.append(element("a", at, { href: `neuron.html?at=${at}` }));
    explained.append(element("a", row.explanation, { href: `neuron.html?at=${at}` }));
    line.append(first, element("td", two(row.score), { class: "num" }), element("td", row.ci_low === null ? "" : `${two(row.ci_low)} to ${two(row.ci_high)}`, { class: "num" }),
      explained, element("td", row.explainer, { class: "by" }), element("td", row.scorer || "", { class: "by" }), element("td", row.max_activation === null ? "" : row.max_activation.toPrecision(3), { class: "num" }));
    table.append(line);
  }
  into.replaceChildren(found.length ? table : element("p", "No explanation fits."));
  const step = (number, text) => {
    const next = new URLSearchParams(state);
    next.set("page", number);
    return element("a", text, { href: `search.html?${next}` });
  };
  document.getElementById("pages").replaceChildren(page ? step(page - 1, "← back") : element("span"), found.length > (page + 1) * PAGE ? step(page + 1, "more →") : element("span"));
}

document.addEventListener("DOMContentLoaded", () => {
  for (const [id, show] of [["neuron", showNeuron], ["results", showResults]]) {
    const into = document.getElementById(id);
    if (into) show(into).catch((error) => into.replaceChildren(element("p", `Cannot read the site's data: ${error.message}`, { role: "alert" })));
  }
});
