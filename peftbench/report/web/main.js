"use strict";
// The page: what is chosen, the tables, every run; a live page asks for newer data now and then.
const ALL = "all";
let data = JSON.parse(get("data").textContent);
let details = null;
const hidden = new Set(); // names of rows that are not shown
const places = new Map();

const chosen = id => get(id).value;
const shown = name => !hidden.has(name) && (chosen("budget") === ALL || data.rows[name]?.budget === chosen("budget"));
const onTask = column => chosen("task") === ALL || column === chosen("task");

const results = new View(get("table"), "results");
const runs = new View(get("runs"), "runs", open);
const view = new View(get("view-table"), "other table");

function drawTable() {
  const [head, ...lines] = data.table.grid;
  const first = 3; // method, backbone, head; then one column per task
  const last = first + data.table.columns.length;
  const kept = head.map((_, at) => at).filter(at => at < first || at >= last || onTask(data.table.columns[at - first]));
  const rows = lines.flatMap((cells, line) => {
    const name = data.table.methods[line];
    return shown(name) ? [kept.map(at => ({
      text: cells[at], best: at >= first && at < last && data.table.best[line][at - first] === true,
      title: data.notes[name]?.[data.table.columns[at - first]],
    }))] : [];
  });
  results.show(data.table.title, kept.map(at => head[at]), rows, { notes: data.table.notes });
  get("notes").replaceChildren(...data.table.notes.map(note => element("p", note)));
}

// The other views: rows, and columns, of methods and tasks that are shown.
function drawView() {
  const one = data.views.find(other => other.word === chosen("view")) ?? data.views[0];
  get("view-part").hidden = !one;
  if (!one) return;
  const [method, task] = ["method", "task"].map(word => one.head.indexOf(word));
  const bold = new Set(one.bold.map(String));
  const kept = one.head.map((_, at) => at).filter(at => one.rows_of[one.head[at]]?.some(shown) ?? true);
  const rows = one.rows.flatMap((cells, line) => {
    const there = (method < 0 || shown(cells[method])) && (task < 0 || onTask(cells[task]));
    return there ? [kept.map(at => ({ text: cells[at], best: bold.has(String([line, at])) }))] : [];
  });
  view.show(one.title, kept.map(at => one.head[at]), rows, one);
  get("view-notes").replaceChildren(...one.notes.map(note => element("p", note)));
}

function drawFigures() {
  const groups = new Map([...places.keys()].map(group => [group, []]));
  for (const figure of data.figures) {
    const panels = figure.panels.filter(panel => panel.column === null || onTask(panel.column))
      .map(panel => ({ ...panel, series: panel.series.filter(one => one.rows.some(shown)) }))
      .filter(panel => panel.map || panel.series.length);
    if (!groups.has(figure.group)) groups.set(figure.group, []);
    if (panels.length && (figure.row === null || shown(figure.row))) groups.get(figure.group).push({ ...figure, panels });
  }
  for (const [group, figures] of groups) {
    if (!places.has(group)) {
      places.set(group, new Place(group));
      get("figures").append(places.get(group).section);
    }
    places.get(group).show(figures);
  }
}

const RUNS = ["method", "task", "seed", "score (%)", "± rows", "lr", "backbone", "training (s)", "MiB"];
const RUNS_NOTES = ["± rows: standard error of the score over dev rows; backbone: its trainable entries; MiB: peak memory"];
const WRONG_NOTES = ["row: its number in dev's file, from 0; wrong: runs that get it wrong of all runs, then of each method's"];
const FLIP_NOTES = ["row: its number in dev's file, from 0; became wrong, became right: in how many pairs of runs"];

function drawRuns() {
  const kept = data.runs.map((run, at) => at).filter(at => shown(data.runs[at].name) && onTask(data.runs[at].column));
  const lines = kept.map(at => data.runs[at]).map(run => [
    run.name, run.column, String(run.seed), number(run.score, 2), number(run.error, 2), String(run.lr),
    number(run.backbone, 0), number(run.train_s, 1), number(run.peak_mb, 0),
  ]);
  runs.show(quantity(kept.length, "run"), RUNS, lines, { keys: kept, words: 2, notes: RUNS_NOTES });
}

