// The drawings, and what they share. Each takes the page's state: {run, metric, moment, head, logSteps}.

const CIVIDIS = [[0, "#00224e"], [0.13, "#123570"], [0.25, "#3b496c"], [0.38, "#575d6d"], [0.5, "#707173"],
  [0.63, "#8a8678"], [0.75, "#a59c74"], [0.88, "#c3b369"], [1, "#fee838"]];
const DRAWN = 150; // trajectories
const DOTTED = 40; // checkpoints up to which the chosen head's line has a dot at each
const NARROW = matchMedia("(max-width: 700px)");
const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false };
const TOOLS = { ...CONFIG, displayModeBar: NARROW.matches ? false : "hover", modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };

function css(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

function isDark() {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function rgb(hex) { return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)); }

// Black or white, whichever is read better on a colour: at least 4.5 : 1 on any.
function inkOn(parts) {
  const [r, g, b] = parts.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

// The colour of a place from 0 to 1 on a scale of [place, "#rrggbb"].
function shade(scale, at) {
  const end = Math.max(scale.findIndex(([place]) => place >= at), 1), [[from, a], [to, b]] = [scale[end - 1], scale[end]], share = (at - from) / (to - from);
  return rgb(a).map((c, i) => c + (rgb(b)[i] - c) * share);
}

function colour(verdict) { return verdict ? (isDark() ? verdict.dark : verdict.light) : css("--line"); }

function axis(extra) {
  return { gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, automargin: true, ...extra };
}

function layout(extra) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--ink"), size: 12, family: "inherit" },
    margin: { l: 54, r: 16, t: 10, b: 42 }, hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--quiet"), activecolor: css("--accent") }, ...extra,
  };
}

// Where a logarithmic axis or colour bar from 10^low to 10^high is labelled.
function logPlaces(low, high) {
  const places = [], every = Math.max(Math.ceil((high - low) / 9), 1);
  for (let power = Math.floor(low / every) * every; power <= Math.ceil(high); power += every)
    for (const digit of high - low > 3 ? [1] : [1, 2, 5]) {
      const place = power + Math.log10(digit);
      if (place >= low - 1e-9 && place <= high + 1e-9) places.push(place);
    }
  return places;
}

function plain(place) {
  const power = Math.floor(place + 1e-9), digit = Math.round(10 ** (place - power));
  return Math.abs(place) < 4.5 ? String(Number((10 ** place).toPrecision(1))) : `${digit > 1 ? `${digit}·` : ""}10<sup>${power}</sup>`;
}

function logTicks(low, high) {
  const places = logPlaces(low, high);
  return { tickvals: places, ticktext: places.map(plain) };
}

// A logarithmic axis for values between e^low and e^high.
function logAxis(low, high, extra) {
  const places = logPlaces(low / Math.LN10 - 0.3, high / Math.LN10 + 0.3);
  return axis({ type: "log", tickvals: places.map((place) => 10 ** place), ticktext: places.map(plain), ...extra });
}

// A legend beside a drawing where there is room, above it where there is not.
function beside() { return NARROW.matches ? above() : { font: { size: 11 } }; }

function above() { return { orientation: "h", font: { size: 11 }, x: 0, y: 1.02, yanchor: "bottom" }; }

function upright(x, colour, dash, from = 0, to = 1) {
  return { type: "line", x0: x, x1: x, y0: from, y1: to, yref: "paper", line: { color: colour, width: 1, dash } };
}

// A dashed line across the steps with words at its top, on the side that has more room.
function milestone(state, step, words, from, to) {
  const x = place(state, step), [first, last] = stepRange(state), late = x > (first + last) / 2;
  return {
    shape: upright(x, css("--ink"), "dash", from, to),
    words: { x, y: to, yref: "paper", yanchor: "top", xanchor: late ? "right" : "left", xshift: late ? -4 : 4, showarrow: false, text: words, font: { size: 11 } },
  };
}

// The limits of a metric, drawn across the steps with their names.
function limitLines(metric, log) {
  if (metric !== "freezing_ratio") return [];
  return ["large", "frozen"].map((name) => [name, DATA.limits[name]]).map(([name, limit]) => ({
    shape: { type: "line", x0: 0, x1: 1, xref: "paper", y0: limit, y1: limit, line: { color: css("--quiet"), width: 1, dash: "dash" } },
    words: { x: 0, xref: "paper", xanchor: "left", y: log ? Math.log10(limit) : limit, yanchor: "bottom", showarrow: false, text: `${name} ≥ ${limit}`, font: { size: 11, color: css("--quiet") } },
  }));
}

