// The list of findings and their marks: each leads to the other, those that arrive are the server's own fragments.
import { elsewhere } from "./marks.js";
import { whole } from "./series.js";

export class Findings {
  constructor(run, panels, say) {
    this.run = run;
    this.panels = panels;
    this.say = say;
    this.list = document.getElementById("findings");
    this.count = document.getElementById("count");
    // Those that other pages list, nearest to this one.
    this.others = JSON.parse(this.list.dataset.others ?? "[]").flatMap(([name, severity, those]) => those.map(([number, step]) => ({ number, step, name, severity, elsewhere: true })));
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
    return [...this.others, ...listed];
  }

  number(item) {
    return Number(item.id.split("-")[1]);
  }

  listen(item) {
    for (const name of ["mouseenter", "focusin"]) item.addEventListener(name, () => this.light([this.number(item)]));
    for (const name of ["mouseleave", "focusout"]) item.addEventListener(name, () => this.light([]));
  }

  // A link may be older than the page on which its finding stands now.
  reached() {
    const number = Number(/^#finding-(\d{1,9})$/.exec(location.hash)?.[1] ?? 0);
    const item = document.getElementById(`finding-${number}`);
    if (item) item.focus();
    else if (number && number <= Number(this.count.textContent)) location.replace(elsewhere(number));
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

  async arrive({ number, name, step, severity }) {
    if (this.marks.some((one) => one.number === number)) return;
    if ("latest" in this.list.dataset) {
      if (!(await this.add(number))) return;
    } else this.others.push({ number, step, name, severity, elsewhere: true });
    this.count.textContent = Math.max(number, Number(this.count.textContent));
    this.say(`Finding: ${name} from step ${whole(step)}`);
    this.show();
  }

  async add(number) {
    const answer = await fetch(`/runs/${this.run}/findings/${number}`);
    if (!answer.ok) return false;
    const held = document.createElement("template");
    held.innerHTML = await answer.text();
    const item = held.content.querySelector("li");
    if (document.getElementById(item.id)) return false;
    const later = [...this.list.children].find((one) => this.number(one) > number);
    this.list.insertBefore(item, later ?? null);
    this.listen(item);
    document.getElementById("none").hidden = true;
    return true;
  }
}
