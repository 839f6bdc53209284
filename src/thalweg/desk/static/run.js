// The live curve of a run: what is new comes as server-sent events, curves are downsampled by the server.
"use strict";
const place = document.getElementById("curve");
const run = place.dataset.run;
const choice = document.getElementById("name");
let plot = null;
let marks = [...document.querySelectorAll("#findings li")].map((one) => Number(one.dataset.step));

function short(value) {
  const size = Math.abs(value);
  return size && (size >= 1e5 || size < 1e-3) ? value.toExponential(1) : String(+value.toPrecision(4));
}

function drawMarks(u) {
  u.ctx.save();
  u.ctx.strokeStyle = "#c2410c";
  u.ctx.setLineDash([4, 4]);
  for (const step of marks) {
    const x = Math.round(u.valToPos(step, "x", true));
    if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) continue;
    u.ctx.beginPath();
    u.ctx.moveTo(x, u.bbox.top);
    u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
    u.ctx.stroke();
  }
  u.ctx.restore();
}

async function refresh(anew) {
  if (!choice.value) return;
  const points = Math.max(100, Math.min(2000, place.clientWidth));
  const answer = await fetch(`/api/runs/${run}/curve?name=${encodeURIComponent(choice.value)}&points=${points}`);
  if (!answer.ok) return;
  const data = await answer.json();
  if (plot && !anew) return plot.setData([data.step, data.value]);
  if (plot) plot.destroy();
  const colour = getComputedStyle(document.body).color;
  const axis = { stroke: colour, grid: { stroke: "#8884", width: 1 } };
  plot = new uPlot({
    width: place.clientWidth, height: 320, scales: { x: { time: false } }, axes: [axis, { ...axis, size: 76, values: (u, ticks) => ticks.map(short) }],
    series: [{ label: "step" }, { label: choice.value, stroke: "#2563eb", width: 1.5 }],
    hooks: { draw: [drawMarks] },
  }, [data.step, data.value], place);
}

function listen() {
  const source = new EventSource(`/api/runs/${run}/events?after=${place.dataset.findings}`);
  source.addEventListener("progress", (event) => {
    const news = JSON.parse(event.data);
    document.getElementById("steps").textContent = news.steps;
    document.getElementById("state").textContent = news.state;
    if (news.state !== "running") source.close();
    refresh(false);
  });
  source.addEventListener("finding", (event) => {
    const found = JSON.parse(event.data);
    const item = document.createElement("li");
    item.className = `finding ${found.severity}`;
    const head = document.createElement("h3");
    head.textContent = `${found.name} (from step ${found.step}, ${found.severity})`;
    const text = document.createElement("p");
    text.textContent = found.message;
    item.append(head, text);
    document.getElementById("findings").append(item);
    document.getElementById("none")?.remove();
    marks.push(found.step);
  });
}

choice.addEventListener("change", () => refresh(true));
addEventListener("resize", () => plot?.setSize({ width: place.clientWidth, height: 320 }));
refresh(true).then(listen);
