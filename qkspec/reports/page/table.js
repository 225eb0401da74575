// The table of heads at one checkpoint: sorted by any column, filtered by text and verdict. Names are only ever set as text.
// Its columns are COLUMNS of the page; state.run is a Run, or what has the same methods.

const PAGE = 100;
const sorting = { key: "", down: false, shown: PAGE };

function element(tag, text, className) {
  const out = document.createElement(tag);
  if (text !== undefined) out.textContent = text;
  if (className) out.className = className;
  return out;
}

function buildTable(redraw) {
  const row = document.querySelector("#heads thead tr");
  for (const column of COLUMNS) {
    const cell = element("th", undefined, `${column.text ? "text" : ""} ${column.key}`.trim()), button = element("button", column.head);
    const metric = DATA.metrics.find((one) => column.key.startsWith(one.name));
    if (metric) button.title = metric.meaning;
    button.type = "button";
    cell.scope = "col";
    cell.dataset.key = column.key;
    button.addEventListener("click", () => {
      sorting.down = sorting.key === column.key ? !sorting.down : !column.text && column.key !== "layer" && column.key !== "head";
      sorting.key = column.key;
      sorting.shown = PAGE;
      redraw();
    });
    cell.append(button);
    row.append(cell);
  }
  const only = document.getElementById("only");
  for (const verdict of DATA.verdicts) only.append(new Option(verdict.name, verdict.name));
  for (const [id, event] of [["only", "change"], ["find", "input"]])
    document.getElementById(id).addEventListener(event, () => { sorting.shown = PAGE; redraw(); });
  document.getElementById("more").addEventListener("click", () => { sorting.shown += 5 * PAGE; redraw(); });
}

function sorted(run, moment, heads) {
  const column = COLUMNS.find((one) => one.key === sorting.key);
  if (!column) return heads;
  const sign = sorting.down ? -1 : 1, missing = (x) => typeof x === "number" && Number.isNaN(x);
  const keyed = heads.map((head) => [column.of(run, moment, head), head]);
  keyed.sort(([a, h], [b, g]) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b) || h - g; // what was not measured stands last either way
    return sign * (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b) || h - g;
  });
  return keyed.map(([, head]) => head);
}

function drawTable(state, choose) {
  const { run, moment } = state, find = document.getElementById("find").value.trim().toLowerCase(), only = document.getElementById("only").value;
  const heads = sorted(run, moment, run.byGravity(moment).filter((head) => {
    return (!only || run.shows(moment, head, only)) && (!find || run.words(moment, head).toLowerCase().includes(find));
  }));
  const rows = heads.slice(0, sorting.shown).map((head) => {
    const row = element("tr", undefined, head === state.head ? "chosen" : "");
    row.dataset.head = head;
    for (const column of COLUMNS) {
      const shown = String((column.show || column.of)(run, moment, head)), cell = element("td", undefined, `${column.text ? "text" : ""} ${column.key}`.trim());
      if (column.key === "head") {
        const button = element("button", shown);
        button.type = "button";
        button.setAttribute("aria-label", `show ${run.name(head)}`);
        button.addEventListener("click", () => choose(head));
        cell.append(button);
      } else if (column.verdict && column.verdict(run, moment, head)) cell.append(swatch(column.verdict(run, moment, head)), shown);
      else cell.textContent = shown;
      row.append(cell);
    }
    return row;
  });
  const held = document.activeElement.closest("#heads tbody tr"); // a new row must not cost the keyboard its place
  document.querySelector("#heads tbody").replaceChildren(...rows);
  if (held) (rows.find((row) => row.dataset.head === held.dataset.head)?.querySelector("button") || document.getElementById("find")).focus();
  document.getElementById("found").textContent = `${heads.length} of ${run.heads} heads`;
  document.getElementById("more").hidden = heads.length <= sorting.shown;
  document.getElementById("table-title").textContent = run.raw.labels[moment];
  for (const cell of document.querySelectorAll("#heads thead th"))
    cell.ariaSort = cell.dataset.key === sorting.key ? (sorting.down ? "descending" : "ascending") : "none";
}

function swatch(verdict) {
  const out = element("span", verdict.letter, "swatch"), ground = colour(verdict);
  out.setAttribute("aria-hidden", "true"); // its name stands beside it
  out.style.background = ground;
  out.style.color = inkOn(rgb(ground));
  return out;
}
