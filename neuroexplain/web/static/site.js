// The static site's two pages that have no server: a unit, and search. formats/site.py writes the data they read.
"use strict";

const PAGE_SIZE = 50;

async function load(name) {
  const answer = await fetch(`data/${name}`);
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  return answer.json();
}

function element(name, text, attributes = {}) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

// A unit's page

async function randomUnit(index) {
  const random = (n) => Math.floor(Math.random() * n);
  if (index.rows) {
    const number = random(index.rows);
    const rows = await load(`rows-${Math.floor(number / index.rows_in_a_file)}.json`);
    const row = rows[number % index.rows_in_a_file];
    return [row.layer, row.neuron];
  }
  const layer = index.layers[random(index.layers.length)];
  return [layer, random(index.widths[layer])];
}

// 15:16 or 15/16 -> [15, 16]. Of layers with groups, such as heads, 15:3.40 too. NaN for anything else.
function parseUnit(text, index) {
  const [layer, name] = text.split(/[:/]/);
  const [first, place] = String(name).split(".");
  if (place === undefined) return [Number(layer), Number(first)];
  const size = index.groups[Number(layer)];
  return [Number(layer), size && Number(place) < size ? Number(first) * size + Number(place) : NaN];
}

async function findPage(layer, neuron, index) {
  if (!index.layers.includes(layer) || !(neuron >= 0 && neuron < index.widths[layer])) return undefined;
  const file = `neurons/${layer}-${Math.floor(neuron / index.chunk)}.json`;
  const pages = await load(file).catch(() => ({}));
  const name = `${layer}:${neuron}`;
  return Object.hasOwn(pages, name) ? pages[name] : undefined;
}

async function showUnit(place) {
  const text = new URLSearchParams(location.search).get("at") || "random";
  const index = await load("index.json");
  const [layer, neuron] = text === "random" ? await randomUnit(index) : parseUnit(text, index);
  const html = await findPage(layer, neuron, index);
  if (html === undefined) {
    const layers = index.layers.join(", ");
    const message = `This site does not hold neuron ${text}. It has layers ${layers}.`;
    place.replaceChildren(element("h1", "not found"), element("p", message));
    return;
  }
  if (text === "random") history.replaceState(null, "", `neuron.html?at=${layer}:${neuron}`);
  place.innerHTML = html; // the templates drew it, and they escape; the policy runs no script in it
  document.title = `Neuron ${layer}:${neuron} · neuroexplain`;
  drawCharts(place);
  openSectionsOfAddress(place);
}

// Search

// The number of the index file that holds a word or token: FNV-1a, as in formats/site.py.
function bucketOf(key, nBuckets) {
  let value = 2166136261;
  for (const byte of new TextEncoder().encode(key)) value = Math.imul(value ^ byte, 16777619) >>> 0;
  return value % nBuckets;
}

async function rowsWith(kind, key, index) {
  const rowsByKey = await load(`${kind}/${bucketOf(key, index.buckets)}.json`);
  return Object.hasOwn(rowsByKey, key) ? rowsByKey[key] : [];
}

// The numbers of the rows that hold every word and whose units peak on the token, best first; null: all rows.
async function candidates(words, token, index) {
  const lists = await Promise.all(words.map((word) => rowsWith("words", word, index)));
  if (token) {
    const spellings = [token, ` ${token}`].map((text) => rowsWith("tokens", text, index));
    const rows = (await Promise.all(spellings)).flat();
    lists.push([...new Set(rows)].sort((a, b) => a - b));
  }
  if (!lists.length) return null;
  const others = lists.slice(1).map((list) => new Set(list));
  return lists[0].filter((row) => others.every((list) => list.has(row)));
}

// "15" or "3-5,7" -> a set of layers
function parseLayers(text) {
  const layers = new Set();
  for (const range of text.split(",")) {
    const [first, last] = range.split("-").map((end) => Number(end.trim()));
    for (let layer = first; layer <= (last ?? first) && layer - first < 10000; layer++) layers.add(layer);
  }
  return layers;
}

// What the address says: words, token, a test of a row, order and page.
function parseSearch(state) {
  const number = (name) => (state.get(name) ? Number(state.get(name)) : null);
  const layers = state.get("layer") ? parseLayers(state.get("layer")) : null;
  const low = number("min_score"), high = number("max_score"), scorer = state.get("scorer");
  return {
    words: [...new Set((state.get("q") || "").toLowerCase().match(/[\p{L}\p{N}_]+/gu) || [])],
    token: state.get("token"),
    fits: (row) => (!layers || layers.has(row.layer))
      && (!scorer || row.scorer === scorer)
      && (low === null || (row.score !== null && row.score >= low))
      && (high === null || (row.score !== null && row.score <= high)),
    sort: state.get("sort") || "score",
    page: Math.max(0, Math.floor(Number(state.get("page"))) || 0),
  };
}

