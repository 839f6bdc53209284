// One curve: few points of a long course from the server, new ones as they come, gaps where it was not finite.
const FULL = 3; // times the points asked for that may gather before the server is asked to thin them

export class Series {
  constructor(run, name, points) {
    this.run = run;
    this.name = name;
    this.points = points;
    this.step = [];
    this.value = [];
    this.asked = 0;
    this.all = null; // of the whole run, while a window is shown
    this.late = null; // what comes while an answer is under way
  }

  // The whole run, or a window of it in full detail; what was asked for last wins.
  async load(view) {
    const mine = ++this.asked;
    this.late = [];
    const query = new URLSearchParams({ name: this.name, points: this.points });
    if (view) {
      query.set("from", view[0]);
      query.set("to", view[1]);
    }
    let data;
    let late;
    try {
      const answer = await fetch(`/api/runs/${this.run}/curve?${query}`);
      data = await answer.json();
      if (!answer.ok) throw new Error(data.error ?? answer.statusText);
    } finally {
      if (mine === this.asked) [late, this.late] = [this.late, null];
    }
    if (mine !== this.asked) return;
    if (view) return this.show(data, view);
    [this.step, this.value] = [data.step, data.value];
    for (const one of late) this.add(one);
    this.all = this.table;
  }

  // A window, and what is known beside it, so that a line goes through a window that holds no point.
  show({ step, value }, [from, to]) {
    const known = this.all?.step ?? [];
    const [before, behind] = [known.findLastIndex((one) => one < from), known.findIndex((one) => one > to)];
    const at = (place) => (place < 0 ? [[], []] : [[known[place]], [this.all.value[place]]]);
    const [left, right] = [at(before), at(behind)];
    this.step = [...left[0], ...step, ...right[0]];
    this.value = [...left[1], ...value, ...right[1]];
  }

  // Only what lies behind the last step.
  async more() {
    const query = new URLSearchParams({ name: this.name, points: this.points, after: this.step.at(-1) ?? 0 });
    const mine = this.asked;
    const answer = await fetch(`/api/runs/${this.run}/curve?${query}`);
    if (answer.ok && mine === this.asked) this.add(await answer.json());
  }

  // New points, which may have been known already; false once there are so many that a load is due.
  add({ step, value }) {
    this.late?.push({ step, value });
    for (let n = 0; n < step.length; n++) {
      let place = this.step.length;
      while (place && this.step[place - 1] >= step[n]) place--;
      this.step.splice(place, this.step[place] === step[n] ? 1 : 0, step[n]);
      this.value.splice(place, this.value.length < this.step.length ? 0 : 1, value[n]);
    }
    return this.step.length <= FULL * this.points;
  }

  get table() {
    return { step: this.step, value: this.value };
  }
}

// A mean that forgets over a fiftieth of the course; over gaps it starts anew.
export function smoothed({ step, value }) {
  const reach = Math.max(1, (step.at(-1) - step[0]) / 50);
  let mean = null;
  let before = 0;
  return {
    step,
    value: value.map((one, n) => {
      if (one === null) return (mean = null);
      const weight = mean === null ? 1 : 1 - Math.exp(-(step[n] - before) / reach);
      before = step[n];
      return (mean = mean === null ? one : mean + weight * (one - mean));
    }),
  };
}

// Places of the values that no line shows, since nothing but gaps is beside them; undefined is no gap.
export function alone(values) {
  const found = [];
  let last = -1;
  let gap = true;
  for (let n = 0; n <= values.length; n++) {
    const one = n < values.length ? values[n] : null;
    if (one === undefined) continue;
    if (one === null && last >= 0) found.push(last);
    last = one !== null && gap ? n : -1;
    gap = one === null;
  }
  return found;
}

const brief = (value) => Number(value.toPrecision(3)).toExponential().replace("e+", "e");

export function short(value) {
  if (value === null || value === undefined) return "none";
  const size = Math.abs(value);
  return size && (size >= 1e6 || size < 1e-3) ? brief(value) : String(+value.toPrecision(4));
}

// Numbers along an axis: few letters, but as many digits as tell neighbours apart.
export function ticked(ticks) {
  const words = ticks.map((one) => (one === null ? "" : Math.abs(one) >= 1e5 ? brief(one) : short(one)));
  const said = words.filter(Boolean);
  if (new Set(said).size === said.length) return words;
  return ticks.map((one, n) => (Math.abs(one) >= 1 && Math.abs(one) < 1e7 ? String(+one.toPrecision(7)) : words[n]));
}

export const whole = (step) => Math.round(step).toLocaleString("en");

// Last, least and greatest in words; empty where there is nothing.
export function summary({ step, value }) {
  let last = -1;
  let low = Infinity;
  let high = -Infinity;
  value.forEach((one, n) => {
    if (one === null) return;
    last = n;
    low = Math.min(low, one);
    high = Math.max(high, one);
  });
  if (last < 0) return "";
  const words = `${short(value[last])} at step ${whole(step[last])} · least ${short(low)} · greatest ${short(high)}`;
  return value.at(-1) === null ? `${words} · not finite now` : words;
}
