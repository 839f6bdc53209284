// One reading of several runs in one plot; runs that go on are asked for what lies behind their last step.
import { Panels, remembered } from "./panels.js";
import { Plot } from "./plot.js";
import { Series, short, summary, whole } from "./series.js";
import { follow } from "./stream.js";

const figure = document.querySelector("figure.panel");
const choice = document.getElementById("choice");
choice?.querySelector("select").addEventListener("change", () => choice.submit());

if (figure) {
  const { name, unit, mark, best } = figure.dataset;
  const place = figure.querySelector(".plotted");
  const now = figure.querySelector(".now");
  const rows = [...document.querySelectorAll("tr[data-run]")];
  const unread = document.getElementById("unread");
  const wholeRuns = document.getElementById("whole");
  const runs = rows.map((row) => new Series(row.dataset.run, name, Math.max(200, Math.min(1000, place.clientWidth))));
  let waiting = 0;
  const panels = new Panels(() => {
    wholeRuns.classList.toggle("off", !panels.zoomed);
    clearTimeout(waiting);
    waiting = setTimeout(load, 120);
  }, () => Math.max(...rows.map(({ cells }) => Number(cells[3].textContent.replaceAll(",", "")))));
  panels.follow(remembered());
  const plot = new Plot(place, {
    lines: rows.length,
    unit,
    axis: true,
    view: () => panels.view(),
    zoom: (from, to) => panels.zoom(from, to),
    said: (words, step, values) => {
      now.textContent = words ? `step ${whole(step)}: ${rows.map((row, n) => `${row.dataset.run} ${short(values[n])}`).join(" · ")}` : "";
      if (words && document.activeElement === place) document.getElementById("summary").textContent = now.textContent;
    },
    pick: () => {},
  });
  panels.add(plot, runs);

  function draw() {
    panels.draw();
    const words = runs.map((one, n) => `run ${rows[n].dataset.run}: ${summary(one.table) || "no value"}`);
    place.setAttribute("aria-label", `${name}, in ${unit}, over optimizer steps; ${words.join("; ")}`);
  }
  // The numbers of a run that goes on, beside its curve.
  function tell({ cells }, steps, { step, value }) {
    const finite = value.filter((one) => one !== null);
    if (!value.length) return;
    const top = best === "least" ? Math.min(...finite) : Math.max(...finite);
    const ended = value.at(-1) === null ? "not finite" : short(value.at(-1));
    const words = [whole(steps), ended, finite.length ? `${short(top)} at ${whole(step[value.indexOf(top)])}` : ""];
    words.forEach((one, n) => { cells[3 + n].textContent = one; });
  }
  async function load() {
    const [failed] = (await Promise.allSettled(runs.map((one) => one.load(panels.zoomed)))).filter((one) => one.reason);
    unread.hidden = !failed;
    if (failed) unread.textContent = String(failed.reason.message);
    draw();
  }
  load();

  // One stream for all of them: a browser opens few to one desk.
  if (rows.some((row) => ["running", "not heard of any more"].includes(row.dataset.state)))
    follow("/api/runs/events", mark, {
      async run({ id, state, steps }) {
        const at = runs.findIndex((one) => one.run === String(id));
        if (at < 0) return;
        const said = rows[at].querySelector(".state");
        if (said.textContent !== state) said.textContent = state;
        if (panels.zoomed) return;
        await runs[at].more();
        if (runs[at].step.length > 3 * runs[at].points) await runs[at].load(null);
        draw();
        tell(rows[at], steps, runs[at].table);
      },
      trouble({ why }) {
        unread.hidden = !why;
        unread.textContent = why;
      },
      anew: () => location.reload(),
    });
}