const FLOOR = 0.34; // of the trajectories above a loss

// Trajectories above, losses below on the same steps: the layout of a report's picture and of a comparison's.
function timeLayout(state, metric, log, withLoss, marks, now) {
  const values = RUNS.map((run) => run.raw.values[metric]), low = Math.min(...values.map((one) => one.low)), high = Math.max(...values.map((one) => one.high));
  const title = { text: label(metric) }, domain = [withLoss ? FLOOR : 0, 1];
  return layout({
    hovermode: "closest", legend: { ...above(), traceorder: "normal" }, margin: { l: 60, r: 16, t: 40, b: 42 },
    shapes: [upright(now, css("--accent"), "dot"), ...marks.map((mark) => mark.shape)], annotations: marks.map((mark) => mark.words),
    xaxis: stepAxis(state, { anchor: withLoss ? "y2" : "y", range: stepRange(state) }),
    yaxis: log ? logAxis(low, high, { domain, title }) : axis({ domain, title }),
    ...(withLoss ? { yaxis2: axis({ domain: [0, 0.26], title: { text: "loss" } }) } : {}),
  });
}

// The map of one run; ``scale`` gives the ends of the colours where several maps share them.
function drawMap(state, id = "map", scale = null) {
  const { run, metric, moment, head } = state, rows = run.raw.modules;
  const verdicts = metric === "verdict", log = run.isLog(metric), z = [], hover = [], letters = { x: [], y: [], text: [], colours: [] };
  const ends = verdicts ? [0, DATA.verdicts.length - 1] : scale || span(run, metric);
  rows.forEach((module, i) => {
    const line = [], names = [];
    for (let j = 0; j < run.widest; j++) {
      const at = run.starts[i] + j, verdict = j < module.heads ? run.verdict(moment, at) : null;
      const value = !verdict ? NaN : verdicts ? run.code(moment, at) : run.value(metric, moment, at);
      const shown = log ? Math.log10(value) : value;
      const cell = Number.isFinite(shown) ? Math.min(Math.max(shown, ends[0]), ends[1]) : null;
      line.push(cell);
      if (verdict && (!verdict.quiet || verdicts)) {
        letters.x.push(j); letters.y.push(i); letters.text.push(verdict.letter);
        letters.colours.push(cell === null ? css("--ink") : inkOn(verdicts ? rgb(colour(verdict)) : shade(CIVIDIS, (cell - ends[0]) / (ends[1] - ends[0]))));
      }
      names.push(verdict ? `${inert(run.name(at))}<br>${verdict.name}<br>${verdicts ? "" : number(value)}${outside(run, moment, at)}` : "");
    }
    z.push(line); hover.push(names);
  });
  const colours = verdicts ? steps(DATA.verdicts.map(colour)) : CIVIDIS;
  const bar = verdicts ? undefined : { thickness: 12, outlinewidth: 0, title: { text: label(metric), side: "right" }, ...(log ? logTicks(...ends) : {}) };
  const trace = {
    type: "heatmap", z, customdata: hover, hovertemplate: "%{customdata}<extra></extra>", colorscale: colours,
    zmin: ends[0] - (verdicts ? 0.5 : 0), zmax: ends[1] + (verdicts ? 0.5 : 0), showscale: !verdicts, colorbar: bar,
    xgap: run.widest > 64 ? 0 : 1, ygap: rows.length > 64 ? 0 : 1,
  };
  const letter = { type: "scatter", mode: "text", x: letters.x, y: letters.y, text: letters.text, hoverinfo: "skip", showlegend: false,
    textfont: { size: run.widest <= 24 ? 14 : 10, weight: "bold", color: letters.colours } };
  const chosen = [];
  if (head >= 0) {
    const i = run.moduleOf[head], j = run.place(head);
    for (const [color, width] of [["#ffffff", 5], ["#0b62a8", 2.5]]) // seen on any colour of the map
      chosen.push({ type: "rect", x0: j - 0.5, x1: j + 0.5, y0: i - 0.5, y1: i + 0.5, line: { color, width } });
  }
  control(id).style.height = `${Math.min(rows.length * (rows.length <= 8 ? 44 : rows.length <= 16 ? 32 : 19), 720) + 70}px`;
  const every = Math.ceil(rows.length / 24), ticks = rows.map((_, n) => n).filter((n) => n % every === 0);
  paint(id, run.widest <= 48 ? [trace, letter] : [trace], layout({
    xaxis: axis({ title: { text: "head" }, showgrid: false, range: [-0.5, run.widest - 0.5], dtick: Math.ceil(run.widest / 16) }),
    yaxis: axis({ title: { text: "layer" }, showgrid: false, range: [rows.length - 0.5, -0.5], tickvals: ticks, ticktext: ticks.map((n) => inert(rows[n].label)) }),
    shapes: chosen,
  }), CONFIG);
}