// The lower end of a row's interval; -2 for a row without one, which stands behind the others.
function lowerEnd(row) {
  return row.ci_low === null ? -2 : row.ci_low;
}

// The rows of the search in its order; sorted by score, no more than tell whether there is a next page.
async function findRows(search, index) {
  const numbers = await candidates(search.words, search.token, index);
  const size = index.rows_in_a_file;
  const rows = [];
  for (let file = 0; file * size < index.rows; file++) {
    const start = file * size;
    const own = numbers && numbers.filter((n) => n >= start && n < start + size);
    if (own && !own.length) continue;
    const fileRows = await load(`rows-${file}.json`);
    rows.push(...(own ? own.map((n) => fileRows[n - start]) : fileRows).filter(search.fits));
    // The files are sorted by score, those without one last.
    const end = (search.page + 1) * PAGE_SIZE, last = fileRows.at(-1).score;
    if (search.sort === "score" && rows.length > end) break;
    // No interval lies above its score, so nothing that follows has a higher lower end than `last`.
    if (search.sort === "lower" && last !== null && rows.filter((row) => lowerEnd(row) > last).length > end) break;
  }
  if (search.sort === "lower") rows.sort((a, b) => lowerEnd(b) - lowerEnd(a));
  if (search.sort === "weakest") rows.sort((a, b) => (a.score ?? 2) - (b.score ?? 2));
  if (search.sort === "activation") rows.sort((a, b) => b.max_activation - a.max_activation);
  if (search.sort === "unit" || search.sort === "neuron") {
    rows.sort((a, b) => a.layer - b.layer || a.neuron - b.neuron);
  }
  return rows;
}

// As in _score_help.html.
function helpButton() {
  const title = "What does a score mean?";
  return element("button", "?", { type: "button", class: "help", popovertarget: "score-help", title, "aria-label": title });
}

// As in _rows.html.
function resultsTable(rows) {
  const table = element("table", undefined, { class: "results" });
  const head = element("tr");
  const columns = [["rule alone", "rule_score"], ["beyond its words", "beyond_words"]]
    .filter(([, name]) => rows.some((row) => row[name] !== null));
  const figures = columns.map(([title]) => title);
  const titles = ["unit", "score ", "explanation", "95% interval", ...figures, "by", "scorer", "strongest"];
  head.append(...titles.map((title) => element("th", title)));
  head.children[1].append(helpButton());
  table.append(head, ...rows.map((row) => resultsLine(row, columns.map(([, name]) => name))));
  return table;
}

function resultsLine(row, figures) {
  const score = (value) => (value === null ? "-" : (Math.round(value * 100) / 100 + 0).toFixed(2)); // never -0.00
  const unit = `${row.layer}:${row.neuron}`, href = `neuron.html?at=${unit}`;
  const linkCell = (text, attributes) => {
    const cell = element("td", undefined, attributes);
    cell.append(element("a", text, { href }));
    return cell;
  };
  const line = element("tr");
  line.append(
    linkCell(unit),
    element("td", score(row.score), { class: "num" }),
    linkCell(row.rule === null ? row.explanation : `${row.rule} (${row.examples.join(", ")})`, { class: "words" }),
    element("td", row.ci_low === null ? "" : `${score(row.ci_low)} to ${score(row.ci_high)}`, { class: "num" }),
    ...figures.map((name) => element("td", score(row[name]), { class: "num" })),
    element("td", row.explainer, { class: "by" }),
    element("td", row.scorer || "", { class: "by" }),
    element("td", row.max_activation === null ? "" : row.max_activation.toPrecision(3), { class: "num" }),
  );
  return line;
}

function pageLink(state, page, text) {
  const query = new URLSearchParams(state);
  query.set("page", page);
  return element("a", text, { href: `search.html?${query}` });
}

function fillForm(state) {
  for (const [name, value] of state) {
    const field = document.querySelector(`.filters [name="${CSS.escape(name)}"]`);
    if (field) field.value = value;
  }
}

async function showResults(place) {
  const state = new URLSearchParams(location.search);
  fillForm(state);
  const search = parseSearch(state);
  const rows = await findRows(search, await load("index.json"));
  const end = (search.page + 1) * PAGE_SIZE;
  const table = () => resultsTable(rows.slice(end - PAGE_SIZE, end));
  place.replaceChildren(rows.length ? table() : element("p", "No explanation fits."));
  document.getElementById("pages").replaceChildren(
    search.page ? pageLink(state, search.page - 1, "← back") : element("span"),
    rows.length > end ? pageLink(state, search.page + 1, "more →") : element("span"),
  );
}

document.addEventListener("DOMContentLoaded", () => {
  for (const [id, show] of [["neuron", showUnit], ["results", showResults]]) {
    const place = document.getElementById(id);
    if (!place) continue;
    const report = (error) => element("p", `Cannot read the site's data: ${error.message}`, { role: "alert" });
    show(place).catch((error) => place.replaceChildren(report(error)));
  }
});
