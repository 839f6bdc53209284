// The page of a run: chosen readings over one axis of steps, live behind a cursor, the choice in the address.
import { Findings } from "./findings.js";
import { Layers } from "./layers.js";
import { Panels, remember, remembered } from "./panels.js";
import { Plot } from "./plot.js";
import { Series, whole } from "./series.js";
import { follow } from "./stream.js";

const box = document.getElementById("run");
const { run } = box.dataset;
const most = Number(box.dataset.most);
const place = document.getElementById("panels");
const readings = document.getElementById("readings");
const summary = document.getElementById("summary");
const unread = document.getElementById("unread");
const wholeRun = document.getElementById("whole");
const SPOKEN = 20000; // ms between two summaries for those who listen
const GOES_ON = ["running", "not heard of any more"];

const shown = new Map(); // name to {series, plot, figure}
let waiting = 0;
const panels = new Panels(() => {
  remember({ from: panels.zoomed?.[0] && String(panels.zoomed[0]), to: panels.zoomed && String(panels.zoomed[1]) });
  wholeRun.classList.toggle("off", !panels.zoomed);
  clearTimeout(waiting);
  waiting = setTimeout(load, 120);
}, () => Number(document.getElementById("steps").textContent.replaceAll(",", "")));
const findings = new Findings(run, panels, say);
const layers = new Layers(run, panels, (numbers) => findings.light(numbers), dress);

function say(words) {
  summary.textContent = words;
}
function trouble(why) {
  unread.hidden = !why;
  unread.textContent = why && `${why} Trying again.`;
}

async function load() {
  const all = [...shown.values()].map(({ series }) => series.load(panels.zoomed));
  if (layers.plot) all.push(layers.load());
  const [failed] = (await Promise.allSettled(all)).filter((one) => one.status === "rejected");
  trouble(failed ? String(failed.reason.message ?? failed.reason) : "");
  draw();
}

let drawing = false;
function draw() {
  drawing = false;
  panels.draw();
  for (const { plot, figure } of shown.values()) {
    const { words } = plot;
    plot.place.setAttribute("aria-label", `${figure.dataset.name}, in ${figure.dataset.unit}, over optimizer steps: ${words || "no value yet"}`);
    if (plot.u?.cursor.idx == null) figure.querySelector(".now").textContent = words || "no value yet";
  }
  speak();
}
let spoken = -Infinity;
function speak() {
  const [first] = shown.values();
  if (!first || performance.now() - spoken < SPOKEN) return;
  spoken = performance.now();
  if (first.plot.words) say(`${first.figure.dataset.name}: ${first.plot.words}`);
}

function open(figure) {
  const { name, unit } = figure.dataset;
  const now = figure.querySelector(".now");
  const target = figure.querySelector(".plotted");
  const series = new Series(run, name, Math.max(200, Math.min(1500, place.clientWidth)));
  const plot = new Plot(target, {
    unit,
    dashes: false,
    view: () => panels.view(),
    zoom: (from, to) => panels.zoom(from, to),
    said: (words) => {
      now.textContent = words ?? plot.words;
      if (words && document.activeElement === target) say(`${name}, ${words}`);
    },
    pick: (numbers) => findings.light(numbers),
  });
  shown.set(name, { series, plot, figure });
  panels.add(plot, [series]);
}
function shut(name) {
  const { plot, figure } = shown.get(name);
  panels.remove(plot);
  figure.remove();
  shown.delete(name);
}

// Only the last one says what the axis counts.
function lay() {
  const order = [...place.querySelectorAll(".panel")].map((figure) => shown.get(figure.dataset.name));
  order.forEach(({ plot }, n) => {
    const axis = n === order.length - 1;
    if (plot.axis === axis) return;
    plot.axis = axis;
    plot.fit();
    plot.make();
  });
  dress();
}
function dress() {
  findings.show();
  bands();
}

