// Keys, charts, and lazy sections, which are fetched when they are opened. Without it their links lead to them.
"use strict";

// Draws each canvas of `root` from its data-chart: see charts.py.
function drawCharts(root) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--soft").trim(), line = style.getPropertyValue("--line").trim();
  const colours = ["--p", "--s", "--n"].map((name) => `rgb(${style.getPropertyValue(name).trim()})`);
  const axis = (text, options) => ({
    title: { display: true, text, color: ink }, ticks: { color: ink }, grid: { color: line }, ...options,
  });
  for (const canvas of root.querySelectorAll("canvas[data-chart]")) {
    const spec = JSON.parse(canvas.dataset.chart);
    // With a range the labels are numbers on the axis: the middles of bars.
    const points = (values) => (spec.range ? values.map((y, i) => ({ x: spec.labels[i], y })) : values);
    const range = spec.range && {
      type: "linear", min: spec.range[0], max: spec.range[1], offset: false, grid: { color: line, offset: false },
    };
    const datasets = spec.series.map((series, i) => ({
      ...series,
      data: points(series.data),
      backgroundColor: colours[i % colours.length],
      borderColor: colours[i % colours.length],
      categoryPercentage: 1,
      barPercentage: 0.95,
    }));
    new Chart(canvas, {
      type: spec.type,
      data: { labels: spec.labels, datasets },
      options: {
        animation: false,
        maintainAspectRatio: false,
        spanGaps: true,
        plugins: { legend: { display: spec.series.length > 1, labels: { color: ink } } },
        scales: { x: axis(spec.x, range), y: axis(spec.y, spec.log ? { type: "logarithmic" } : {}) },
      },
    });
  }
}

// Fetches a section's records, once. Its source is an address, or FILE#KEY on the static site.
async function fill(section) {
  const place = section.querySelector(":scope > [data-source]");
  if (!place) return;
  const source = place.dataset.source;
  const [file, key] = source.split("#");
  place.removeAttribute("data-source");
  place.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(file);
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
    // The templates drew this HTML, and they escape.
    place.innerHTML = key ? (await answer.json())[key] : await answer.text();
  } catch (error) {
    place.dataset.source = source;
    place.textContent = `Cannot fetch them (${error.message}). Close and open this again.`;
  }
  place.removeAttribute("aria-busy");
}

// Keeps the open sections in the address, so that a link shows what its sender saw.
function rememberToggle(event) {
  const section = event.target;
  if (!section.dataset || !section.dataset.state) return;
  if (section.open) fill(section);
  const [name, value] = section.dataset.state.split("=");
  const state = new URLSearchParams(location.search);
  const others = state.getAll(name).filter((other) => other !== value);
  state.delete(name);
  for (const open of section.open ? [...others, value] : others) state.append(name, open);
  const query = state.toString().replaceAll("%3A", ":");
  history.replaceState(null, "", location.pathname + (query && `?${query}`) + location.hash);
}

function openSectionsOfAddress(root) {
  const state = new URLSearchParams(location.search);
  for (const section of root.querySelectorAll("details[data-state]")) {
    const [name, value] = section.dataset.state.split("=");
    if (state.getAll(name).includes(value)) section.open = true;
  }
}

// "/" and "g" focus a field; other keys click the element with that data-key.
function pressKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input:not([type=checkbox]), textarea, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const field = document.getElementById({ "/": "q", g: "at" }[event.key]);
  const target = field || document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (!target) return;
  event.preventDefault();
  if (field) field.select();
  else target.click();
  if (target.tagName === "SUMMARY") target.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", pressKey);
document.addEventListener("toggle", rememberToggle, true); // captured, because it does not bubble
document.addEventListener("DOMContentLoaded", () => drawCharts(document));
