"use strict";
// Data goes into the page as text nodes alone, so that nothing in it can be run.
const data = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888", "#B5A900"];
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "pentagon", "x", "star"];
const DASHES = ["solid", "dash", "dashdot", "dot"]; // by task
const COSTS = {
  "trainable backbone entries": [run => run.counts.backbone, "log"],
  "seconds of training": [run => run.train_s, "linear"],
  "peak memory (MiB)": [run => run.peak_mb, "linear"],
};
const ALL = "all";
const names = [...new Set(data.runs.map(run => run.name))];
const get = id => document.getElementById(id);

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function row(cells, tag = "td") {
  const made = element("tr");
  made.append(...cells.map(cell => (cell instanceof Node ? cell : element(tag, cell))));
  return made;
}

function pairs(object) {
  const table = element("table");
  for (const [key, value] of Object.entries(object)) {
    const shown = typeof value === "string" ? value : Array.isArray(value) ? value.join(", ") : JSON.stringify(value);
    table.append(row([key, element("td", shown, { class: "text" })]));
  }
  return table;
}

function options(id, words) {
  get(id).append(...words.map(word => element("option", word, { value: word })));
  get(id).addEventListener("change", draw);
}

const chosen = id => get(id).value;
const budgets = name => new Set(data.runs.filter(run => run.name === name).map(run => run.budget));
const fits = run =>
  (chosen("task") === ALL || run.column === chosen("task")) &&
  (chosen("method") === ALL || run.name === chosen("method")) &&
  (chosen("budget") === ALL || run.budget === chosen("budget"));

// Sorting: numbers by value (the first number in the cell), words by letter, dashes last in both directions.
function value(text) {
  const plain = text.replaceAll(",", "");
  return text === "–" || text === "" ? null : /^[-+]?[0-9.]/.test(plain) ? parseFloat(plain) : text;
}

function sortable(table) {
  table.tHead.querySelectorAll("th").forEach((head, at) => {
    head.classList.add("sorts");
    head.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      table.tHead.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const key = line => value(line.cells[at].textContent);
      const sorted = [...body.rows].sort((one, other) => {
        const [a, b] = [key(one), key(other)];
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return down ? -order : order;
      });
      body.append(...sorted);
    });
  });
}

function drawTable() {
  const table = get("table");
  const [head, ...rows] = data.table.grid;
  const first = 3; // method, backbone, head; then one column per task
  const hidden = at =>
    at >= first && at < first + data.table.columns.length &&
    chosen("task") !== ALL && data.table.columns[at - first] !== chosen("task");
  table.caption.textContent = data.table.title;
  table.tHead.replaceChildren(row(head.filter((_, at) => !hidden(at)), "th"));
  table.tBodies[0].replaceChildren();
  rows.forEach((cells, line) => {
    const name = data.table.methods[line];
    if (chosen("method") !== ALL && name !== chosen("method")) return;
    if (chosen("budget") !== ALL && !budgets(name).has(chosen("budget"))) return;
    const made = cells.map((cell, at) => {
      const best = at >= first && data.table.best[line][at - first] === true;
      return hidden(at) ? null : element("td", cell, best ? { class: "best" } : {});
    });
    table.tBodies[0].append(row(made.filter(cell => cell)));
  });
  sortable(table);
}

function layout(xTitle, type) {
  const style = getComputedStyle(document.documentElement);
  const [text, line] = ["--text", "--line"].map(key => style.getPropertyValue(key).trim());
  const axis = { gridcolor: line, zerolinecolor: line, automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: text },
    margin: { l: 50, r: 10, t: 30, b: 40 }, modebar: { bgcolor: "rgba(0,0,0,0)" }, hovermode: "closest", legend: { orientation: "h", y: -0.25 },
    xaxis: { ...axis, title: { text: xTitle }, type }, yaxis: { ...axis, title: { text: "dev score (%)" } },
  };
}

// What should be a number and is none is a dash in the tables, and no point in the plots.
const isNumber = item => typeof item === "number" && Number.isFinite(item);
const number = (item, digits) => isNumber(item)
  ? item.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }) : "–";
const plain = text => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const mean = values => values.reduce((sum, item) => sum + item, 0) / values.length;
const settings = { responsive: true, displaylogo: false };

function groups(runs) {
  const found = new Map();
  for (const run of runs.filter(run => isNumber(run.score))) {
    const key = JSON.stringify([run.name, run.column]);
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(run);
  }
  return [...found.values()];
}

// One entry in the legend for every method.
function once(traces) {
  const seen = new Set();
  for (const trace of traces) { trace.showlegend = !seen.has(trace.name); seen.add(trace.name); }
  return traces;
}

function drawPareto(runs) {
  const [cost, type] = COSTS[chosen("cost")];
  const made = groups(runs.filter(run => isNumber(cost(run)))).map(same => {
    const at = names.indexOf(same[0].name);
    const scores = same.map(run => run.score);
    const middle = mean(scores);
    const spread = scores.length > 1
      ? Math.sqrt(scores.reduce((sum, score) => sum + (score - middle) ** 2, 0) / (scores.length - 1)) : 0;
    const x = Math.max(mean(same.map(cost)), type === "log" ? 1 : 0);
    const text = `${plain(same[0].name)}, ${plain(same[0].column)}<br>${middle.toFixed(2)} ± ${spread.toFixed(2)} ` +
      `(n=${scores.length})<br>${x.toLocaleString("en")} ${chosen("cost")}`;
    return {
      x: [x], y: [middle], error_y: { type: "data", array: [spread] }, mode: "markers", name: plain(same[0].name),
      legendgroup: same[0].name, text: [text], hovertemplate: "%{text}<extra></extra>",
      marker: { size: 10, color: COLOURS[at % 8], symbol: SYMBOLS[at % 8] },
    };
  });
  Plotly.react("pareto", once(made), layout(chosen("cost"), type), settings);
}

