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

// Draw again when the colours change, or the room.
function watchLooks(repaint) {
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
