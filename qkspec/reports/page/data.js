// What the page was given: numbers in 24 bits, unpacked when they are first asked for.

const DATA = JSON.parse(document.getElementById("data").textContent);
const MISSING = 0xffffff, ZERO = MISSING - 1, LEVELS = MISSING - 2, ABSENT = 255;

function bytes(text) {
  const raw = atob(text), out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}

function unpack(packed) {
  const raw = bytes(packed.data), out = new Float64Array(raw.length / 3);
  for (let i = 0; i < out.length; i++) {
    const code = raw[3 * i] | raw[3 * i + 1] << 8 | raw[3 * i + 2] << 16;
    const value = packed.low + (packed.high - packed.low) * code / LEVELS;
    if (code === MISSING) out[i] = NaN;
    else if (packed.log) out[i] = code === ZERO ? 0 : Math.exp(value);
    else out[i] = value;
  }
  return out;
}

class Run {
  constructor(raw) {
    this.raw = raw;
    this.heads = raw.head.length;
    this.moments = raw.steps.length;
    this.cache = new Map();
    this.starts = [];
    this.moduleOf = [];
    let at = 0;
    raw.modules.forEach((module, i) => {
      this.starts.push(at);
      at += module.heads;
      for (let j = 0; j < module.heads; j++) this.moduleOf.push(i);
    });
    this.widest = Math.max(...raw.modules.map((module) => module.heads));
  }
  remembered(key, make) {
    if (!this.cache.has(key)) this.cache.set(key, make());
    return this.cache.get(key);
  }
  values(metric) { return this.remembered(metric, () => unpack(this.raw.values[metric])); }
  isLog(metric) { return metric !== "verdict" && this.raw.values[metric].log; }
  value(metric, moment, head) { return this.values(metric)[moment * this.heads + head]; }
  codes() { return this.remembered("verdict", () => bytes(this.raw.verdict)); }
  code(moment, head) { return this.codes()[moment * this.heads + head]; }
  verdict(moment, head) { return DATA.verdicts[this.code(moment, head)] || null; }
  // How sure a malignant verdict is, "" of another.
  sure(moment, head) {
    if (!this.raw.sure) return "";
    return this.raw.sure.words[this.remembered("sure", () => bytes(this.raw.sure.data))[moment * this.heads + head]] || "";
  }
  module(head) { return this.raw.modules[this.moduleOf[head]]; }
  place(head) { return head - this.starts[this.moduleOf[head]]; }
  name(head) { return `layer ${this.module(head).label} head ${this.raw.head[head]}`; }
  shows(moment, head, verdict) { return this.verdict(moment, head).name === verdict; }
  words(moment, head) { return `${this.name(head)} ${this.module(head).name} ${this.verdict(moment, head).name} `; }
  // How a head lies to a baseline's limits: {metric, value, limit, above, holds} each, holds where it leaves the band.
  beyond(moment, head) {
    if (!this.raw.bands) return [];
    return Object.entries(this.raw.bands.limits).map(([metric, packed]) => {
      const value = this.value(metric, moment, head), limit = this.remembered(`limits ${metric}`, () => unpack(packed.at))[moment * this.raw.modules.length + this.moduleOf[head]];
      return { metric, value, limit, above: packed.above, holds: packed.above ? value > limit : value < limit };
    }).filter((one) => Number.isFinite(one.value) && Number.isFinite(one.limit));
  }
  // Values (sizes) of one head at one spectral moment: "sigma" or "sec".
  spectral(kind, moment, head) {
    const at = this.moduleOf[head], part = this.raw.spectra.modules[at];
    const all = this.remembered(`${kind} ${at}`, () => unpack(part[kind]));
    const start = (moment * this.raw.modules[at].heads + this.place(head)) * part.s.length;
    return all.subarray(start, start + part.s.length);
  }
  // What a baseline showed of one module: {steps, low, high, limit}; null where it says nothing of the metric.
  band(metric, module) {
    const packed = this.raw.bands && this.raw.bands.metrics[metric];
    if (!packed) return null;
    const part = (side) => this.remembered(`${side} ${metric}`, () => unpack(packed[side])).subarray(module * packed.steps.length, (module + 1) * packed.steps.length);
    const [low, high, limit] = ["low", "high", "limit"].map(part), known = packed.steps.map((_, i) => i).filter((i) => Number.isFinite(low[i]));
    return known.length ? { steps: known.map((i) => packed.steps[i]), low: known.map((i) => low[i]), high: known.map((i) => high[i]), limit: known.map((i) => limit[i]) } : null;
  }
  // The best kind of map of which an index is known, the one that the verdict rests on; of several moments if none is given.
  kindOf(index, head, moment = null) {
    const known = (kind) => this.raw.values[`${kind}_${index}`] && (moment === null ? this.raw.steps.some((_, m) => Number.isFinite(this.value(`${kind}_${index}`, m, head))) : Number.isFinite(this.value(`${kind}_${index}`, moment, head)));
    return DATA.kinds.find(known) || "predicted";
  }
  judged(index, moment, head) {
    const name = `${this.kindOf(index, head, moment)}_${index}`;
    return this.raw.values[name] ? this.value(name, moment, head) : NaN;
  }
  // The kinds of maps of which there are pictures of a head's module, in the order of DATA.kinds.
  pictured(head) {
    const found = new Set(this.raw.maps.kept.filter((one) => one[1] === this.moduleOf[head]).map((one) => one[4]));
    return DATA.kinds.concat(DATA.kinds.includes("predicted") ? [] : ["predicted"]).filter((kind) => found.has(kind));
  }
  // The picture of a head's map nearest before a moment, or after it where there is none: {label, side, codes, errors}; null if none is kept.
  picture(moment, head, kind) {
    const at = this.moduleOf[head], { kept, labels, data } = this.raw.maps, now = this.raw.places[moment];
    const starts = this.remembered("pictures", () => { let start = 0; return kept.map(([, module, side]) => { const own = start; start += this.raw.modules[module].heads * side * side; return own; }); });
    const own = kept.map((_, i) => i).filter((i) => kept[i][1] === at && kept[i][4] === kind), before = own.filter((i) => kept[i][0] <= now);
    const chosen = before.length ? before[before.length - 1] : own[0];
    if (chosen === undefined) return null;
    const [place, , side, errors] = kept[chosen], start = starts[chosen] + this.place(head) * side * side;
    const codes = this.remembered("map bytes", () => bytes(data)).subarray(start, start + side * side);
    return { label: labels[place], side, codes, errors: place === now && errors ? errors[this.place(head)] : null };
  }
  // Heads gravest first, and of one verdict the largest κ first.
  byGravity(moment) {
    const heads = [...Array(this.heads).keys()].filter((head) => this.code(moment, head) !== ABSENT);
    const size = (head) => { const x = this.raw.values.freezing_ratio ? this.value("freezing_ratio", moment, head) : NaN; return Number.isFinite(x) ? x : -1; };
    return heads.sort((a, b) => this.code(moment, a) - this.code(moment, b) || size(b) - size(a) || a - b);
  }
}

const SHORT = { freezing_ratio: "κ", sigma1: "σ1", predicted_entropy: "entropy" };

const RUNS = DATA.runs.map((raw) => new Run(raw));

function number(x) {
  if (!Number.isFinite(x)) return "–";
  if (x === 0) return "0";
  const size = Math.abs(x);
  return size >= 1e-3 && size < 1e5 ? (size >= 999.5 ? x.toFixed(0) : x.toPrecision(3)) : x.toExponential(1);
}

// A value with its error: one figure of the error, two if it starts with 1, and the value to the same place.
function withError(value, error) {
  if (!(error > 0) || !Number.isFinite(error) || !Number.isFinite(value)) return number(value);
  const lead = Math.floor(Math.log10(error)), places = -lead + (error * 10 ** -lead < 1.95 ? 1 : 0);
  return places < 0 || places > 6 ? `${number(value)} ± ${number(error)}` : `${value.toFixed(places)} ± ${error.toFixed(places)}`;
}

// Plotly reads a few tags in its texts; a name must not become one.
function inert(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}