// What a hover says of a head that leaves the baseline's bands.
function outside(run, moment, head) {
  const left = run.beyond(moment, head).filter((one) => one.holds).map((one) => SHORT[one.metric] || one.metric);
  return left.length ? `<br>outside the band of ${inert(run.raw.bands.name)}: ${left.join(", ")}` : "";
}

// Ends of a metric's colour scale over the whole run, so that the slider shows change; κ has the same for every run.
function span(run, metric) {
  if (metric === "freezing_ratio" && run.isLog(metric)) return [Math.log10(0.02), Math.log10(3)];
  if (/^(sec_|positive|predicted_|embedded_|random_|measured_)/.test(metric)) return [0, 1];
  return run.remembered(`span ${metric}`, () => {
    const log = run.isLog(metric);
    let low = Infinity, high = -Infinity;
    for (const x of run.values(metric)) {
      const y = log ? Math.log10(x) : x;
      if (Number.isFinite(y)) { low = Math.min(low, y); high = Math.max(high, y); }
    }
    return low < high ? [low, high] : [0, 1];
  });
}

function steps(colours) {
  return colours.flatMap((c, i) => [[i / colours.length, c], [(i + 1) / colours.length, c]]);
}

function label(metric) {
  const found = DATA.metrics.find((one) => one.name === metric);
  return found ? found.label : metric;
}

// Steps in logarithms from the first one after 0 on, and about linear before it.
function place(state, step) { return state.logSteps ? Math.log10(1 + step / firstStep(state.run)) : step; }

function firstStep(run) { return run.raw.steps.find((step) => step > 0) || 1; }

// Whether logarithms tell more: the checkpoints are denser at the start.
function logStepsOf(run) {
  const steps = run.raw.steps.filter((step) => step > 0);
  return steps.length > 3 && steps[steps.length - 1] >= 50 * steps[0];
}

// From the first step drawn to the last, of heads and of losses, and a little more.
function stepRange(state) {
  const { run } = state, ends = RUNS.flatMap((one) => (one.raw.loss ? one.raw.loss.steps : [])).concat(run.raw.steps);
  const from = place(state, Math.min(...ends)), to = place(state, Math.max(...ends)), pad = (to - from || 1) / 60;
  return [from - pad, to + pad];
}

function stepAxis(state, extra, narrow = NARROW.matches) {
  const { run } = state, title = { text: run.raw.stepsKnown ? "step" : "checkpoint" };
  if (!state.logSteps) return axis({ title, nticks: narrow ? 5 : 12, ...extra });
  const first = firstStep(run), last = run.raw.steps[run.moments - 1], values = [0], digits = narrow && last >= 100 * first ? [1] : [1, 2, 5];
  for (let power = 10 ** Math.floor(Math.log10(first)); power <= last; power *= 10)
    for (const digit of digits) if (digit * power >= first && digit * power <= last) values.push(digit * power);
  return axis({ title, tickangle: 0, tickvals: values.map((step) => place(state, step)), ticktext: values.map(String), ...extra });
}

// The heads whose trajectories are drawn: of every verdict its share of the room, by κ from the largest on, evenly taken.
function chosenHeads(run) {
  const groups = new Map();
  for (const head of run.byGravity(run.moments - 1)) {
    const verdict = run.verdict(run.moments - 1, head);
    groups.set(verdict, [...(groups.get(verdict) || []), head]);
  }
  const room = Math.floor(DRAWN / groups.size);
  return [...groups.values()].flatMap((heads) => heads.filter((_, i) => i % Math.ceil(heads.length / room) === 0));
}