function address() {
  const query = new URLSearchParams([...shown.keys()].map((name) => ["show", name]));
  return `/api/runs/${run}/events?${query}`;
}
const hear = {
  readings(news) {
    for (const [name, points] of Object.entries(news)) {
      const one = shown.get(name);
      if (!one || panels.zoomed) continue;
      if (!one.series.add(points)) one.series.load(null).then(draw, () => {});
    }
    if (!drawing) requestAnimationFrame(draw);
    drawing = true;
  },
  finding: (news) => findings.arrive(news),
  names: (news) => offer(news),
  progress({ steps, state, overhead }) {
    document.getElementById("steps").textContent = whole(steps);
    if (document.getElementById("state").textContent !== state) document.getElementById("state").textContent = state;
    document.getElementById("overhead").textContent = overhead;
    layers.tick();
    if (GOES_ON.includes(state)) return;
    stream.close();
    document.getElementById("so-far").textContent = "";
  },
  trouble: ({ why }) => trouble(why),
  // Resumed or replaced: what is shown may be void.
  anew: () => location.reload(),
};

const asked = remembered();
const [from, to] = [Number(asked.get("from")), Number(asked.get("to"))];
if (to > from) panels.zoomed = [from, to];
wholeRun.classList.toggle("off", !panels.zoomed);
panels.follow(asked);
place.querySelectorAll(".panel").forEach(open);
lay();
load();

function limit() {
  const boxes = [...readings.querySelectorAll("input")];
  const full = boxes.filter((one) => one.checked).length >= most;
  for (const one of boxes) one.disabled = full && !one.checked;
}
limit();
readings.addEventListener("change", (event) => {
  const { value: name, checked } = event.target;
  if (checked) {
    const figure = document.getElementById("panel").content.cloneNode(true).querySelector("figure");
    Object.assign(figure.dataset, { name, unit: event.target.dataset.unit });
    figure.querySelector("strong").textContent = name;
    place.append(figure);
    open(figure);
    shown.get(name).series.load(panels.zoomed).then(draw, (error) => trouble(error.message));
  } else if (shown.size > 1) shut(name);
  else event.target.checked = true;
  limit();
  lay();
  stream.to(address());
  remember({ show: [...shown.keys()] });
});
// A menu closes like one.
const menu = readings.closest("details");
document.addEventListener("click", (event) => { if (!menu.contains(event.target)) menu.open = false; });
menu.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  menu.open = false;
  menu.querySelector("summary").focus();
});

const button = document.getElementById("phases");
button.addEventListener("click", () => phases(button.getAttribute("aria-pressed") !== "true"));
if (asked.get("phases") === "1") {
  button.setAttribute("aria-pressed", "true");
  bands();
}

const stream = follow(address(), box.dataset.cursor, hear);

// Readings that have come since the page was made.
function offer(names) {
  document.getElementById("no-readings").hidden = names.length > 0;
  const known = new Set([...readings.querySelectorAll("input")].map((one) => one.value));
  for (const { name, unit, layers: layered } of names) {
    if (!known.has(name)) {
      const label = document.createElement("label");
      const box = Object.assign(document.createElement("input"), { type: "checkbox", name: "show", value: name, checked: shown.has(name) });
      box.dataset.unit = unit;
      label.append(box, name);
      readings.insertBefore(label, readings.querySelector("button"));
    }
    if (layered) layers.offer(name, unit);
  }
  limit();
}

async function phases(wanted) {
  const button = document.getElementById("phases");
  const found = document.getElementById("phases-found");
  button.setAttribute("aria-pressed", String(wanted));
  found.hidden = !wanted;
  remember({ phases: wanted });
  found.replaceChildren();
  if (wanted) {
    found.textContent = "Fitting phases to the readings…";
    found.setAttribute("aria-busy", "true");
    const answer = await fetch(`/runs/${run}/phases`).catch(() => null);
    found.removeAttribute("aria-busy");
    if (answer?.ok) found.innerHTML = await answer.text();
    else found.textContent = "The phases could not be fitted: the desk does not answer, or the store cannot be read.";
  }
  bands();
}
function bands() {
  const text = document.querySelector("#phases-found [data-bands]")?.dataset.bands ?? "";
  const found = text.split(";").filter(Boolean).map((one) => one.split(",").map(Number));
  for (const plot of panels.plots) plot.setBands(found.map(([state, first, last]) => ({ state, first, last })));
}
