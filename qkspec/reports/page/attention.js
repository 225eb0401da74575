// The chosen head's attention map: its picture, predicted or real, what is read off it, and that over the steps.

const INDICES = [["entropy", "entropy / ln T", "solid"], ["rank", "effective rank / T", "dash"], ["diagonal", "diagonal mass", "dot"], ["columns", "distinct columns / T", "dashdot"]];

const OF = {
  predicted: "weights alone, random tokens", embedded: "embedded random tokens", random: "the model run on random tokens", measured: "real inputs",
};

function drawAttention(state) {
  const { run, head, moment } = state, kind = run.kindOf("entropy", head, moment), pictured = run.pictured(head);
  const drawn = pictured.includes(state.kind) ? state.kind : pictured.includes(kind) ? kind : pictured[0];
  const found = drawn ? run.picture(moment, head, drawn) : null;
  control("indices-title").textContent = `${kind[0].toUpperCase()}${kind.slice(1)} attention map`;
  control("kinds").hidden = pictured.length < 2;
  control("kind").replaceChildren(...pictured.map((one) => new Option(one, one, false, one === drawn)));
  const errors = kind === "predicted" && drawn === "predicted" && found ? found.errors : null;
  control("readings").tBodies[0].replaceChildren(...INDICES.map(([name, text], i) => {
    const row = element("tr"), value = run.raw.values[`${kind}_${name}`] ? run.value(`${kind}_${name}`, moment, head) : NaN;
    row.append(element("td", text), element("td", withError(value, errors ? errors[i] : NaN)));
    return row;
  }));
  const { cell, note } = run.raw.maps;
  control("attention-note").textContent = found
    ? `The picture: ${drawn} (${OF[drawn]}), ${found.side * cell} tokens${cell > 1 ? `, ${cell} × ${cell} a cell` : ""}, at ${found.label}.`
      + (errors ? " ±: standard deviation over draws of tokens." : "") + (found.label === run.raw.labels[moment] ? "" : ` None is kept of ${run.raw.labels[moment]}${note ? ` (${note})` : ""}.`)
    : `No picture of this head's map is kept${note ? `: ${note}` : ""}.`;
  control("attention").hidden = !found;
  control("attention").setAttribute("aria-label", `${drawn || "No"} attention map of ${run.name(head)}; what is read off it stands beside it`);
  if (found) drawPicture(found, cell);
  drawIndices(state, run.kindOf("entropy", head));
}

function drawPicture({ side, codes }, cell) {
  const rows = (read) => Array.from({ length: side }, (_, i) => Array.from({ length: side }, (_, j) => read(codes[i * side + j])));
  const ticks = [0, 0.01, 0.1, 0.3, 1];
  const trace = {
    type: "heatmap", z: rows((code) => code / 255), customdata: rows((code) => number((code / 255) ** 2)), colorscale: CIVIDIS, zmin: 0, zmax: 1,
    x0: 0, dx: cell, y0: 0, dy: cell, hovertemplate: "query %{y}, key %{x}: %{customdata}<extra></extra>",
    colorbar: { orientation: "h", y: 1, yanchor: "bottom", thickness: 8, outlinewidth: 0, ypad: 3, ticklabelposition: "outside top", tickvals: ticks.map(Math.sqrt), ticktext: ticks.map(String), tickfont: { size: 10 } },
  };
  const end = (side - 0.5) * cell, spread = { showgrid: false, dtick: 16, constrain: "domain" };
  paint("attention", [trace], layout({
    margin: { l: 40, r: 8, t: 30, b: 34 },
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
  paint("indices", traces, layout({
    margin: { l: 40, r: 8, t: 6, b: 38 }, legend: above(), xaxis: stepAxis(state, {}, true), yaxis: axis({ range: [0, 1.03] }),
    shapes: [{ type: "line", x0: now, x1: now, y0: 0, y1: 1, yref: "paper", line: { color: css("--accent"), width: 1, dash: "dot" } }],
  }), CONFIG);
}
