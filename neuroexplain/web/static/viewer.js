// Keys and charts. Everything else works without this file.
"use strict";

function drawCharts(within) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--soft").trim(), line = style.getPropertyValue("--line").trim();
  const colours = ["--p", "--s", "--n"].map((name) => `rgb(${style.getPropertyValue(name).trim()})`);
  for (const canvas of within.querySelectorAll("canvas[data-chart]")) {
    const spec = JSON.parse(canvas.dataset.chart);
    const axis = (text, more) => ({ title: { display: true, text, color: ink }, ticks: { color: ink }, grid: { color: line }, ...more });
    new Chart(canvas, {
      type: spec.type,
      data: {
        labels: spec.labels,
        datasets: spec.series.map((one, i) => ({ ...one, backgroundColor: colours[i % 3], borderColor: colours[i % 3], categoryPercentage: 1, barPercentage: 0.95 })),
      },
      options: {
        animation: false, maintainAspectRatio: false, spanGaps: true,
        plugins: { legend: { display: spec.series.length > 1, labels: { color: ink } } },
        scales: { x: axis(spec.x), y: axis(spec.y, spec.log ? { type: "logarithmic" } : {}) },
      },
    });
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
}

document.addEventListener("keydown", press);
document.addEventListener("DOMContentLoaded", () => drawCharts(document));
