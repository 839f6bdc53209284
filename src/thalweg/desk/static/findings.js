// The list of findings and their marks: each leads to the other, those that arrive are the server's own fragments.
import { whole } from "./series.js";

export class Findings {
  constructor(run, panels, say) {
    this.run = run;
    this.panels = panels;
    this.say = say;
    this.list = document.getElementById("findings");
    // Those that only the page of all findings lists.
    this.earlier = JSON.parse(this.list.dataset.earlier ?? "[]").map(([number, step, name, severity]) => ({ number, step, name, severity, elsewhere: true }));
    for (const item of this.list.children) this.listen(item);
    this.list.addEventListener("click", (event) => {
      const link = event.target.closest("a.seek");
      if (link) this.seek(event, link.closest("li"));
    });
    // From a mark to its finding: the address changes, and so the keyboard goes on from there.
    addEventListener("hashchange", () => this.reached());
    this.reached();
  }

  get marks() {
    const listed = [...this.list.children].map((item) => ({
      number: this.number(item),
      step: Number(item.dataset.step),
      name: item.dataset.name,
      severity: item.dataset.severity,
    }));
    return [...this.earlier, ...listed];
  }

  number(item) {
    return Number(item.id.split("-")[1]);
  }

  listen(item) {
    for (const name of ["mouseenter", "focusin"]) item.addEventListener(name, () => this.light([this.number(item)]));
    for (const name of ["mouseleave", "focusout"]) item.addEventListener(name, () => this.light([]));
  }

  reached() {
    const item = /^#finding-\d+$/.test(location.hash) && document.querySelector(location.hash);
    if (item) item.focus();
  }

  // From the list to the curves: bring them into sight and the cursor to the step.
  seek(event, item) {
    const [plot] = this.panels.plots;
    if (!plot?.u) return;
    event.preventDefault();
    const step = Number(item.dataset.step);
    const [from, to] = this.panels.view();
    if (step < from || step > to) this.panels.zoom(null);
    plot.place.scrollIntoView({ block: "nearest" });
    plot.place.focus({ preventScroll: true });
    plot.u.setCursor({ left: plot.u.valToPos(step, "x"), top: 8 }, true, true);
    this.light([this.number(item)]);
  }

  light(numbers) {
    for (const item of this.list.children) item.classList.toggle("lit", numbers.includes(this.number(item)));
    for (const plot of this.panels.plots) plot.light(numbers);
  }

  show() {
    const { marks } = this;
    [...this.panels.plots].forEach((plot, place) => plot.setMarks(marks, place === 0));
  }

  async arrive({ number, name, step }) {
    if (document.getElementById(`finding-${number}`)) return;
    const answer = await fetch(`/runs/${this.run}/findings/${number}`);
    if (!answer.ok) return;
    const held = document.createElement("template");
    held.innerHTML = await answer.text();
    const item = held.content.querySelector("li");
    if (document.getElementById(item.id)) return;
    const later = [...this.list.children].find((one) => this.number(one) > number);
    this.list.insertBefore(item, later ?? null);
    this.listen(item);
    document.getElementById("none").hidden = true;
    const count = document.getElementById("count");
    count.textContent = Math.max(number, Number(count.textContent));
    this.say(`Finding: ${name} from step ${whole(step)}`);
    this.show();
  }
}