function drawTrajectories(state) {
  const { run, moment, head } = state, { loss } = run.raw;
  control("trajectories").closest("section").hidden = run.moments < 2 && !loss;
  const metric = state.metric === "verdict" ? DATA.metrics[0].name : state.metric;
  const groups = new Map(), log = run.isLog(metric), turns = { x: [], y: [], customdata: [], text: [] };
  const value = (m, h) => { const x = run.value(metric, m, h); return Number.isFinite(x) && !(log && x <= 0) ? x : null; };
  for (const h of chosenHeads(run)) {
    const verdict = run.verdict(run.moments - 1, h);
    if (!groups.has(verdict)) groups.set(verdict, { x: [], y: [], customdata: [], text: [] });
    line(groups.get(verdict), state, value, h);
    const at = turn(run, value, h);
    if (at) { turns.x.push(place(state, at[0])); turns.y.push(at[1]); turns.customdata.push(h); turns.text.push(`${inert(run.name(h))} turned malignant at ${at[0]}`); }
  }
  const traces = drawBand(state, metric, log).concat([...groups].map(([verdict, points]) => ({
    ...points, type: "scatter", mode: run.moments > 1 ? "lines" : "markers", name: verdict.name, connectgaps: false,
    line: { color: colour(verdict), width: verdict.quiet ? 1 : 1.4 }, marker: { color: colour(verdict) }, hovertemplate: "%{text}<extra></extra>",
  })));
  if (turns.x.length) traces.push({ ...turns, type: "scatter", mode: "markers", name: "turns malignant", hovertemplate: "%{text}<extra></extra>",
    marker: { symbol: "circle", size: 7, color: css("--card"), line: { color: css("--ink"), width: 1.4 } } });
  const own = { x: [], y: [], customdata: [], text: [] };
  line(own, state, value, head);
  traces.push({ ...own, type: "scatter", mode: run.moments > DOTTED ? "lines" : "lines+markers", name: inert(run.name(head)), hovertemplate: "%{text}<extra></extra>",
    line: { color: css("--accent"), width: 3 }, marker: { size: 5 } });
  const marks = limitLines(metric, log);
  if (loss) traces.push({ type: "scatter", mode: "lines", x: loss.steps.map((s) => place(state, s)), y: loss.values, yaxis: "y2", name: "loss",
    text: loss.steps.map(String), hovertemplate: "step %{text}: loss %{y:.4g}<extra></extra>", line: { color: css("--quiet"), width: 1.2 } });
  if (loss && loss.trouble !== null) marks.push(milestone(state, loss.trouble, `goes wrong at step ${loss.trouble}`, 0, 0.26));
  paint("trajectories", traces, timeLayout(state, metric, log, Boolean(loss), marks, place(state, run.raw.steps[moment])), TOOLS);
}

// What a baseline's heads showed in the chosen head's layer, and the limit beyond which a head leaves it.
function drawBand(state, metric, log) {
  const { run, head } = state, band = run.band(metric, run.moduleOf[head]);
  if (!band) return [];
  const x = band.steps.map((step) => place(state, step)), positive = (values) => values.map((y) => (log && y <= 0 ? null : y));
  const edge = { type: "scatter", mode: "lines", x, hoverinfo: "skip", line: { width: 0.8, color: css("--baseline") } };
  const { name, margin } = run.raw.bands, where = `layer ${inert(run.module(head).label)}`;
  return [
    { ...edge, y: positive(band.low), showlegend: false },
    { ...edge, y: positive(band.high), fill: "tonexty", fillcolor: css("--baseline"), name: `${inert(name)}, ${where}` },
    { ...edge, y: positive(band.limit), name: `its limit (margin ${margin})`, line: { width: 1.2, color: css("--sound"), dash: "dot" } },
  ];
}

function line(points, state, value, head) {
  const { run } = state;
  for (let m = 0; m < run.moments; m++) {
    const y = value(m, head);
    points.x.push(place(state, run.raw.steps[m])); points.y.push(y); points.customdata.push(head);
    points.text.push(`${inert(run.name(head))}<br>${inert(run.raw.labels[m])}: ${y === null ? "–" : number(y)}`);
  }
  points.x.push(null); points.y.push(null); points.customdata.push(head); points.text.push("");
}