function open(at, line) {
  details ??= JSON.parse(get("details").textContent);
  const run = data.runs[at], more = details[at];
  document.querySelectorAll("tr.open").forEach(other => other.classList.remove("open"));
  line.classList.add("open");
  const part = (title, content) => {
    const made = element("div");
    made.append(element("h3", title), content);
    return made;
  };
  const all = element("div", null, { class: "pair" });
  all.append(part("scores", pairs(more.metrics)), part("entries", pairs(more.counts)));
  if (more.confusion) {
    const table = element("table", null, { class: "confusion" });
    table.append(row(["label \\ prediction", ...more.confusion.labels], "th"));
    more.confusion.labels.forEach((label, i) => table.append(row([element("th", label, { scope: "row" }), ...more.confusion.counts[i].map(String)])));
    all.append(part("confusion", table));
  }
  if (more.search) all.append(part("learning rates tried", pairs(more.search)));
  all.append(part("settings of its own", pairs(more.config)));
  get("run").replaceChildren(
    element("h3", `${run.name}, ${run.column}, seed ${run.seed}`), element("p", `${more.folder}, ${more.fingerprint}`),
    element("code", more.command), all,
  );
  get("run").hidden = false;
  get("run").scrollIntoView({ block: "nearest" });
}

// A table that is made when it is opened, which it stays when newer data come.
const opened = new Set();
function inside(place, title, name, head, rows, notes) {
  const part = element("details"), held = element("div"), key = `${place.id} ${name}`;
  part.append(element("summary", title), held);
  place.append(part);
  part.addEventListener("toggle", () => {
    part.open ? opened.add(key) : opened.delete(key);
    if (part.open && !held.hasChildNodes()) new View(held, name).show(title, head, rows, { notes, words: 2 });
  });
  part.open = opened.has(key);
}

function drawRest() {
  for (const id of ["wrong", "flip-rows", "failures", "protocol", "provenance"]) get(id).replaceChildren();
  for (const [column, rows] of Object.entries(data.wrong)) {
    const methods = Object.keys(rows[0]?.methods ?? {});
    const lines = rows.map(item => [String(item.row), item.label, `${item.wrong}/${item.of}`, ...methods.map(name => item.methods[name])]);
    inside(get("wrong"), column, `most often wrong, ${column}`, ["row", "label", "wrong", ...methods], lines, WRONG_NOTES);
  }
  const [head, ...lines] = data.flips.grid;
  get("flips").hidden = !lines.length;
  if (lines.length) new View(get("flip-figures"), "flips").show("flips", head, lines, { notes: data.flips.notes, words: 2 });
  get("flip-notes").replaceChildren(...data.flips.notes.map(note => element("p", note)));
  for (const task of data.flips.rows) {
    inside(get("flip-rows"), `${task.title}: ${quantity(task.all, "row")}`, task.title, ["row", "label", "became wrong", "became right"], task.rows, FLIP_NOTES);
  }
  if (!data.failures.length) get("failures").append(element("p", "none", { class: "notes" }));
  for (const failure of data.failures) {
    get("failures").append(element("p", `${failure.status}: ${failure.folder}: ${failure.reason}`), element("code", failure.command));
  }
  get("protocol").append(pairs(data.protocol));
  get("provenance").append(pairs(data.provenance));
}

// The list of methods: one line per row of the table; rows of one method together under a line of its own.
function drawLegend() {
  const groups = new Map();
  for (const [name, one] of Object.entries(data.rows)) groups.set(one.method, [...(groups.get(one.method) ?? []), name]);
  const lines = [];
  for (const [method, names] of groups) {
    if (names.length > 1) lines.push(box(`${method} (${names.length})`, method, names));
    lines.push(...names.map(name => box(name, name, [name], names.length > 1)));
  }
  refill(get("legend"), ...lines);
}

