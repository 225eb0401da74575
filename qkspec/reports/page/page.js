// The page's state, its controls, and what is drawn again when one of them changes.

const COLUMNS = [
  { key: "module", text: true, head: "module", of: (run, m, h) => run.module(h).name },
  { key: "layer", head: "layer", of: (run, m, h) => run.moduleOf[h], show: (run, m, h) => run.module(h).label },
  { key: "head", head: "head", of: (run, m, h) => run.raw.head[h] },
  { key: "verdict", text: true, head: "verdict", of: (run, m, h) => run.code(m, h), show: (run, m, h) => run.verdict(m, h).name, verdict: (run, m, h) => run.verdict(m, h) },
  ...[["freezing_ratio", "κ"], ["sigma1", "σ1"], ["effective_rank", "eff. rank"], ["sec_star", "SEC(s*)"],
    ...(DATA.kinds.length > 1 ? DATA.kinds.map((kind) => [`${kind}_entropy`, `${kind} entropy`]) : [["entropy", "entropy"]]), ["rank", "map rank"]]
    .filter(([key]) => INDICES.some(([index]) => index === key) || DATA.metrics.some((metric) => metric.name === key)).map(([key, head]) => {
    const of = (run, m, h) => (INDICES.some(([index]) => index === key) ? run.judged(key, m, h) : run.value(key, m, h));
    return { key, head, of, show: (run, m, h) => number(of(run, m, h)) };
  }),
  ...(DATA.kinds.length > 1 ? [{ key: "map", text: true, head: "judged by", of: (run, m, h) => run.kindOf("entropy", h, m) }] : []),
  ...(RUNS.some((run) => run.raw.bands) ? [{ key: "baseline", text: true, head: "baseline", of: (run, m, h) => -run.beyond(m, h).filter((one) => one.holds).length,
    show: (run, m, h) => { const found = run.beyond(m, h); return !found.length ? "–" : found.filter((one) => one.holds).map((one) => SHORT[one.metric] || one.metric).join(", ") || "within"; } }] : []),
  { key: "turned", head: "turned", of: (run, m, h) => (run.raw.turned[h] < 0 ? NaN : run.raw.turned[h]),
    show: (run, m, h) => (run.raw.turned[h] < 0 ? "–" : String(run.raw.turned[h])) },
];

const SURE = { // as theorem.confidence has it
  certain: `(certain by weights alone: κ ≥ ${DATA.limits.frozen})`, suspect: `(suspect: by weights alone, κ < ${DATA.limits.frozen})`, measured: "(measured)",
};

const OF_MAP = { sparse: "entropy", "low rank": "rank", diagonal: "diagonal" }; // conditions that speak of a map

const state = { run: null, metric: "", moment: 0, head: 0, logSteps: false, kind: "" };

function chooseRun(index) {
  state.run = RUNS[index];
  const { run } = state;
  state.logSteps = logStepsOf(run);
  control("log-steps").checked = state.logSteps;
  control("moment").max = run.moments - 1;
  control("moment").disabled = control("log-steps").disabled = run.moments < 2;
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

function draw() {
  drawHead(); // first: the map takes the height that it leaves
  const about = DATA.metrics.find((one) => one.name === state.metric);
  control("about").textContent = about ? `${about.label}: ${about.meaning}.` : "The verdict of each head.";
  drawMap(state);
  drawTrajectories(state);
  drawSec(state);
  drawTable(state, chooseHead);
  document.body.dataset.drawn = String(Number(document.body.dataset.drawn || 0) + 1);
}

function drawHead() {
  const { run, moment, head } = state, verdict = run.verdict(moment, head);
  control("head-title").textContent = `${run.name(head)} at ${run.raw.labels[moment]}`;
  control("head-verdict").replaceChildren(...(verdict ? [swatch(verdict), element("b", verdict.name), ` ${SURE[run.sure(moment, head)] || ""}: ${verdict.meaning}`.replace(" :", ":")] : ["not in this checkpoint"]));
  const rows = run.module(head).conditions.map(([name, of, sign, given]) => {
    // The map that a verdict rests on may be of another kind from checkpoint to checkpoint.
    const index = OF_MAP[name], kind = index && run.kindOf(index, head, moment);
    const metric = index ? `${kind}_${index}` : of, limit = index === "entropy" && metric !== of ? DATA.limits.sparse[kind] : given;
    const value = run.raw.values[metric] ? run.value(metric, moment, head) : NaN, row = element("tr");
    const holds = Number.isFinite(value) && (sign === "<=" ? value <= limit : value >= limit);
    const known = Number.isFinite(value), bound = sign === "<=" ? ["≤", ">"] : ["≥", "<"];
    row.className = holds ? "yes" : "no";
    row.append(element("td", holds ? "✓" : known ? "·" : "?"), element("td", name), element("td", label(metric)),
      element("td", known ? `${number(value)} ${bound[holds ? 0 : 1]} ${number(limit)}` : "not measured"));
    return row;
  });
  rows.push(...run.beyond(moment, head).map(({ metric, value, limit, above, holds }) => {
    const row = element("tr", undefined, holds ? "yes" : "no");
    row.append(element("td", holds ? "✓" : "·"), element("td", "outside the baseline"), element("td", label(metric)),
      element("td", `${number(value)} ${above ? (holds ? ">" : "≤") : holds ? "<" : "≥"} ${number(limit)}`));
    return row;
  }));
  document.querySelector("#evidence tbody").replaceChildren(...rows);
  control("flags").textContent = (run.raw.flags[head] || []).map(([name, step]) => `${DATA.flags[name]} step ${step}`).join(", ");
  drawSpectrum(state);
  drawAttention(state);
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
  control("kind").addEventListener("change", (event) => { state.kind = event.target.value; drawAll(); });
  watchLooks(repaint);
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
