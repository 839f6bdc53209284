// Several plots that share one axis of steps, its window, its cursor and its switches.
export class Panels {
  // changed: called when the window is another one. last: gives the last step that there is.
  constructor(changed, last) {
    this.plots = new Set();
    this.series = new Map(); // plot to the series that it draws
    this.zoomed = null;
    this.log = this.smooth = false;
    Object.assign(this, { changed, last });
    document.querySelector(".zooms").addEventListener("click", ({ target }) => {
      if (target.id === "whole") this.zoom(null);
      else if (target.dataset.zoom) this.move(target.dataset.zoom);
    });
  }

  // The first and last step that are shown.
  view() {
    if (this.zoomed) return this.zoomed;
    let [low, high] = [Infinity, -Infinity];
    for (const those of this.series.values())
      for (const { step } of those)
        if (step.length) [low, high] = [Math.min(low, step[0]), Math.max(high, step.at(-1))];
    return low < high ? [low, high] : Number.isFinite(low) ? [low - 1, low + 1] : [0, 1];
  }

  zoom(from, to) {
    if (from === null) this.zoomed = null;
    else {
      const low = Math.max(0, Math.min(from, to));
      this.zoomed = [low, Math.max(to, low + 2)];
    }
    // At once with the points at hand, then with those of the window.
    for (const plot of this.plots) plot.again();
    this.changed();
  }

  // As the buttons say: half or twice as many steps around the same middle, or half a window to a side.
  move(how) {
    const [from, to] = this.view();
    const half = Math.max(1, Math.round((to - from) / 2));
    const last = this.last();
    if (how === "in") return this.zoom(from + Math.floor(half / 2), to - Math.floor(half / 2));
    if (!this.zoomed) return;
    if (how === "out") {
      const low = Math.max(0, from - half);
      return low === 0 && to + half >= last ? this.zoom(null) : this.zoom(low, Math.min(to + half, last));
    }
    const by = how === "earlier" ? -Math.min(half, from) : Math.max(0, Math.min(half, last - to));
    this.zoom(from + by, to + by);
  }

  // The boxes of the page that choose a logarithmic scale and smoothing, set as the address says.
  follow(asked) {
    const [log, smooth] = ["log", "smooth"].map((one) => document.getElementById(one));
    for (const one of [log, smooth]) {
      one.checked = asked.get(one.id) === "1";
      one.addEventListener("change", () => {
        this.set(log.checked, smooth.checked);
        remember({ log: log.checked, smooth: smooth.checked });
      });
    }
    [this.log, this.smooth] = [log.checked, smooth.checked];
  }

  add(plot, series) {
    this.plots.add(plot);
    this.series.set(plot, series);
    plot.log = this.log;
    plot.smooth = this.smooth;
  }

  remove(plot) {
    this.plots.delete(plot);
    this.series.delete(plot);
    plot.destroy();
  }

  // After new points: every plot's axis may have grown.
  draw() {
    for (const plot of this.plots) plot.draw(this.series.get(plot).map((one) => one.table));
  }

  set(log, smooth) {
    [this.log, this.smooth] = [log, smooth];
    for (const plot of this.plots) {
      [plot.log, plot.smooth] = [log, smooth];
      plot.make();
    }
  }
}

// What a page keeps in its address, so that a link shows the same.
export function remember(values) {
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(values)) {
    url.searchParams.delete(name);
    const several = Array.isArray(value) ? value : [value === true ? "1" : value || ""];
    // A name that holds a comma stands alone.
    const texts = several.some((one) => one.includes(",")) ? several : [several.join(",")];
    for (const text of texts) if (text) url.searchParams.append(name, text);
  }
  history.replaceState(history.state, "", url.href.replaceAll("%2C", ","));
}

export const remembered = () => new URL(location.href).searchParams;
