"use strict";
// Texts of runs are untrusted: they are set as text, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

function svgElement(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => {
    const option = make("option", "", text);
    option.value = value;
    return option;
  }));
  if (chosen !== undefined) select.value = chosen;
}

// One tooltip for all elements with a data-tip, by pointer or keyboard.

const tip = byId("tip");

function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${y + 18 + height > innerHeight ? Math.max(8, y - height - 10) : y + 18}px`;
}

function hideTip() {
  tip.hidden = true;
}

for (const element of document.querySelectorAll("[data-tip]")) {
  element.addEventListener("pointermove", (event) => showTip(element.dataset.tip, event.clientX, event.clientY));
  element.addEventListener("pointerleave", hideTip);
  element.addEventListener("focus", () => {
    const box = element.getBoundingClientRect();
    showTip(element.dataset.tip, box.left, box.bottom - 14);
  });
  element.addEventListener("blur", hideTip);
}
addEventListener("scroll", hideTip, { passive: true });

// Heat maps.

const CELL = 12, LEFT = 24, TOP = 4, BOTTOM = 32;
const COLOURS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis

function colour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (COLOURS.length - 1);
  const from = Math.min(Math.floor(at), COLOURS.length - 2);
  const mixed = COLOURS[from].map((value, i) => Math.round(value + (at - from) * (COLOURS[from + 1][i] - value)));
  return `rgb(${mixed.join(",")})`;
}

function range(rows) {
  const values = rows.flat().filter((value) => value !== null);
  return values.length ? [Math.min(...values), Math.max(...values)] : [0, 0];
}

// Three decimals, or as many as give the largest of the scores three digits.
function decimals(rows) {
  const largest = Math.max(...range(rows).map(Math.abs));
  return largest > 0 ? Math.min(Math.max(3, 2 - Math.floor(Math.log10(largest))), 20) : 3;
}

function describe(artifact, layer, head) {
  const lines = [artifact.label, `layer ${layer}, head ${head}`];
  for (const [name, rows] of Object.entries(artifact.arrays)) {
    const value = rows[layer][head], digits = decimals(name === "stderr" ? artifact.arrays.score : rows);
    lines.push(`${name} ${value === null ? "not defined" : value.toFixed(digits)}`);
    if (name === "score") {
      const ends = artifact.interval && [artifact.interval.low, artifact.interval.high].map((a) => a[layer][head].toFixed(digits));
      lines.push(ends ? `95 % interval ${ends.join(" to ")}` : "no interval recorded");
    }
  }
  return lines.join("\n");
}

function addAxes(svg, { layers, heads }) {
  // A wide map is drawn smaller, so its labels are larger.
  const size = heads > 16 ? 13 : 10;
  const label = (text, x, y, anchor) => {
    const element = svgElement("text", { x, y, "text-anchor": anchor, style: `font-size: ${size}px` });
    element.textContent = text;
    svg.append(element);
  };
  for (let layer = 0; layer < layers; layer += layers > 12 ? 5 : 1) label(layer, LEFT - 4, TOP + layer * CELL + 9, "end");
  for (let head = 0; head < heads; head += heads > 16 ? 4 : 1) label(head, LEFT + (head + 0.5) * CELL, TOP + layers * CELL + 12, "middle");
  label("head", LEFT + (heads * CELL) / 2, TOP + layers * CELL + 27, "middle");
}

function drawMap(artifact, rows, [low, high]) {
  const width = LEFT + artifact.heads * CELL + 4, height = TOP + artifact.layers * CELL + BOTTOM;
  const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0 });
  svg.setAttribute("aria-label", `Heat map of ${artifact.label}; arrow keys move between heads`);
  svg.style.maxWidth = `${width * 1.25}px`;
  rows.forEach((row, layer) => row.forEach((value, head) => {
    const fillColour = value === null ? "none" : colour(high > low ? (value - low) / (high - low) : 0);
    const box = { x: LEFT + head * CELL, y: TOP + layer * CELL, width: CELL - 0.5, height: CELL - 0.5 };
    svg.append(svgElement("rect", { ...box, fill: fillColour, "data-layer": layer, "data-head": head, "pointer-events": "all" }));
  }));
  addAxes(svg, artifact);
  return svg;
}

const maps = [...document.querySelectorAll(".map")].map((figure) => ({ figure, artifact: data.artifacts[figure.dataset.artifact] }));

function frame(artifact, layer, head) {
  for (const map of maps) {
    map.figure.querySelector(".frame")?.remove();
    const svg = map.figure.querySelector("svg");
    if (!svg || layer === undefined || map.artifact.layers !== artifact.layers || map.artifact.heads !== artifact.heads) continue;
    const box = { x: LEFT + head * CELL, y: TOP + layer * CELL, width: CELL - 0.5, height: CELL - 0.5 };
    svg.append(svgElement("rect", { ...box, class: "frame" }));
  }
}

function listen(svg, artifact) {
  let at = null;
  const show = (layer, head) => {
    at = [layer, head];
    frame(artifact, layer, head);
    return svg.querySelector(`[data-layer="${layer}"][data-head="${head}"]`).getBoundingClientRect();
  };
  const clear = () => { frame(artifact); hideTip(); at = null; };
  const point = (event) => {
    const { layer, head } = event.target.dataset;
    if (layer === undefined) return clear();
    show(Number(layer), Number(head));
    showTip(describe(artifact, layer, head), event.clientX, event.clientY);
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", clear);
  svg.addEventListener("blur", clear);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [layer, head] = at ?? [0 - step[0], 0 - step[1]];
    const next = [Math.min(Math.max(layer + step[0], 0), artifact.layers - 1), Math.min(Math.max(head + step[1], 0), artifact.heads - 1)];
    const box = show(...next);
    showTip(describe(artifact, ...next), box.right, box.bottom);
  });
}

function drawMaps() {
  const quantity = byId("quantity").value, common = byId("scale").value === "common";
  const all = maps.map(({ artifact }) => artifact.arrays[quantity]).filter(Boolean);
  for (const { figure, artifact } of maps) {
    const rows = artifact.arrays[quantity];
    figure.querySelector(".missing").hidden = Boolean(rows);
    figure.querySelector(".legend").hidden = !rows;
    figure.querySelector(".drawing").replaceChildren();
    if (!rows) continue;
    const ends = range(common ? all.flat() : rows), digits = decimals(quantity === "stderr" ? artifact.arrays.score : [ends]);
    const svg = drawMap(artifact, rows, ends);
    listen(svg, artifact);
    figure.querySelector(".drawing").append(svg);
    figure.querySelector(".low").textContent = ends[0].toFixed(digits);
    figure.querySelector(".high").textContent = ends[1].toFixed(digits);
  }
}

if (maps.length) {
  const names = [...new Set(maps.flatMap(({ artifact }) => Object.keys(artifact.arrays)))];
  fill(byId("quantity"), names.map((name) => [name, name]), "score");
  byId("quantity").addEventListener("change", drawMaps);
  byId("scale").addEventListener("change", drawMaps);
  drawMaps();
}

// The sample browser.

const PAGE = 50;
const { runs, tasks, documents, pictures } = data.samples;
let matching = [], listed = 0;

// Filters of documents by how two runs' answers differ.
const FILTERS = {
  changed: ["changed only", (a, b) => a.right !== b.right || a.text !== b.text],
  fixed: ["fixed", (a, b) => !a.right && b.right],
  broken: ["broken", (a, b) => a.right && !b.right],
  wrong: ["both wrong", (a, b) => !a.right && !b.right],
  all: ["all", () => true],
};
const FILTERS_OF_ONE_RUN = { all: ["all", () => true], right: ["right", (a) => a.right], wrong: ["wrong", (a) => !a.right] };
const filters = runs.length > 1 ? FILTERS : FILTERS_OF_ONE_RUN;

function texts(sample) {
  return [sample.question, sample.label, ...Object.values(sample.about ?? {}), ...sample.answers.map((one) => one?.text ?? "")];
}

function hasBoth(sample, before, after) {
  return sample.answers[before] && sample.answers[after];
}

function select() {
  const before = byId("before").value, after = byId("after").value, task = byId("task").value;
  const words = byId("search").value.trim().toLowerCase();
  const both = documents.filter((one) => (!task || one.task === task) && hasBoth(one, before, after));
  const found = both.filter((one) => !words || texts(one).some((text) => text.toLowerCase().includes(words)));
  const passing = (name) => found.filter((one) => filters[name][1](one.answers[before], one.answers[after]));
  for (const option of byId("filter").options) option.textContent = `${filters[option.value][0]} (${passing(option.value).length})`;
  matching = passing(byId("filter").value);
  listed = 0;
  byId("list").replaceChildren();
  const of = `${matching.length} of ${both.length} documents`;
  const why = runs.length > 1 && before === after ? "Before and after are the same run: choose two to see what changed." : "";
  byId("count").textContent = both.length ? `${of}. ${why}` : "These two runs have no document of this page in common.";
  more();
}

function more() {
  byId("list").append(...matching.slice(listed, listed + PAGE).map(card));
  listed = Math.min(listed + PAGE, matching.length);
  byId("more").hidden = listed === matching.length;
}

function card(sample) {
  const article = make("article", "sample");
  if (sample.picture !== undefined) {
    const image = make("img");
    image.src = pictures[sample.picture];
    image.alt = "the document's image";
    image.loading = "lazy";
    article.append(image);
  }
  const text = make("div", "text");
  text.append(make("p", "question", sample.question || "(the samples keep no question)"));
  const { answer, ...others } = sample.about ?? {};
  if (answer) text.append(make("div", "fields", `Answer in the document: ${answer}`));
  text.append(make("div", "dim", `Label: ${sample.label}. ${sample.task}, document ${sample.id}`));
  if (Object.keys(others).length) text.append(fieldsOf(others));
  const chosen = [...new Set([byId("before").value, byId("after").value])];
  const answers = make("div", "answers");
  answers.append(...chosen.map((run) => answerOf(runs[run], sample.answers[run])));
  text.append(answers);
  article.append(text);
  return article;
}

function fieldsOf(others) {
  const details = make("details");
  details.append(make("summary", "", "more of the document"));
  for (const [name, value] of Object.entries(others)) details.append(make("div", "fields", `${name}: ${value}`));
  return details;
}

function answerOf(run, answer) {
  const verdict = answer.right ? "right" : "wrong";
  const box = make("div", `answer ${verdict}`);
  const who = make("div", "who", `${run}: `);
  who.append(make("b", "", verdict + (answer.unparsed ? ", says neither yes nor no" : "") +
    (answer.hallucinated ? `, not on the image: ${answer.hallucinated.join(", ")}` : "")));
  box.append(who, make("div", "said", answer.text || "(empty)"));
  return box;
}

if (documents.length) {
  const numbered = runs.map((name, number) => [String(number), name]);
  fill(byId("before"), numbered, "0");
  fill(byId("after"), numbered, runs.length > 1 ? "1" : "0");
  if (runs.length === 1) byId("after").closest("label").hidden = true;
  fill(byId("task"), [["", "all"], ...tasks.map((name) => [name, name])]);
  fill(byId("filter"), Object.entries(filters).map(([value, [text]]) => [value, text]), Object.keys(filters)[0]);
  for (const id of ["before", "after", "task", "filter"]) byId(id).addEventListener("change", select);
  byId("search").addEventListener("input", select);
  byId("more").addEventListener("click", more);
  select();
}