// Where a head turned malignant: the step is exact, the value lies on the line drawn.
function turn(run, value, head) {
  const step = run.raw.turned[head];
  if (step < 0) return null;
  const after = Math.max(run.raw.steps.findIndex((s) => s >= step), 0), before = Math.max(after - 1, 0);
  const [a, b] = [run.raw.steps[before], run.raw.steps[after]], [u, v] = [value(before, head), value(after, head)];
  if (v === null) return null;
  return [step, u === null || a === b ? v : u + (v - u) * (step - a) / (b - a)];
}

function ramp(i, count) {
  const share = count > 1 ? i / (count - 1) : 1, from = isDark() ? [96, 110, 124] : [196, 206, 216], to = isDark() ? [108, 182, 255] : [11, 98, 168];
  return `rgb(${from.map((c, n) => Math.round(c + (to[n] - c) * share)).join(",")})`;
}

function drawSpectrum(state) {
  const { run, head } = state, part = run.raw.spectra.modules[run.moduleOf[head]], labels = run.raw.spectra.labels;
  control("spectrum").hidden = control("spectrum-title").hidden = !part;
  if (!part) return;
  const traces = labels.map((name, m) => {
    const sigma = run.spectral("sigma", m, head);
    return { type: "scatter", mode: part.s.length > 1 ? "lines" : "markers", x: part.s, y: Array.from(sigma, (x) => (x > 0 ? x : null)), name: inert(name),
      line: { color: ramp(m, labels.length), width: m === labels.length - 1 ? 2.5 : 1.5 }, hovertemplate: "σ%{x} = %{y:.3g}<extra>%{fullData.name}</extra>" };
  });
  paint("spectrum", traces, layout({
    margin: { l: 54, r: 8, t: 6, b: 38 }, legend: beside(),
    xaxis: logAxis(0, Math.log(part.s[part.s.length - 1]), { title: { text: "i" } }), yaxis: logAxis(part.sigma.low, part.sigma.high, { title: { text: "σ<sub>i</sub>" } }),
  }), CONFIG);
}

function drawSec(state) {
  const { run, head } = state, at = run.moduleOf[head], part = run.raw.spectra.modules[at], labels = run.raw.spectra.labels;
  document.getElementById("sec-title").textContent = `layer ${run.raw.modules[at].label}`;
  control("sec").closest("section").hidden = !part;
  if (!part) return;
  const last = labels.length - 1, others = { x: [], y: [] }, band = part.band;
  for (let h = run.starts[at]; h < run.starts[at] + run.raw.modules[at].heads; h++) {
    others.x.push(...part.s, null);
    others.y.push(...Array.from(run.spectral("sec", last, h), (y) => (Number.isFinite(y) ? y : null)), null);
  }
  const traces = [
    { type: "scatter", mode: "lines", x: band.map((b) => b[0]), y: band.map((b) => b[1]), line: { width: 0 }, showlegend: false, hoverinfo: "skip" },
    { type: "scatter", mode: "lines", x: band.map((b) => b[0]), y: band.map((b) => b[2]), line: { width: 0 }, fill: "tonexty", fillcolor: css("--band"), name: "random weights, 5–95 %", hoverinfo: "skip" },
    { type: "scatter", mode: "lines", ...others, line: { color: css("--quiet"), width: 0.7 }, name: `every head, ${inert(labels[last])}`, hoverinfo: "skip" },
    ...labels.map((name, m) => ({ type: "scatter", mode: "lines", x: part.s, y: Array.from(run.spectral("sec", m, head), (y) => (Number.isFinite(y) ? y : null)),
      name: `head ${run.raw.head[head]}, ${inert(name)}`, line: { color: ramp(m, labels.length), width: m === last ? 3 : 1.6, dash: m === last ? "solid" : m === 0 ? "dash" : "solid" },
      hovertemplate: "SEC(%{x}) = %{y:.3f}<extra>%{fullData.name}</extra>" })),
  ];
  paint("sec", traces, layout({
    xaxis: axis({ title: { text: "s, directions" }, type: "log", tickvals: [1, 2, 4, 8, 16, 32, 64, 128, 256, 512].filter((s) => s <= part.s[part.s.length - 1]) }),
    yaxis: axis({ title: { text: "SEC(d<sub>q</sub>, s)" }, range: [0, 1.03] }), legend: beside(), margin: { l: 54, r: 16, t: 34, b: 42 },
  }), TOOLS);
}
