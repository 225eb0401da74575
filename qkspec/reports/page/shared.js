"use strict";
// What every page of qkspec does alike.

const control = (id) => document.getElementById(id);

let waiting = 0;
function drawAll() {
  // A dragged slider asks faster than a page can draw: once a frame is enough.
  if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; draw(); });
}

function paintLegend() {
  const present = new Set(RUNS.flatMap((run) => [...new Set(run.codes())]));
  control("legend").replaceChildren(...DATA.verdicts.filter((_, code) => present.has(code)).map((verdict) => {
    const item = element("li");
    item.title = verdict.meaning;
    item.append(swatch(verdict), verdict.name);
    return item;
  }));
}

// On paper the drawings are as wide as the page at once, and always light.
let printing = false;
function paint(id, traces, asked, config) {
  const host = control(id);
  Plotly.react(host, traces, printing ? { ...asked, autosize: false, width: host.clientWidth, height: host.clientHeight } : asked, config);
}

function watchPrinter(repaint) {
  const root = document.documentElement;
  let theme;
  addEventListener("beforeprint", () => {
    theme = root.dataset.theme;
    root.dataset.theme = "light";
    root.classList.add("printing");
    printing = true;
    repaint();
    draw();
  });
  addEventListener("afterprint", () => {
    if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
    root.classList.remove("printing");
    printing = false;
    repaint();
  });
}

// Draw again when the colours change, the room, or what is drawn on.
function watchLooks(repaint) {
  watchPrinter(repaint);
  control("theme").addEventListener("click", (event) => {
    const root = document.documentElement, next = { "": "light", light: "dark", dark: "" }[root.dataset.theme || ""];
    if (next) root.dataset.theme = next; else delete root.dataset.theme;
    event.target.textContent = `theme: ${next || "auto"}`;
    repaint();
  });
  for (const asked of [matchMedia("(prefers-color-scheme: dark)"), NARROW]) asked.addEventListener("change", repaint);
  let settled = 0;
  addEventListener("resize", () => { clearTimeout(settled); settled = setTimeout(drawAll, 200); });
}