function drawCurves(runs) {
  const made = groups(runs).map(same => {
    const at = names.indexOf(same[0].name);
    const steps = same[0].curve.map(point => point[0]);
    const values = steps.map(step => mean(same.flatMap(run => run.curve.filter(p => p[0] === step).map(p => p[1]))));
    return {
      x: steps, y: values, mode: "lines+markers", name: plain(same[0].name), legendgroup: same[0].name,
      line: { color: COLOURS[at % 8], dash: DASHES[data.table.columns.indexOf(same[0].column) % 4] },
      marker: { symbol: SYMBOLS[at % 8] },
      hovertemplate: `%{y:.2f} after %{x} steps<br>${plain(same[0].name)}, ${plain(same[0].column)} (mean of ${same.length})<extra></extra>`,
    };
  });
  Plotly.react("curves", once(made), layout("optimizer steps", "linear"), settings);
}

const RUNS = ["method", "task", "seed", "score (%)", "± rows", "lr", "backbone", "training (s)", "MiB"];

function drawRuns(runs) {
  const table = get("runs");
  table.tHead.replaceChildren(row(RUNS, "th"));
  table.tBodies[0].replaceChildren(...runs.map(run => {
    const made = row([
      run.name, run.column, String(run.seed), number(run.score, 2), number(run.error, 2), String(run.lr),
      number(run.counts.backbone, 0), number(run.train_s, 1), number(run.peak_mb, 0),
    ]);
    made.tabIndex = 0;
    made.addEventListener("click", () => open(run, made));
    made.addEventListener("keydown", event => { if (event.key === "Enter") open(run, made); });
    return made;
  }));
  sortable(table);
}

function open(run, line) {
  document.querySelectorAll("tr.open").forEach(other => other.classList.remove("open"));
  line.classList.add("open");
  const part = (title, content) => {
    const made = element("div");
    made.append(element("h3", title), content);
    return made;
  };
  const all = element("div", null, { class: "pair" });
  all.append(part("scores", pairs(run.metrics)), part("entries", pairs(run.counts)));
  if (run.confusion) {
    const table = element("table", null, { class: "confusion" });
    table.append(row(["label \\ prediction", ...run.confusion.labels], "th"));
    run.confusion.labels.forEach((label, i) => table.append(row([label, ...run.confusion.counts[i].map(String)])));
    all.append(part("confusion", table));
  }
  if (run.search) all.append(part("learning rates tried", pairs(run.search)));
  all.append(part("settings of its own", pairs(run.config)));
  const command = element("code", run.command);
  get("run").replaceChildren(
    element("h3", `${run.name}, ${run.column}, seed ${run.seed}`), element("p", `${run.folder}, ${run.fingerprint}`), command, all,
  );
  get("run").hidden = false;
  get("run").scrollIntoView({ block: "nearest" });
}

function drawRest() {
  for (const [column, rows] of Object.entries(data.wrong)) {
    const table = element("table");
    const methods = Object.keys(rows[0]?.methods ?? {});
    table.append(row(["row", "label", "wrong", ...methods], "th"));
    rows.forEach(item => table.append(
      row([String(item.row), item.label, `${item.wrong}/${item.of}`, ...methods.map(name => item.methods[name])]),
    ));
    const part = element("details");
    part.append(element("summary", column), table);
    get("wrong").append(part);
  }
  drawFlips();
  if (!data.failures.length) get("failures").append(element("p", "none", { class: "notes" }));
  for (const failure of data.failures) {
    get("failures").append(element("p", `${failure.status}: ${failure.folder}: ${failure.reason}`));
    get("failures").append(element("code", failure.command));
  }
  get("protocol").append(pairs(data.protocol));
  get("provenance").append(pairs(data.provenance));
  get("notes").append(...data.table.notes.map(note => element("p", note)));
}

function drawFlips() {
  const [head, ...lines] = data.flips.grid;
  get("flips").hidden = !lines.length;
  get("flip-figures").tHead.append(row(head, "th"));
  get("flip-figures").tBodies[0].append(...lines.map(cells => row(cells)));
  for (const task of data.flips.rows) {
    const table = element("table");
    table.append(row(["row", "label", "became wrong", "became right"], "th"), ...task.rows.map(cells => row(cells)));
    const part = element("details");
    part.append(element("summary", `${task.title}: ${task.all} rows`), table);
    get("flip-rows").append(part);
  }
}

function draw() {
  const runs = data.runs.filter(fits);
  drawTable();
  drawPareto(runs);
  drawCurves(runs);
  drawRuns(runs);
}

const unique = key => [ALL, ...new Set(data.runs.map(run => run[key]))];
document.title = `${data.study}, peftbench`;
get("study").textContent = data.study;
get("summary").textContent = `${data.runs.length} runs, ${data.failures.length} failed`;
if (matchMedia("(prefers-color-scheme: dark)").matches) document.documentElement.classList.add("dark");
get("theme").addEventListener("click", () => { document.documentElement.classList.toggle("dark"); draw(); });
options("task", unique("column"));
options("method", unique("name"));
options("budget", unique("budget"));
options("cost", Object.keys(COSTS));
drawRest();
draw();
