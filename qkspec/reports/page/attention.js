// The chosen head's attention map: the picture that the weights predict, what is read off it, and that over the steps.

const INDICES = [["entropy", "entropy / ln T", "solid"], ["rank", "effective rank / T", "dash"], ["diagonal", "diagonal mass", "dot"], ["columns", "distinct columns / T", "dashdot"]];

// The kind of map that the verdict rests on.
function kindOf({ run, head }) {
  const known = (kind) => run.raw.steps.some((_, m) => Number.isFinite(run.value(`${kind}_entropy`, m, head)));
  return DATA.kinds.find(known) || "predicted";
}

function drawAttention(state) {
  const { run, head, moment } = state, kind = kindOf(state), found = run.picture(moment, head);
  control("indices-title").textContent = `${kind[0].toUpperCase()}${kind.slice(1)} attention map`;
  const errors = kind === "predicted" && found ? found.errors : null;
  control("readings").tBodies[0].replaceChildren(...INDICES.map(([name, text], i) => {
    const row = element("tr"), value = run.raw.values[`${kind}_${name}`] ? run.value(`${kind}_${name}`, moment, head) : NaN;
    row.append(element("td", text), element("td", number(value) + (errors && Number.isFinite(value) ? ` ± ${Number(errors[i].toPrecision(1))}` : "")));
    return row;
  }));
  const { cell, note } = run.raw.maps;
  control("attention-note").textContent = found
    ? `The picture: weights alone, ${found.side * cell} random tokens${cell > 1 ? `, ${cell} × ${cell} a cell` : ""}, at ${found.label}.`
      + (errors ? " ±: standard deviation over draws of tokens." : "") + (found.label === run.raw.labels[moment] ? "" : ` None is kept of ${run.raw.labels[moment]}${note ? ` (${note})` : ""}.`)
    : `No picture of this head's map is kept${note ? `: ${note}` : ""}.`;
  control("attention").hidden = !found;
  if (found) drawPicture(found, cell);
  drawIndices(state, kind);
}

function drawPicture({ side, codes }, cell) {
  const rows = (read) => Array.from({ length: side }, (_, i) => Array.from({ length: side }, (_, j) => read(codes[i * side + j])));
  const ticks = [0, 0.01, 0.1, 0.3, 1];
  const trace = {
    type: "heatmap", z: rows((code) => code / 255), customdata: rows((code) => number((code / 255) ** 2)), colorscale: CIVIDIS, zmin: 0, zmax: 1,
    x0: 0, dx: cell, y0: 0, dy: cell, hovertemplate: "query %{y}, key %{x}: %{customdata}<extra></extra>",
    colorbar: { thickness: 8, outlinewidth: 0, tickvals: ticks.map(Math.sqrt), ticktext: ticks.map(String), tickfont: { size: 10 }, title: { text: "weight", side: "right", font: { size: 11 } } },
  };
  const end = (side - 0.5) * cell, spread = { showgrid: false, dtick: 16, constrain: "domain" };
  Plotly.react("attention", [trace], layout({
    margin: { l: 40, r: 4, t: 4, b: 34 },
    xaxis: axis({ ...spread, title: { text: "key" }, range: [-cell / 2, end] }), yaxis: axis({ ...spread, title: { text: "query" }, range: [end, -cell / 2], scaleanchor: "x" }),
  }), CONFIG);
}

function drawIndices(state, kind) {
  const { run, head, moment } = state;
  control("indices").hidden = run.moments < 2;
  if (run.moments < 2) return;
  const x = run.raw.steps.map((step) => place(state, step));
  const colours = isDark() ? ["#6cb6ff", "#ff9e64", "#2fc39b", "#e08fbd"] : ["#0072b2", "#d55e00", "#009e73", "#a8487e"];
  const traces = INDICES.filter(([name]) => run.raw.values[`${kind}_${name}`]).map(([name, text, dash], i) => ({
    type: "scatter", mode: "lines", name: text, x, y: run.raw.steps.map((_, m) => { const y = run.value(`${kind}_${name}`, m, head); return Number.isFinite(y) ? y : null; }),
    line: { color: colours[i], dash, width: 1.8 }, hovertemplate: "%{y:.3f}<extra>%{fullData.name}</extra>",
  }));
  const now = place(state, run.raw.steps[moment]);
  Plotly.react("indices", traces, layout({
    margin: { l: 40, r: 8, t: 6, b: 38 }, legend: above(), xaxis: stepAxis(state, {}, true), yaxis: axis({ range: [0, 1.03] }),
    shapes: [{ type: "line", x0: now, x1: now, y0: 0, y1: 1, yref: "paper", line: { color: css("--accent"), width: 1, dash: "dot" } }],
  }), CONFIG);
}
