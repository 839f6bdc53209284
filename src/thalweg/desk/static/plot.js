// Curves over steps: lines that are told apart without colour, findings as marks, phases as bands.
import { gravity, linked, together } from "./marks.js";
import { alone, short, smoothed, summary, ticked, whole } from "./series.js";

const DASHES = [[], [10, 5], [2, 3], [10, 4, 2, 4], [16, 4], [5, 2, 1, 2, 1, 2]];

function extent(u, low, high, log) {
  if (low === null || high === null || !Number.isFinite(low + high)) return log ? [1, 10] : [0, 1];
  if (log) return low === high ? [low / 2, high * 2] : [low / (high / low) ** 0.06, high * (high / low) ** 0.06];
  if (low === high) return [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  return [low - 0.06 * (high - low), high + 0.06 * (high - low)];
}

export class Plot {
  // place: an element of fixed height. lines: how many. view: gives the steps that are shown. zoom(from, to), or
  // zoom(null). said(words): what the cursor is on, or null. pick(numbers): a mark of these findings
  // was hovered or focused, or none is.
  constructor(place, { lines = 1, unit, axis = false, view, zoom, said, pick, dashes = true }) {
    Object.assign(this, { place, lines, unit, axis, view, zoom, said, pick, dashes });
    this.tables = [];
    this.marks = [];
    this.bands = [];
    this.lit = [];
    this.placed = "";
    this.log = this.smooth = this.reachable = false;
    this.undrawn = Object.assign(document.createElement("p"), { className: "undrawn" });
    place.append(this.undrawn);
    this.size = new ResizeObserver(() => this.fit());
    this.size.observe(place);
    this.themed = () => this.make();
    addEventListener("themechange", this.themed);
    place.addEventListener("keydown", (event) => this.key(event));
    place.addEventListener("blur", () => this.u?.setCursor({ left: -10, top: -10 }, true, true));
  }

  destroy() {
    this.size.disconnect();
    removeEventListener("themechange", this.themed);
    this.u?.destroy();
    this.u = null;
  }

  draw(tables) {
    this.tables = tables;
    this.count();
    if (this.u) this.u.setData(this.data());
    else this.make();
  }

  data() {
    // Undefined is no gap: a line goes on over it, else a point between two that cannot be drawn would not be seen.
    const fit = ({ step, value }) => [step, this.log ? value.map((one) => (one === null || one > 0 ? one : undefined)) : value];
    const drawn = this.smooth ? this.tables.flatMap((one) => [one, smoothed(one)]) : this.tables;
    if (!drawn.length) return [[], ...Array(this.lines * (this.smooth ? 2 : 1)).fill([])];
    return uPlot.join(drawn.map(fit));
  }

  // What a logarithmic scale leaves out, in words.
  count() {
    const points = this.tables.flatMap(({ value }) => value.filter((one) => one !== null));
    const below = this.log ? points.filter((one) => one <= 0).length : 0;
    this.undrawn.textContent = below ? `${below} of ${points.length} points not drawn: zero or less` : "";
  }

  make() {
    this.u?.destroy();
    this.count();
    if (!this.place.clientWidth) return;
    this.inks = {};
    const soft = this.ink("axis-ink");
    const grid = { stroke: this.ink("grid-ink"), width: 1 };
    const decades = { ...grid, filter: (u, splits) => splits.map((one) => (this.log && Math.log10(one) % 1 ? null : one)) };
    const font = "12px system-ui, sans-serif";
    const series = [];
    for (let n = 0; n < this.lines; n++) {
      const stroke = this.ink(`line-${n}`);
      const dash = this.dashes ? DASHES[n] : [];
      // What has no line to be seen by: a course of one or two points, and a value between gaps.
      const filter = (u, place, all) => (all ? null : alone(u.data[place]));
      const points = { show: (u) => u.data[0].length < 3, filter, size: 6, fill: stroke };
      if (this.smooth) series.push({ stroke, width: 1, alpha: 0.3, points });
      series.push({ stroke, width: 2, dash, points });
    }
    this.u = new uPlot({
      width: this.place.clientWidth,
      height: this.place.clientHeight,
      padding: [10, 28, 0, 0],
      legend: { show: false },
      scales: {
        x: { time: false, range: () => this.view() },
        y: { distr: this.log ? 3 : 1, range: (u, low, high) => extent(u, low, high, this.log) },
      },
      axes: [
        {
          stroke: soft, font, grid, ticks: grid, size: 26, gap: 4, labelSize: 18, labelFont: font, space: 70,
          label: this.axis ? "optimizer step" : undefined,
          values: (u, ticks) => ticks.map((one) => (Number.isInteger(one) ? whole(one) : "")),
        },
        {
          stroke: soft, font, grid: decades, ticks: decades, size: 66, gap: 4, labelSize: 18, labelFont: font, label: this.unit,
          values: (u, ticks) => ticked(ticks),
        },
      ],
      series: [{}, ...series],
      cursor: {
        y: false,
        sync: { key: "steps" },
        drag: { x: true, y: false, setScale: false },
        points: { size: 7 },
        bind: { dblclick: () => () => this.zoom(null) },
      },
      hooks: {
        setSelect: [(u) => this.selected(u)],
        setCursor: [(u) => this.at(u.cursor.idx)],
        drawClear: [(u) => this.drawBands(u)],
        draw: [(u) => this.drawMarks(u), (u) => this.drawNames(u), () => this.placeMarks()],
      },
    }, this.data(), this.place);
  }

  // What the page's style says, in the theme that holds now.
  ink(name) {
    if (!this.inks[name]) {
      const probe = document.createElement("i");
      probe.className = name;
      this.place.append(probe);
      this.inks[name] = getComputedStyle(probe).color;
      probe.remove();
    }
    return this.inks[name];
  }

  fit() {
    const size = { width: this.place.clientWidth, height: this.place.clientHeight };
    if (!size.width) return;
    if (!this.u) return this.make();
    if (this.u.width === size.width && this.u.height === size.height) return;
    this.u.setSize(size);
  }

  // The window or what lies in it has changed.
  again() {
    this.u?.setData(this.data());
  }

  selected(u) {
    if (u.select.width < 5) return;
    const [from, to] = [u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")];
    u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.zoom(Math.floor(from), Math.ceil(to));
  }

  at(index) {
    const step = index === null || index === undefined ? null : this.u.data[0][index];
    if (step === null || step === undefined) return this.said(null);
    // Not what is drawn: a logarithmic scale leaves out what is zero or less.
    const values = this.tables.map((one) => one.value[one.step.indexOf(step)]);
    this.said(`step ${whole(step)}: ${values.map(short).join(", ")}`, step, values);
  }

  key(event) {
    const u = this.u;
    if (!u || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = u.data[0];
    const [from, to] = this.view();
    let at = u.cursor.idx;
    const middle = at === null || at === undefined ? (from + to) / 2 : steps[at];
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 }[event.key];
    if (move && steps.length) {
      at = at === null || at === undefined ? steps.length - 1 : Math.min(Math.max(at + move, 0), steps.length - 1);
      u.setCursor({ left: u.valToPos(steps[at], "x"), top: 8 }, true, true);
    } else if (event.key === "+" || event.key === "=") this.zoom(Math.round(middle - (to - from) / 4), Math.round(middle + (to - from) / 4));
    else if (event.key === "-") this.zoom(Math.round(middle - (to - from)), Math.round(middle + (to - from)));
    else if (event.key === "0") this.zoom(null);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // marks: {number, step, name, severity}; those of the first plot can be reached by the keyboard.
  setMarks(marks, reachable) {
    this.marks = marks;
    this.reachable = reachable;
    this.placed = "";
    this.u?.redraw(false);
  }

  light(numbers) {
    this.lit = numbers;
    for (const one of this.place.querySelectorAll(".mark"))
      one.classList.toggle("lit", one.dataset.numbers.split(" ").some((number) => numbers.includes(Number(number))));
    this.u?.redraw(false);
  }

  placeMarks() {
    const u = this.u;
    if (!u) return;
    const [from, to] = [u.scales.x.min, u.scales.x.max];
    const placed = `${from} ${to} ${u.over.clientWidth}`;
    if (placed === this.placed && u.over === this.over) return;
    [this.placed, this.over] = [placed, u.over];
    const held = u.over.contains(document.activeElement) && document.activeElement.dataset.numbers?.split(" ")[0];
    u.over.querySelectorAll(".mark").forEach((one) => one.remove());
    const inside = this.marks.filter(({ step }) => step >= from && step <= to);
    for (const group of together(inside, ({ step }) => u.valToPos(step, "x"))) {
      const link = linked(group, this.pick);
      if (!this.reachable) {
        link.tabIndex = -1;
        link.setAttribute("aria-hidden", "true");
      }
      u.over.append(link);
      if (held && link.dataset.numbers.split(" ").includes(held)) link.focus({ preventScroll: true });
    }
  }

  drawMarks(u) {
    const context = u.ctx;
    context.save();
    for (const mark of [...this.marks].sort((a, b) => gravity(a) - gravity(b))) {
      const lit = this.lit.includes(mark.number);
      const x = Math.round(u.valToPos(mark.step, "x", true));
      if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) continue;
      context.strokeStyle = this.ink(`${mark.severity}-ink`);
      context.lineWidth = (lit ? 3 : 1) * devicePixelRatio;
      context.setLineDash(lit ? [] : [3 * devicePixelRatio, 3 * devicePixelRatio]);
      context.beginPath();
      context.moveTo(x, u.bbox.top);
      context.lineTo(x, u.bbox.top + u.bbox.height);
      context.stroke();
    }
    context.restore();
  }

  setBands(bands) {
    this.bands = bands;
    this.u?.redraw(false);
  }

  drawBands(u) {
    const context = u.ctx;
    context.save();
    context.beginPath();
    context.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
    context.clip();
    for (const { state, first, last } of this.bands) {
      const [from, to] = [u.valToPos(first, "x", true), u.valToPos(last, "x", true)];
      context.fillStyle = this.ink(`band-${state}`);
      context.fillRect(from, u.bbox.top, to - from, u.bbox.height);
    }
    context.restore();
  }

  // Phases by number too, where there is room.
  drawNames(u) {
    const context = u.ctx;
    context.save();
    context.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    context.textBaseline = "bottom";
    context.fillStyle = this.ink("axis-ink");
    for (const { state, first, last } of this.bands) {
      const from = Math.max(u.valToPos(first, "x", true), u.bbox.left);
      const to = Math.min(u.valToPos(last, "x", true), u.bbox.left + u.bbox.width);
      if (to - from > 14 * devicePixelRatio)
        context.fillText(state + 1, from + 4 * devicePixelRatio, u.bbox.top + u.bbox.height - 3 * devicePixelRatio);
    }
    context.restore();
  }

  // For those who do not see it: the last table's course in words.
  get words() {
    return this.tables.map(summary).filter(Boolean).join("; ");
  }
}
