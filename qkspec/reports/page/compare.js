// Two runs as one: heads are matched by module and number, checkpoints by step.

const LETTERS = ["A", "B"], IDS = ["a", "b"], DIFFERS = "≠";

class Pair {
  constructor(runs) {
    this.sides = runs;
    const found = new Map();
    runs.forEach((run, side) => run.raw.head.forEach((number, head) => {
      const key = `${run.module(head).name}\0${number}`;
      if (!found.has(key)) found.set(key, [-1, -1]);
      found.get(key)[side] = head;
    }));
    this.places = [...found.values()];
    this.heads = this.places.length;
    this.steps = [...new Set(runs.flatMap((run) => run.raw.steps))].sort((a, b) => a - b);
    this.moments = this.steps.length;
    this.last = this.moments - 1;
    const stepsKnown = runs.every((run) => run.raw.stepsKnown);
    this.raw = { steps: this.steps, stepsKnown, labels: this.steps.map((step) => `${stepsKnown ? "step" : "checkpoint"} ${step}`) };
  }
  // The latest checkpoint of a side at a moment of both, -1 before its first.
  moment(side, m) { return this.sides[side].raw.steps.findLastIndex((step) => step <= this.steps[m]); }
  at(side, m, head, read, missing) {
    const own = this.places[head][side], moment = this.moment(side, m);
    return own < 0 || moment < 0 ? missing : read(this.sides[side], moment, own);
  }
  value(side, metric, m, head) { return this.at(side, m, head, (run, moment, own) => run.value(metric, moment, own), NaN); }
  verdict(side, m, head) { return this.at(side, m, head, (run, moment, own) => run.verdict(moment, own), null); }
  code(side, m, head) { return this.at(side, m, head, (run, moment, own) => run.code(moment, own), ABSENT); }
  differs(m, head) { return this.code(0, m, head) !== this.code(1, m, head); }
  either(head, read) { const side = this.places[head][0] < 0 ? 1 : 0; return read(this.sides[side], this.places[head][side]); }
  name(head) { return this.either(head, (run, own) => run.name(own)); }
  module(head) { return this.either(head, (run, own) => run.module(own)); }
  shows(m, head, name) {
    if (name === DIFFERS) return this.differs(m, head);
    return [0, 1].some((side) => (this.verdict(side, m, head) || {}).name === name);
  }
  words(m, head) { return `${this.name(head)} ${this.module(head).name} ${[0, 1].map((side) => (this.verdict(side, m, head) || {}).name).join(" ")} `; }
  // Heads whose verdicts differ first, then by the graver of the two, then by the larger κ.
  byGravity(m) {
    const kappa = (head) => Math.max(...[0, 1].map((side) => { const x = DATA.metrics.some((one) => one.name === "freezing_ratio") ? this.value(side, "freezing_ratio", m, head) : NaN; return Number.isFinite(x) ? x : -1; }));
    const keys = this.places.map((_, head) => [this.differs(m, head) ? 0 : 1, Math.min(this.code(0, m, head), this.code(1, m, head)), -kappa(head), head]);
    return keys.sort((a, b) => a.reduce((found, x, i) => found || x - b[i], 0)).map((key) => key[3]);
  }
}

const PAIR = new Pair(RUNS);
const COLUMNS = [
  { key: "module", text: true, head: "module", of: (run, m, h) => run.module(h).name },
  { key: "layer", head: "layer", of: (run, m, h) => run.either(h, (one, own) => one.moduleOf[own]), show: (run, m, h) => run.module(h).label },
  { key: "head", head: "head", of: (run, m, h) => run.either(h, (one, own) => one.raw.head[own]) },
  ...[0, 1].map((side) => ({ key: `verdict_${IDS[side]}`, text: true, head: `verdict ${LETTERS[side]}`, of: (run, m, h) => run.code(side, m, h),
    show: (run, m, h) => (run.verdict(side, m, h) || { name: "–" }).name, verdict: (run, m, h) => run.verdict(side, m, h) })),
  ...[["freezing_ratio", "κ"], ["sigma1", "σ1"], ["effective_rank", "eff. rank"], ["predicted_entropy", "entropy"], ["embedded_entropy", "embedded entropy"], ["random_entropy", "random entropy"], ["measured_entropy", "measured entropy"]]
    .filter(([key]) => DATA.metrics.some((metric) => metric.name === key)).flatMap(([key, head]) => [0, 1].map((side) => ({
    key: `${key}_${IDS[side]}`, head: `${head} ${LETTERS[side]}`, of: (run, m, h) => run.value(side, key, m, h), show: (run, m, h) => number(run.value(side, key, m, h)) }))),
];

const state = { run: PAIR, metric: "", moment: 0, head: -1, logSteps: false };

function chooseMoment(moment) {
  state.moment = moment;
  control("moment").value = moment;
  control("moment-label").textContent = PAIR.raw.labels[moment];
  control("moment").setAttribute("aria-valuetext", PAIR.raw.labels[moment]);
  drawAll();
}

function chooseHead(head) {
  state.head = state.head === head ? -1 : head;
  control("curves").value = state.head;
  drawAll();
}

function draw() {
  drawOverlay();
  drawMaps();
  drawTable(state, chooseHead);
  document.body.dataset.drawn = String(Number(document.body.dataset.drawn || 0) + 1);
}

function sideColour(side) { return css(side ? "--b" : "--a"); }

