"use strict";
// Elements, numbers, and tables as texts. Data goes into the page as text nodes alone, so that nothing in it can be run.
const get = id => document.getElementById(id);

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function quantity(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

function button(text, act, attributes = {}) {
  const made = element("button", text, { type: "button", ...attributes });
  made.addEventListener("click", act);
  return made;
}

function row(cells, tag = "td") {
  const made = element("tr");
  const attributes = tag === "th" ? { scope: "col" } : {};
  made.append(...cells.map(cell => (cell instanceof Node ? cell : element(tag, cell, attributes))));
  return made;
}

function pairs(object) {
  const table = element("table");
  for (const [key, value] of Object.entries(object)) {
    const shown = typeof value === "string" ? value : Array.isArray(value) ? value.join(", ") : JSON.stringify(value);
    table.append(row([element("th", key, { scope: "row" }), element("td", shown, { class: "text" })]));
  }
  return table;
}

// Put other children in a place; the control that had the focus there has it again.
function refill(place, ...children) {
  const controls = () => [...place.querySelectorAll("button, input")];
  const held = controls().indexOf(document.activeElement);
  place.replaceChildren(...children);
  if (held >= 0) controls()[held]?.focus();
}

// What should be a number and is none is a dash in the tables, and no point in the plots.
const isNumber = item => typeof item === "number" && Number.isFinite(item);
const formats = [0, 1, 2, 3, 4].map(digits => new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
const number = (item, digits) => (isNumber(item) ? formats[digits].format(item) : "–"); // a new format takes longer than its use
const plain = text => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

// Sorting: numbers by value (the first number in the cell), words by letter, dashes last in both directions.
function sortKey(text) {
  const bare = text.replace(/^[≈<>=?] /, "").replaceAll(",", ""); // a sign before a number says how sure it is
  return text === "–" || text === "" ? null : /^[-+]?[0-9.]/.test(bare) ? parseFloat(bare) : text;
}

function inOrder(one, other, down) {
  if (one === null || other === null) return (one === null) - (other === null);
  const order = typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other));
  return down ? -order : order;
}

const LATEX = {
  "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}",
  ">": "\\textgreater{}", "|": "\\textbar{}", '"': "\\textquotedbl{}", "†": "$^\\dagger$", "±": "$\\pm$", "–": "--",
  "−": "$-$", "≈": "$\\approx$", "→": "$\\to$", "·": "$\\cdot$",
};
const FORMS = {
  Markdown: {
    cell: text => text.replaceAll("|", "\\|").replaceAll("<", "&lt;"), bold: text => `**${text}**`,
    whole: (title, head, rows, { notes, words }) => [
      title, "", `| ${head.join(" | ")} |`, `|${head.map((_, at) => (at < words ? "---" : "---:")).join("|")}|`,
      ...rows.map(cells => `| ${cells.join(" | ")} |`), "", ...notes.map(note => `${note}  `),
    ].join("\n"),
  },
  LaTeX: {
    cell: text => text.replace(/[\\~^<>|"†±–−≈→·&%$#_{}]/gu, sign => LATEX[sign] ?? `\\${sign}`), bold: text => `\\textbf{${text}}`,
    whole: (title, head, rows, { notes, words }) => [
      "% needs \\usepackage{booktabs}", "\\begin{table}", "\\centering", `\\caption{${title}}`,
      `\\begin{tabular}{${"l".repeat(words)}${"r".repeat(head.length - words)}}`, "\\toprule", `${head.join(" & ")} \\\\`, "\\midrule",
      ...rows.map(cells => `${cells.join(" & ")} \\\\`), "\\bottomrule", "\\end{tabular}",
      ...notes.map(note => `\\par\\footnotesize ${note}`), "\\end{table}", "",
    ].join("\n"),
  },
};

function showText(text) {
  const area = get("text").querySelector("textarea");
  area.value = text;
  get("text").showModal();
  area.select();
}

// A table of texts: sorts, shows a hundred rows at a time, and is given as Markdown or LaTeX with all of its rows.
// A cell is a text, or { text, best, title }.
class View {
  constructor(place, name, open = null) {
    this.place = place;
    this.name = name;
    this.open = open; // what a click on a row's first cell does, given the row's key
    this.sorted = null;
    this.most = 100;
    this.table = element("table");
    this.more = button("more", () => { this.most *= 4; this.draw(); });
    const tools = element("div", null, { class: "tools" });
    tools.append(...Object.keys(FORMS).map(form => button(form, () => showText(this.text(form)), { "aria-label": `${name} as ${form}` })), this.more);
    const wide = element("div", null, { class: "wide tall", tabindex: "0", role: "region", "aria-label": name });
    wide.append(this.table);
    place.replaceChildren(wide, tools);
  }

  // The first columns are words; the others are numbers. Notes are footnotes of the texts.
  show(title, head, rows, { keys = rows.map((_, at) => at), notes = [], words = 1 } = {}) {
    Object.assign(this, { title, head, notes, words, lines: rows.map((cells, at) => ({ cells: cells.map(cell => (typeof cell === "object" && cell ? cell : { text: cell })), key: keys[at] })) });
    this.draw();
  }

  ordered() {
    if (!this.sorted) return this.lines;
    const at = this.head.indexOf(this.sorted.head);
    if (at < 0) return this.lines;
    const keyed = this.lines.map(line => [sortKey(line.cells[at].text), line]);
    return keyed.sort((one, other) => inOrder(one[0], other[0], this.sorted.down)).map(item => item[1]);
  }

  draw() {
    const heads = this.head.map((word, at) => {
      const made = element("th", null, { scope: "col", ...(at < this.words ? { class: "word" } : {}) });
      if (this.sorted?.head === word) made.setAttribute("aria-sort", this.sorted.down ? "descending" : "ascending");
      made.append(button(word, () => {
        this.sorted = { head: word, down: !(this.sorted?.head === word && this.sorted.down) };
        this.draw();
      }));
      return made;
    });
    const lines = this.ordered();
    const head = element("thead"), body = element("tbody");
    head.append(row(heads));
    body.append(...lines.slice(0, this.most).map(line => this.line(line)));
    refill(this.table, element("caption", this.title), head, body);
    this.more.hidden = lines.length <= this.most;
    this.more.textContent = `more (${Math.min(this.most, lines.length)} of ${lines.length.toLocaleString("en")} are shown)`;
  }

  line(line) {
    const made = row(line.cells.map((cell, at) => {
      const text = this.open && !at ? null : cell.text;
      const shown = at ? element("td", text) : element("th", text, { scope: "row" });
      if (cell.best) {
        shown.className = "best";
        shown.prepend(element("span", "best: ", { class: "spoken" })); // bold is for the eye alone
      }
      if (cell.kind) shown.classList.add(cell.kind);
      if (at < this.words) shown.classList.add("word");
      if (cell.title) shown.title = cell.title;
      if (this.open && !at) shown.append(button(cell.text, () => this.open(line.key, made)));
      return shown;
    }));
    return made;
  }

  text(form) {
    const { cell, bold, whole } = FORMS[form];
    const rows = this.ordered().map(line => line.cells.map(one => (one.best ? bold(cell(one.text)) : cell(one.text))));
    return whole(cell(this.title), this.head.map(cell), rows, { notes: this.notes.map(cell), words: this.words });
  }
}
