// Returns [ratio, what it is] of every text in the page, its contrast by WCAG 2 to what lies under it, least first.
const parse = (text) => { const m = text.match(/[\d.]+/g).map(Number); return m.length > 3 ? m : [...m.slice(0, 3), 1]; };
const light = (c) => {
  const [r, g, b] = c.slice(0, 3).map((x) => (x / 255 <= 0.04045 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (e) => {
  for (let at = e; at; at = at.parentElement) { const c = parse(getComputedStyle(at).backgroundColor); if (c[3] > 0.99) return c; }
  return [255, 255, 255];
};
const found = [];
for (const e of document.querySelectorAll("body *")) {
  const words = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!words || !e.getClientRects().length || e.closest("script, style, noscript, option, .textpoint")) continue;
  const svg = e.closest("svg"), style = getComputedStyle(e);
  const [a, b] = [light(parse(svg ? style.fill : style.color)), light(ground(svg ? svg.parentElement : e))].sort((x, y) => y - x);
  found.push([(a + 0.05) / (b + 0.05), `${e.tagName}.${e.getAttribute("class") || ""} ${e.textContent.slice(0, 40)}`]);
}
return found.sort((x, y) => x[0] - y[0]);