function drawMaps() {
  const { metric, moment } = state, ends = metric === "verdict" ? [] : RUNS.map((run) => span(run, metric));
  const scale = ends.length && RUNS[0].isLog(metric) === RUNS[1].isLog(metric) ? [Math.min(ends[0][0], ends[1][0]), Math.max(ends[0][1], ends[1][1])] : null;
  RUNS.forEach((run, side) => {
    const own = Math.max(PAIR.moment(side, moment), 0), head = state.head < 0 ? -1 : PAIR.places[state.head][side];
    control(`title-${IDS[side]}`).textContent = `${run.raw.name}, ${run.raw.labels[own]}`;
    drawMap({ run, metric, moment: own, head }, `map-${IDS[side]}`, scale);
  });
}

// Quantiles of the heads at one checkpoint: [5 %, median, 95 %], of those that are known.
function quantiles(run, metric, m) {
  return run.remembered(`quantiles ${metric} ${m}`, () => {
    const found = [];
    for (let head = 0; head < run.heads; head++) { const x = run.value(metric, m, head); if (Number.isFinite(x)) found.push(x); }
    found.sort((a, b) => a - b);
    return [0.05, 0.5, 0.95].map((share) => {
      if (!found.length) return null;
      const place = share * (found.length - 1), low = Math.floor(place), high = Math.ceil(place);
      return found[low] + (found[high] - found[low]) * (place - low);
    });
  });
}

function curves(side, metric, log) {
  const run = RUNS[side], x = run.raw.steps.map((step) => place(state, step)), colour = sideColour(side), name = `${LETTERS[side]} ${inert(run.raw.name)}`;
  const shown = (y) => (y === null || !Number.isFinite(y) || (log && y <= 0) ? null : y), mode = run.moments > 1 ? "lines" : "lines+markers";
  const text = run.raw.labels.map((at) => `${name}<br>${inert(at)}`), hovertemplate = "%{text}: %{y:.3g}<extra></extra>";
  const own = state.head < 0 ? -1 : PAIR.places[state.head][side], parts = run.raw.steps.map((_, m) => quantiles(run, metric, m));
  const known = parts.map((_, m) => m).filter((m) => parts[m].every((y) => shown(y) !== null));
  const edge = { type: "scatter", mode: "lines", x: known.map((m) => x[m]), hoverinfo: "skip", showlegend: false, legendgroup: LETTERS[side], line: { width: 0, color: colour } };
  const out = [
    { ...edge, y: known.map((m) => parts[m][0]) },
    { ...edge, y: known.map((m) => parts[m][2]), fill: "tonexty", fillcolor: `${colour}33` },
    { type: "scatter", mode, x, y: parts.map((part) => shown(part[1])), name: `${name}, median`, legendgroup: LETTERS[side], text, hovertemplate,
      line: { color: colour, width: own < 0 ? 2.6 : 1.2, dash: own < 0 ? "solid" : "dot" }, marker: { color: colour } },
  ];
  if (own >= 0) out.push({ type: "scatter", mode: run.moments > DOTTED ? "lines" : "lines+markers", x, y: run.raw.steps.map((_, m) => shown(run.value(metric, m, own))), name: `${name}, ${inert(run.name(own))}`,
    text, hovertemplate, line: { color: colour, width: 3 }, marker: { size: 5, color: colour } });
  return out;
}

function drawOverlay() {
  const metric = state.metric === "verdict" ? DATA.metrics[0].name : state.metric, log = RUNS.every((run) => run.isLog(metric));
  const traces = [0, 1].flatMap((side) => curves(side, metric, log));
  const losses = RUNS.map((run) => run.raw.loss), withLoss = losses.some(Boolean), marks = limitLines(metric, log);
  losses.forEach((loss, side) => {
    if (loss) traces.push({ type: "scatter", mode: "lines", x: loss.steps.map((step) => place(state, step)), y: loss.values, yaxis: "y2", name: `loss ${LETTERS[side]}`,
      text: loss.steps.map(String), hovertemplate: `loss ${LETTERS[side]}, step %{text}: %{y:.4g}<extra></extra>`, line: { color: sideColour(side), width: 1.2 } });
  });
  const parted = DATA.parted[metric], now = place(state, PAIR.steps[state.moment]);
  if (parted !== undefined && parted !== null) marks.push(milestone(state, parted, `medians part for good at step ${parted}`, withLoss ? FLOOR : 0, 1));
  if (withLoss && DATA.loss !== null) marks.push(milestone(state, DATA.loss, `the losses part at step ${DATA.loss}`, 0, 0.26));
  paint("trajectories", traces, timeLayout(state, metric, log, withLoss, marks, now), TOOLS);
}

function start() {
  for (const metric of DATA.metrics) control("metric").append(new Option(metric.label, metric.name));
  control("metric").append(new Option("verdict", "verdict"));
  state.metric = control("metric").value;
  PAIR.places.forEach((_, head) => control("curves").append(new Option(PAIR.name(head), head)));
  control("metric").addEventListener("change", (event) => { state.metric = event.target.value; drawAll(); });
  control("curves").addEventListener("change", (event) => { state.head = Number(event.target.value); drawAll(); });
  control("moment").max = PAIR.last;
  control("moment").addEventListener("input", (event) => chooseMoment(Number(event.target.value)));
  state.logSteps = logStepsOf(PAIR);
  control("log-steps").checked = state.logSteps;
  control("log-steps").addEventListener("change", (event) => { state.logSteps = event.target.checked; drawAll(); });
  const repaint = () => { paintLegend(); drawAll(); };
  watchLooks(repaint);
  buildTable(drawAll);
  paintLegend();
  chooseMoment(PAIR.last);
  draw();
  RUNS.forEach((run, side) => control(`map-${IDS[side]}`).on("plotly_click", ({ points: [point] }) => {
    if (point.z === null || point.x >= run.raw.modules[point.y].heads) return;
    chooseHead(PAIR.places.findIndex((own) => own[side] === run.starts[point.y] + point.x));
  }));
}

start();
