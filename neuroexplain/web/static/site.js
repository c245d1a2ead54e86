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

async function showNeuron(into) {
  const asked = new URLSearchParams(location.search).get("at") || "random";
  const index = await load("index.json");
  let [layer, neuron] = asked.split(/[:/]/).map(Number);
  if (asked === "random") {
    [layer, neuron] = index.neurons[Math.floor(Math.random() * index.neurons.length)];
    history.replaceState(null, "", `neuron.html?at=${layer}:${neuron}`);
  }
  const held = index.neurons.some(([a, b]) => a === layer && b === neuron);
  if (!held) {
    into.replaceChildren(element("h1", "not found"), element("p", `This site does not hold neuron ${asked}; it has ${index.neurons.length}.`));
    return;
  }
  const chunk = await load(`neurons/${layer}-${Math.floor(neuron / index.chunk)}.json`);
  into.innerHTML = chunk[`${layer}:${neuron}`]; // written by the same escaping templates; the policy runs no script in it
  document.title = `Neuron ${layer}:${neuron} · neuroexplain`;
  drawCharts(into);
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
  const words = (state.get("q") || "").toLowerCase().match(/[\p{L}\p{N}_]+/gu) || [];
  const layers = state.get("layer") ? layersOf(state.get("layer")) : null;
  const low = state.get("min_score") ? Number(state.get("min_score")) : null;
  const high = state.get("max_score") ? Number(state.get("max_score")) : null;
  const simulator = state.get("simulator");
  const sort = state.get("sort") || "score";
  const page = Math.max(0, Number(state.get("page")) || 0);
  const fits = (row) => {
    const own = new Set(row.explanation.toLowerCase().match(/[\p{L}\p{N}_]+/gu) || []);
    return words.every((word) => own.has(word)) && (!layers || layers.has(row.layer)) && (!simulator || row.simulator === simulator)
      && (low === null || (row.correlation !== null && row.correlation >= low)) && (high === null || (row.correlation !== null && row.correlation <= high));
  };
  let found = [];
  for (let number = 0; number < index.rows; number++) {
    found = found.concat((await load(`rows-${number}.json`)).filter(fits));
    if (sort === "score" && found.length > (page + 1) * PAGE) break; // the files are sorted by score
  }
  if (sort === "activation") found.sort((a, b) => b.max_activation - a.max_activation);
  if (sort === "neuron") found.sort((a, b) => a.layer - b.layer || a.neuron - b.neuron);
  const table = element("table", undefined, { class: "results" });
  const head = element("tr");
  for (const name of ["neuron", "score", "95% interval", "explanation", "by", "simulator", "max"]) head.append(element("th", name));
  table.append(head);
  const two = (value) => (value === null ? "-" : value.toFixed(2));
  for (const row of found.slice(page * PAGE, (page + 1) * PAGE)) {
    const line = element("tr"), at = `${row.layer}:${row.neuron}`, first = element("td"), explained = element("td", undefined, { class: "words" });
    first.append(element("a", at, { href: `neuron.html?at=${at}` }));
    explained.append(element("a", row.explanation, { href: `neuron.html?at=${at}` }));
    line.append(first, element("td", two(row.correlation), { class: "num" }), element("td", row.ci_low === null ? "" : `${two(row.ci_low)} to ${two(row.ci_high)}`, { class: "num" }),
      explained, element("td", row.explainer), element("td", row.simulator || ""), element("td", row.max_activation === null ? "" : row.max_activation.toPrecision(3), { class: "num" }));
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
