// Keys, charts, and parts of a page that are fetched when they are opened. Without this file their links lead to them.
"use strict";

function drawCharts(within) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--soft").trim(), line = style.getPropertyValue("--line").trim();
  const colours = ["--p", "--s", "--n"].map((name) => `rgb(${style.getPropertyValue(name).trim()})`);
  for (const canvas of within.querySelectorAll("canvas[data-chart]")) {
    const spec = JSON.parse(canvas.dataset.chart);
    const axis = (text, more) => ({ title: { display: true, text, color: ink }, ticks: { color: ink }, grid: { color: line }, ...more });
    // A range: the labels are numbers on it, the middles of bars.
    const points = (values) => spec.range ? values.map((y, i) => ({ x: spec.labels[i], y })) : values;
    const measured = spec.range && { type: "linear", min: spec.range[0], max: spec.range[1], offset: false, grid: { color: line, offset: false } };
    new Chart(canvas, {
      type: spec.type,
      data: {
        labels: spec.labels,
        datasets: spec.series.map((one, i) => ({ ...one, data: points(one.data), backgroundColor: colours[i % 3], borderColor: colours[i % 3], categoryPercentage: 1, barPercentage: 0.95 })),
      },
      options: {
        animation: false, maintainAspectRatio: false, spanGaps: true,
        plugins: { legend: { display: spec.series.length > 1, labels: { color: ink } } },
        scales: { x: axis(spec.x, measured), y: axis(spec.y, spec.log ? { type: "logarithmic" } : {}) },
      },
    });
  }
}

// A part's source is an address, or FILE#KEY on the static site.
async function fill(part) {
  const into = part.querySelector(":scope > [data-source]");
  if (!into) return;
  const [file, key] = into.dataset.source.split("#");
  into.removeAttribute("data-source");
  into.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(file);
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
    into.innerHTML = key ? (await answer.json())[key] : await answer.text(); // drawn by the templates, which escape
  } catch (error) {
    into.dataset.source = key ? `${file}#${key}` : file;
    into.textContent = `Cannot fetch them (${error.message}). Close and open this again.`;
  }
  into.removeAttribute("aria-busy");
}

// What is open stands in the address, so that a link shows it.
function toggled(event) {
  const part = event.target;
  if (!part.dataset || !part.dataset.state) return;
  if (part.open) fill(part);
  const [name, value] = part.dataset.state.split("=");
  const state = new URLSearchParams(location.search);
  const others = state.getAll(name).filter((one) => one !== value);
  state.delete(name);
  for (const one of part.open ? [...others, value] : others) state.append(name, one);
  const said = state.toString().replaceAll("%3A", ":");
  history.replaceState(null, "", location.pathname + (said && `?${said}`) + location.hash);
}

function openAsTheAddressSays(within) {
  const state = new URLSearchParams(location.search);
  for (const part of within.querySelectorAll("details[data-state]")) {
    const [name, value] = part.dataset.state.split("=");
    if (state.getAll(name).includes(value)) part.open = true;
  }
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inField = event.target.closest("input:not([type=checkbox]), textarea, select");
  if (inField) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const focus = { "/": "q", g: "at" }[event.key];
  const found = focus ? document.getElementById(focus) : document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (!found) return;
  event.preventDefault();
  if (focus) found.select();
  else found.click();
  if (found.tagName === "SUMMARY") found.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", press);
document.addEventListener("toggle", toggled, true); // it does not bubble
document.addEventListener("DOMContentLoaded", () => drawCharts(document));
