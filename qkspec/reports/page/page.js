// The page's state, its controls, and what is drawn again when one of them changes.

const state = { run: null, metric: "", moment: 0, head: 0, logSteps: false };
const control = (id) => document.getElementById(id);

function chooseRun(index) {
  state.run = RUNS[index];
  const { run } = state, positive = run.raw.steps.filter((step) => step > 0);
  state.logSteps = positive.length > 3 && run.raw.steps[run.moments - 1] >= 50 * positive[0];
  control("log-steps").checked = state.logSteps;
  control("moment").max = run.moments - 1;
  state.head = run.byGravity(run.moments - 1)[0] || 0;
  chooseMoment(run.moments - 1);
}

function chooseMoment(moment) {
  state.moment = moment;
  control("moment").value = moment;
  control("moment-label").textContent = state.run.raw.labels[moment];
  control("moment").setAttribute("aria-valuetext", state.run.raw.labels[moment]);
  drawAll();
}

function chooseHead(head) {
  state.head = head;
  drawAll();
}

let waiting = 0;
function drawAll() {
  // A dragged slider asks faster than a page can draw: once a frame is enough.
  if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; draw(); });
}

function draw() {
  drawMap(state);
  drawHead();
  drawTrajectories(state);
  drawSec(state);
  drawTable(state, chooseHead);
  document.body.dataset.drawn = String(Number(document.body.dataset.drawn || 0) + 1);
}

function drawHead() {
  const { run, moment, head } = state, verdict = run.verdict(moment, head);
  control("head-title").textContent = `${run.name(head)} at ${run.raw.labels[moment]}`;
  control("head-verdict").replaceChildren(...(verdict ? [swatch(verdict), element("b", verdict.name), `: ${verdict.meaning}`] : ["not in this checkpoint"]));
  const rows = run.module(head).conditions.map(([name, metric, sign, limit]) => {
    const value = run.raw.values[metric] ? run.value(metric, moment, head) : NaN, row = element("tr");
    const holds = Number.isFinite(value) && (sign === "<=" ? value <= limit : value >= limit);
    const known = Number.isFinite(value), bound = sign === "<=" ? ["≤", ">"] : ["≥", "<"];
    row.className = holds ? "yes" : "no";
    row.append(element("td", holds ? "✓" : known ? "·" : "?"), element("td", name), element("td", label(metric)),
      element("td", known ? `${number(value)} ${bound[holds ? 0 : 1]} ${number(limit)}` : "not measured"));
    return row;
  });
  document.querySelector("#evidence tbody").replaceChildren(...rows);
  control("flags").textContent = (run.raw.flags[head] || []).map(([name, step]) => `${DATA.flags[name]} at ${step}`).join(", ");
  drawSpectrum(state);
  drawIndices(state);
}

function paintLegend() {
  control("legend").replaceChildren(...DATA.verdicts.map((verdict) => {
    const item = element("li");
    item.title = verdict.meaning;
    item.append(swatch(verdict), verdict.name);
    return item;
  }));
}

function step(key) {
  const { run, head } = state, row = run.moduleOf[head], column = run.place(head);
  const [down, across] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[key];
  const to = Math.min(Math.max(row + down, 0), run.raw.modules.length - 1);
  return run.starts[to] + Math.min(Math.max(column + across, 0), run.raw.modules[to].heads - 1);
}

function repaint() {
  paintLegend();
  drawAll();
}

function start() {
  RUNS.forEach((run, i) => control("run").append(new Option(run.raw.name, i)));
  for (const metric of DATA.metrics) control("metric").append(new Option(metric.label, metric.name));
  control("metric").append(new Option("verdict", "verdict"));
  state.metric = control("metric").value;
  control("run").addEventListener("change", (event) => chooseRun(Number(event.target.value)));
  control("metric").addEventListener("change", (event) => { state.metric = event.target.value; drawAll(); });
  control("moment").addEventListener("input", (event) => chooseMoment(Number(event.target.value)));
  control("log-steps").addEventListener("change", (event) => { state.logSteps = event.target.checked; drawAll(); });
  control("theme").addEventListener("click", (event) => {
    const root = document.documentElement, next = { "": "light", light: "dark", dark: "" }[root.dataset.theme || ""];
    if (next) root.dataset.theme = next; else delete root.dataset.theme;
    event.target.textContent = `theme: ${next || "auto"}`;
    repaint();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  control("map").addEventListener("keydown", (event) => {
    if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    chooseHead(step(event.key));
  });
  buildTable(drawAll);
  paintLegend();
  chooseRun(0);
  draw();
  control("map").on("plotly_click", ({ points: [point] }) => {
    if (point.z !== null && point.x < state.run.raw.modules[point.y].heads) chooseHead(state.run.starts[point.y] + point.x);
  });
  control("trajectories").on("plotly_click", ({ points: [point] }) => {
    if (typeof point.customdata === "number") chooseHead(point.customdata);
  });
}

start();
