// The list of runs: rows that change are changed where they are, new ones wait while somebody is in the list.
import { follow } from "./stream.js";

const MOST = 6;
const table = document.querySelector("table.runs");
const empty = document.getElementById("no-runs");

function row(html) {
  const held = document.createElement("template");
  held.innerHTML = html;
  return held.content.querySelector("tr");
}

if (empty) follow("/api/runs/events", empty.dataset.mark || "0", { run: () => location.reload() });
if (table) {
  const body = table.tBodies[0];
  const button = document.getElementById("arrived");
  const spoken = document.getElementById("arrivals");
  const compare = document.getElementById("compare-button");
  const hint = document.getElementById("compare-hint");
  const waiting = new Map();

  function chosen() {
    return [...body.querySelectorAll("input:checked")];
  }
  function limit() {
    const count = chosen().length;
    compare.disabled = count < 2;
    hint.textContent = count ? `${count} chosen${count >= MOST ? ", which is all that one plot holds" : ""}.` : "Choose two to six.";
    for (const one of body.querySelectorAll("input:not(:checked)")) one.disabled = count >= MOST;
  }
  body.addEventListener("change", limit);
  limit();

  // What somebody holds, points at or has scrolled to must not move.
  function busy() {
    return chosen().length > 0 || body.contains(document.activeElement) || body.matches(":hover") || scrollY > 0;
  }
  function insert() {
    const held = document.activeElement;
    for (const [, one] of [...waiting].sort((a, b) => a[0] - b[0])) body.prepend(row(one.html));
    waiting.clear();
    button.hidden = true;
    if (held === button) body.querySelector("a")?.focus();
    limit();
  }
  button.addEventListener("click", insert);
  function fits(one) {
    const { first, q, state } = table.dataset;
    return first === "1" && one.name.toLowerCase().includes(q.toLowerCase()) && (!state || one.kind === state.replaceAll(" ", "-"));
  }

  follow("/api/runs/events", table.dataset.mark, {
    run(one) {
      const known = document.getElementById(`run-${one.id}`);
      if (known) {
        const fresh = row(one.html);
        // Cell by cell, so that the box keeps its tick and the link its focus.
        for (let n = 2; n < fresh.cells.length; n++)
          if (known.cells[n].innerHTML !== fresh.cells[n].innerHTML) known.cells[n].replaceChildren(...fresh.cells[n].childNodes);
        return;
      }
      const top = Number(body.rows[0]?.dataset.run ?? 0);
      if (!fits(one) || one.id < top) return;
      const isNew = !waiting.has(one.id);
      waiting.set(one.id, one);
      if (!busy()) {
        insert();
        spoken.textContent = `New run: ${one.name}`;
      } else if (isNew) {
        const words = waiting.size === 1 ? "1 new run" : `${waiting.size} new runs`;
        button.textContent = `Show ${words}`;
        button.hidden = false;
        spoken.textContent = words;
      }
    },
    anew: () => location.reload(),
  });
}
