// The page /docs: sends the request of a form and shows its answer, and opens the type that a link leads to.
"use strict";

// A form's address: path parameters take their place in it, filled query parameters follow.
function addressOf(form) {
  let path = form.getAttribute("action");
  const query = new URLSearchParams();
  for (const field of form.querySelectorAll("input")) {
    if (field.dataset.in === "path") path = path.replace(`{${field.name}}`, encodeURIComponent(field.value));
    else if (field.value) query.set(field.name, field.value);
  }
  return query.size ? `${path}?${query}` : path;
}

function paragraph(text) {
  const node = document.createElement("p");
  node.className = "facts";
  node.textContent = text;
  return node;
}

async function send(event) {
  const form = event.target.closest("form.request");
  if (!form) return;
  event.preventDefault();
  const method = form.dataset.method, address = addressOf(form);
  const body = form.querySelector("textarea")?.value;
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const place = form.parentElement.querySelector(".answer");
  place.replaceChildren(paragraph(`${method} ${address} …`));
  try {
    const answer = await fetch(address, { method, headers, body });
    const json = document.createElement("pre");
    json.className = "message";
    json.textContent = JSON.stringify(await answer.json(), null, 1);
    place.replaceChildren(paragraph(`${method} ${address}: ${answer.status} ${answer.statusText}`), json);
  } catch (error) {
    place.replaceChildren(paragraph(`${method} ${address} failed: ${error.message}`));
  }
}

function openLinkedType() {
  const type = location.hash && document.getElementById(location.hash.slice(1));
  if (type instanceof HTMLDetailsElement) type.open = true;
}

document.addEventListener("submit", send);
document.addEventListener("DOMContentLoaded", openLinkedType);
window.addEventListener("hashchange", openLinkedType);