function box(text, looks, names, within = false) {
  const label = element("label", null, within ? { class: "inside" } : {});
  const tick = element("input", null, { type: "checkbox" });
  const off = names.filter(name => hidden.has(name)).length;
  tick.checked = off === 0;
  tick.indeterminate = off > 0 && off < names.length;
  tick.addEventListener("change", () => {
    names.forEach(name => (tick.checked ? hidden.delete(name) : hidden.add(name)));
    draw();
  });
  label.dataset.names = JSON.stringify(names);
  label.append(tick, glyph(looks), element("span", text));
  label.hidden = !names.some(found);
  return label;
}

const found = name => name.toLowerCase().includes(chosen("search").toLowerCase());

function hideAllBut(keep) {
  Object.keys(data.rows).forEach(name => (keep(name) ? hidden.delete(name) : hidden.add(name)));
  draw();
}

function draw() {
  const every = Object.keys(data.rows);
  get("shown-methods").textContent = `${every.filter(shown).length} of ${every.length} shown`;
  drawLegend();
  drawTable();
  drawVerdicts();
  drawView();
  drawFigures();
  drawRuns();
}

function fill(id, words) {
  const before = chosen(id);
  get(id).replaceChildren(...words.map(word => element("option", word, { value: word })));
  if (words.includes(before)) get(id).value = before;
}

const options = (id, words) => fill(id, [ALL, ...words]);

// A screen reader reads out what is put there, so that the same is not put there twice.
function say(text) {
  if (get("summary").textContent !== text) get("summary").textContent = text;
}

// Cells by state are known of a live page alone.
function summary() {
  const cells = Object.entries(data.cells ?? {});
  const all = quantity(cells.reduce((sum, [, number]) => sum + number, 0), "cell");
  const states = cells.length ? [`${all}: ${cells.map(([state, number]) => `${number} ${state}`).join(", ")}`] : [];
  return [`${quantity(data.runs.length, "run")}, ${data.failures.length} failed`, ...states, ...(data.problem ? [data.problem] : [])].join("; ");
}

function take(newer) {
  data = newer;
  document.title = `${data.study}, peftbench`;
  get("study").textContent = data.study;
  say(summary());
  options("task", data.table.columns);
  fill("view", data.views.map(one => one.word));
  options("budget", [...new Set(Object.values(data.rows).map(one => one.budget))]);
  drawRest();
  draw();
}

// Ask for what is there now; the server says when it is still the same.
async function poll() {
  try {
    const answer = await fetch("data.json", { cache: "no-cache" });
    if (!answer.ok) throw new Error(answer.statusText);
    const newer = await answer.text();
    if (newer !== poll.last) {
      const { details: more, ...rest } = JSON.parse(newer);
      details = more;
      take(rest);
      poll.last = newer;
    }
    say(summary());
  } catch {
    say("the server does not answer; this is the last state");
  }
  setTimeout(poll, document.body.dataset.poll);
}

if (matchMedia("(prefers-color-scheme: dark)").matches) document.documentElement.classList.add("dark");
get("theme").addEventListener("click", () => { document.documentElement.classList.toggle("dark"); drawFigures(); });
for (const id of ["task", "budget"]) get(id).addEventListener("change", draw);
get("view").addEventListener("change", drawView);
get("search").addEventListener("input", drawLegend);
get("show-all").addEventListener("click", () => hideAllBut(() => true));
get("show-none").addEventListener("click", () => hideAllBut(() => false));
get("show-found").addEventListener("click", () => hideAllBut(found));
get("copy").addEventListener("click", () => {
  get("text").querySelector("textarea").select();
  navigator.clipboard?.writeText(get("text").querySelector("textarea").value);
});
addEventListener("resize", () => { clearTimeout(draw.later); draw.later = setTimeout(drawFigures, 200); });
take(data);
if (document.body.dataset.poll) setTimeout(poll, document.body.dataset.poll);
