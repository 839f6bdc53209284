// A reading by layer: up to six layers in one plot, asked for when somebody wants them.
import { remember, remembered } from "./panels.js";
import { Plot } from "./plot.js";
import { short, whole } from "./series.js";

const MOST = 6;
const SELDOM = 3000; // ms between two looks at a run that goes on

export class Layers {
  // pick: see Plot. built: there is a new plot, which knows no marks and bands.
  constructor(run, panels, pick, built) {
    Object.assign(this, { run, panels, pick, built });
    this.place = document.getElementById("layers");
    this.choice = document.getElementById("by-layer");
    this.plot = null;
    this.step = [];
    this.layers = {};
    this.shown = [];
    this.last = 0;
    this.choice.addEventListener("change", () => this.open([]));
    const name = remembered().get("layers");
    if (name && [...this.choice.options].some((one) => one.value === name)) {
      this.choice.value = name;
      const asked = remembered().getAll("layer");
      this.open(asked.length === 1 ? asked[0].split(",") : asked);
    }
  }

  get name() {
    return this.choice.value;
  }

  // A reading that has layers.
  offer(name, unit) {
    if ([...this.choice.options].some((one) => one.value === name)) return;
    const option = new Option(name, name);
    option.dataset.unit = unit;
    this.choice.append(option);
    this.choice.closest("label").hidden = false;
  }

  async open(layers) {
    this.shut();
    this.shown = layers;
    remember({ layers: this.name, layer: this.shown });
    if (!this.name) return;
    this.place.hidden = false;
    await this.load();
  }

  shut() {
    if (this.plot) this.panels.remove(this.plot);
    this.plot = null;
    this.place.hidden = true;
    this.place.replaceChildren();
  }

  async load() {
    const { name } = this;
    const query = new URLSearchParams({ name, points: Math.max(100, Math.min(800, this.place.clientWidth)) });
    if (this.panels.zoomed) {
      query.set("from", this.panels.zoomed[0]);
      query.set("to", this.panels.zoomed[1]);
    }
    const answer = await fetch(`/api/runs/${this.run}/layers?${query}`);
    if (!answer.ok || name !== this.name) return;
    ({ step: this.step, layers: this.layers } = await answer.json());
    const known = Object.keys(this.layers);
    this.shown = this.shown.filter((one) => known.includes(one)).slice(0, MOST);
    if (!this.shown.length) this.shown = known.sort((a, b) => this.size(b) - this.size(a)).slice(0, MOST);
    this.show();
  }

  // A run that goes on is looked at now and then: layers are not among what is sent.
  tick() {
    if (!this.plot || this.panels.zoomed || Date.now() - this.last < SELDOM) return;
    this.last = Date.now();
    this.load();
  }

  size(layer) {
    return Math.abs(this.layers[layer].findLast((one) => one !== null) ?? 0);
  }

  show() {
    if (!this.plot || this.plot.lines !== this.shown.length) this.build();
    this.panels.series.set(this.plot, this.shown.map((one) => ({ step: this.step, table: { step: this.step, value: this.layers[one] } })));
    this.panels.draw();
    this.legend();
  }

  build() {
    if (this.plot) this.panels.remove(this.plot);
    const held = document.getElementById("panel").content.cloneNode(true);
    const figure = held.querySelector("figure");
    figure.classList.add("large");
    figure.querySelector("strong").textContent = `${this.name} by layer`;
    const now = figure.querySelector(".now");
    const place = figure.querySelector(".plotted");
    place.setAttribute("aria-label", `${this.name} by layer, over optimizer steps`);
    const legend = document.createElement("fieldset");
    legend.className = "legend";
    this.place.replaceChildren(figure, legend);
    this.plot = new Plot(place, {
      lines: this.shown.length,
      axis: true,
      unit: this.choice.selectedOptions[0].dataset.unit,
      view: () => this.panels.view(),
      zoom: (from, to) => this.panels.zoom(from, to),
      said: (words, step, values) => {
        now.textContent = words ? `step ${whole(step)}` : "";
        legend.querySelectorAll("output").forEach((one, n) => { one.textContent = values ? short(values[n]) : ""; });
      },
      pick: this.pick,
    });
    this.panels.add(this.plot, []);
    this.built();
  }

  // Which layers, and which line is whose.
  legend() {
    const legend = this.place.querySelector(".legend");
    const held = document.activeElement?.closest?.(".legend") ? document.activeElement.value : null;
    const title = document.createElement("legend");
    title.textContent = `Layers, at most ${MOST}`;
    legend.replaceChildren(title);
    const known = Object.keys(this.layers);
    for (const layer of [...this.shown, ...known.filter((one) => !this.shown.includes(one))]) {
      const label = document.createElement("label");
      const box = document.createElement("input");
      const place = this.shown.indexOf(layer);
      Object.assign(box, { type: "checkbox", value: layer, checked: place >= 0 });
      box.disabled = place < 0 && this.shown.length >= MOST;
      box.addEventListener("change", () => {
        this.shown = box.checked ? [...this.shown, layer] : this.shown.filter((one) => one !== layer);
        if (!this.shown.length) this.shown = [layer];
        remember({ layers: this.name, layer: this.shown });
        this.show();
      });
      label.append(box);
      if (place >= 0) label.append(sample(place));
      label.append(layer, " ");
      if (place >= 0) label.append(document.createElement("output"));
      legend.append(label);
      if (held === layer) box.focus();
    }
  }
}

// A piece of the line, as the plot draws it.
export function sample(place) {
  const of = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(of, "svg");
  const path = document.createElementNS(of, "path");
  for (const [name, value] of Object.entries({ class: `line line-${place}`, viewBox: "0 0 48 10", width: 48, height: 10, "aria-hidden": true }))
    svg.setAttribute(name, value);
  path.setAttribute("d", "M0 5H48");
  svg.append(path);
  return svg;
}
