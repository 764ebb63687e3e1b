"use strict";
// Figures as the data describe them (peftbench/report/figures/parts.py), drawn when they come into view.
const SETTINGS = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "toImage"] };
const GLYPHS = {
  circle: "●", square: "■", "triangle-up": "▲", diamond: "◆", "triangle-down": "▼", cross: "✚", x: "✖", star: "★",
  pentagon: "⬟", "triangle-left": "◀", "triangle-right": "▶",
};
const MOST_BANDS = 12; // series; with more, bands hide each other
const MAP_WORDS = 100; // pixels for the words below a map, which are long and stand at an angle
const MOST_MARKERS = 30; // on one line
const MOST_DOTS = 4000; // single seeds in one figure
const EVERY_NUMBER = ["panel", "series", "x", "y", "from", "to", "in words"];

const look = name => data.styles[name] ?? { colour: "#808080", symbol: "circle", dash: "solid" };
const hover = "%{text}<extra></extra>";

function glyph(name) {
  const { colour, symbol } = look(name);
  const made = element("span", GLYPHS[symbol.replace("-open", "")], { class: "glyph", "aria-hidden": "true" });
  made.style.color = colour;
  if (symbol.endsWith("-open")) {
    made.classList.add("open-glyph");
    made.style.setProperty("--stroke", colour);
  }
  return made;
}

function faded(colour, share) {
  return `rgba(${[1, 3, 5].map(at => parseInt(colour.slice(at, at + 2), 16)).join(",")},${share})`;
}

// Every kind of figure: (panel, axes) -> Plotly's traces. Axes name the panel's place in the grid.
const TRACES = {
  points(panel, axes, roomy, dot) {
    const traces = front(panel.front, axes, panel.log);
    if (roomy) traces.push(dots(panel, axes, dot, { size: 4, opacity: 0.45 }));
    for (const one of panel.series) traces.push({
      ...axes, x: one.x, y: one.y, mode: "markers", name: plain(one.name), hovertemplate: hover,
      text: one.notes.map(note => words(one.name, panel, note)), error_y: bars(one.y, one, look(one.name).colour),
      marker: { size: 9, color: look(one.name).colour, symbol: look(one.name).symbol },
    });
    return traces;
  },

  lines(panel, axes) {
    const traces = [];
    for (const one of panel.series) {
      const { colour, symbol, dash } = look(one.name);
      if (one.low.length && panel.series.length <= MOST_BANDS) traces.push({
        ...axes, x: [...one.x, ...one.x.toReversed()], y: [...one.high, ...one.low.toReversed()], mode: "lines",
        fill: "toself", fillcolor: faded(colour, 0.13), line: { width: 0 }, hoverinfo: "skip", name: "band",
      });
      traces.push({
        ...axes, x: one.x, y: one.y, mode: "lines+markers", name: plain(one.name),
        line: { color: colour, dash, width: 1.5 }, marker: { symbol, size: 6, maxdisplayed: MOST_MARKERS }, hovertemplate: hover,
        text: one.notes.map(note => words(one.name, panel, note)),
      });
      if (one.dots.length) traces.push({
        ...axes, x: one.dots.map(dot => dot[0]), y: one.dots.map(dot => dot[1]), mode: "markers", hoverinfo: "skip",
        name: "chosen", marker: { size: 14, symbol: "circle-open", color: colour },
      });
    }
    return traces;
  },

  rows(panel, axes, roomy, dot) {
    const traces = roomy ? [dots(panel, axes, dot, { size: 5, opacity: 0.5 }, true)] : [];
    for (const one of panel.series) traces.push({
      ...axes, x: one.x, y: [plain(one.name)], mode: "markers", name: plain(one.name), hovertemplate: hover,
      text: one.notes.map(note => words(one.name, panel, note)), error_x: bars(one.x, one, look(one.name).colour),
      marker: { size: 9, color: look(one.name).colour, symbol: look(one.name).symbol },
    });
    return traces;
  },

  map(panel, axes) {
    const { rows, columns, values } = panel.map;
    return [{
      ...axes, type: "heatmap", x: columns.map(plain), y: rows.map(plain), z: values, coloraxis: "coloraxis",
      hovertemplate: "%{y}, %{x}: %{z:.1f}%<extra></extra>", name: plain(panel.title),
    }];
  },
};

const words = (name, panel, note) => `${plain(name)}, ${plain(panel.title)}<br>${plain(note)}`;

function bars(middle, one, color) {
  if (!one.low.length) return { visible: false };
  return {
    type: "data", symmetric: false, color, thickness: 1.5, width: 3,
    array: one.high.map((high, at) => high - middle[at]), arrayminus: one.low.map((low, at) => middle[at] - low),
  };
}

function dots(panel, axes, word, marker, named = false) {
  const every = panel.series.flatMap(one => one.dots.map(dot => [dot, one]));
  return {
    ...axes, x: every.map(([dot]) => dot[0]), y: every.map(([dot, one]) => (named ? plain(one.name) : dot[1])),
    mode: "markers", name: "dots", hovertemplate: hover,
    text: every.map(([dot, one]) => `${plain(one.name)}, ${word}<br>${dot[named ? 0 : 1].toFixed(2)}`),
    marker: { ...marker, color: every.map(([, one]) => look(one.name).colour) },
  };
}

const frontWords = (steps, at) => `${number(steps.y[at], 2)}, 95% interval ${number(steps.low[at], 2)} to ${number(steps.high[at], 2)}`;

// Where a front can be pointed at: places along every step, away from the methods at its ends. Gives x and the step.
function alongFront(steps, log) {
  const [to, from] = log ? [Math.log10, value => 10 ** value] : [value => value, value => value];
  return steps.x.slice(1).flatMap((end, at) =>
    [0.1, 0.3, 0.5, 0.7, 0.9].map(share => [from(to(steps.x[at]) + share * (to(end) - to(steps.x[at]))), at]));
}

function front(steps, axes, log) {
  if (!steps) return [];
  const line = { shape: "hv", width: 0 };
  const shared = { ...axes, x: steps.x, mode: "lines", hoverinfo: "skip" };
  const along = alongFront(steps, log);
  return [
    {
      ...axes, x: along.map(([x]) => x), y: along.map(([, at]) => steps.y[at]), mode: "markers", marker: { opacity: 0 }, name: "front, in words",
      hovertemplate: hover, text: along.map(([, at]) => `front: ${frontWords(steps, at)}`),
    },
    { ...shared, y: steps.low, line, name: "front, low" },
    { ...shared, y: steps.high, line, fill: "tonexty", fillcolor: "rgba(128,128,128,0.2)", name: "front, high" },
    { ...shared, y: steps.y, line: { shape: "hv", width: 1, color: "#808080" }, name: "front" },
  ];
}

const namesOf = figure => [...new Set(figure.panels.flatMap(panel => panel.series.map(one => one.name)))];

// Where a log axis has ticks: few decades need those between them, or there may be no tick at all; many are too close.
function logTicks(panel, narrow) {
  const every = panel.series.flatMap(one => one.x).filter(x => x > 0);
  const decades = Math.log10(Math.max(...every) / Math.min(...every));
  return { dtick: decades < 1 ? "D2" : narrow && decades > 3 ? 2 : 1 };
}

// A grid of small plots, as many side by side as there is room for.
function drawn(figure, width) {
  const count = figure.panels.length;
  const most = Math.max(1, Math.min(count, Math.floor(width / (figure.kind === "map" ? 220 : 285))));
  const down = Math.ceil(count / most);
  const across = Math.ceil(count / down);
  const names = namesOf(figure);
  const each = figure.kind === "rows" ? 90 + 20 * names.length : 290;
  const seeds = figure.panels.reduce((sum, panel) => sum + panel.series.reduce((all, one) => all + one.dots.length, 0), 0);
  const style = getComputedStyle(document.documentElement);
  const [text, line, back] = ["--text", "--line", "--back"].map(key => style.getPropertyValue(key).trim());
  const layout = {
    paper_bgcolor: back, plot_bgcolor: back, font: { color: text, size: 11 }, height: each * down + (figure.kind === "map" ? MAP_WORDS + 5 : 50), showlegend: false,
    margin: { l: figure.kind === "rows" ? 10 : 45, r: 10, t: 40, b: figure.kind === "map" ? MAP_WORDS : 45 }, modebar: { bgcolor: "rgba(0,0,0,0)" }, hovermode: "closest",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", annotations: [],
    coloraxis: { colorscale: "Cividis", cmin: 0, colorbar: { title: { text: "%" }, thickness: 10 } },
  };
  const traces = [];
  const gap = { x: figure.kind === "rows" ? 0.03 : 0.22 / across, y: (figure.kind === "map" ? MAP_WORDS + 30 : 75) / layout.height };
  const size = { x: (1 - gap.x * (across - 1)) / across, y: (1 - gap.y * (down - 1)) / down };
  figure.panels.forEach((panel, at) => {
    const [column, line_] = [at % across, Math.floor(at / across)];
    const mark = at ? String(at + 1) : "";
    const low = { x: column * (size.x + gap.x), y: 1 - (line_ + 1) * size.y - line_ * gap.y };
    const axis = { gridcolor: line, zerolinecolor: line, tickfont: { size: 10 }, automargin: false };
    const scores = panel.limits ? { range: panel.limits } : {};
    const labelled = figure.kind !== "rows" || column === 0;
    layout[`xaxis${mark}`] = {
      ...axis, domain: [low.x, low.x + size.x], anchor: `y${mark}`, type: figure.kind === "map" ? "category" : panel.log ? "log" : "linear",
      title: { text: plain(panel.x_label), font: { size: 11 }, standoff: 4 }, exponentformat: "power", ...(figure.kind === "rows" ? scores : {}),
      ...(panel.ticks.length ? { tickvals: panel.ticks.map(([x]) => x), ticktext: panel.ticks.map(([, word]) => plain(word)) } : panel.log ? logTicks(panel, across > 2 || width < 500) : {}), ...(figure.kind === "map" ? { tickangle: 40 } : {}),
    };
    layout[`yaxis${mark}`] = {
      ...axis, domain: [Math.max(0, low.y), low.y + size.y], anchor: `x${mark}`, title: { text: plain(panel.y_label), font: { size: 11 }, standoff: 4 },
      ...(figure.kind === "rows" ? { type: "category", categoryarray: names.map(plain), range: [names.length - 0.5, -0.5], showticklabels: labelled, automargin: labelled } : {}),
      ...(figure.kind === "map" ? { type: "category", automargin: column === 0 } : {}), ...(figure.kind === "points" ? scores : {}),
    };
    const inside = { xref: `x${mark} domain`, yref: `y${mark} domain`, showarrow: false };
    layout.annotations.push({ ...inside, x: 0.5, y: 1, yanchor: "bottom", text: plain(panel.title), font: { size: 12 } });
    if (panel.below) layout.annotations.push({ ...inside, x: 0, y: 0, xanchor: "left", yanchor: "bottom", text: plain(panel.below), font: { size: 10 } });
    traces.push(...TRACES[figure.kind](panel, { xaxis: `x${mark}`, yaxis: `y${mark}` }, seeds <= MOST_DOTS, figure.dot));
  });
  return { traces, layout };
}

// A place on the page for figures of one group; one of them is chosen.
class Place {
  constructor(group) {
    this.section = element("section");
    this.choice = element("select", null, { "aria-label": `${group}: which` });
    this.plot = element("div", null, { class: "plot", role: "img" });
    this.note = element("p", null, { class: "notes" });
    const tools = element("div", null, { class: "tools" });
    tools.append(...["svg", "png"].map(format => button(format.toUpperCase(), () => this.save(format), { "aria-label": `${group} as ${format.toUpperCase()}` })));
    this.numbers = element("details");
    const held = element("div");
    this.numbers.append(element("summary", "numbers"), held);
    this.view = new View(held, `${group}, numbers`);
    this.filters = element("div", null, { class: "filters" });
    this.filters.append(this.choice);
    this.key = element("div", null, { class: "key" });
    this.section.append(element("h2", group), this.filters, this.plot, this.key, this.note, tools, this.numbers);
    this.choice.addEventListener("change", () => this.draw());
    this.numbers.addEventListener("toggle", () => this.drawNumbers());
    this.seen = false;
    new IntersectionObserver(([entry]) => { this.seen = entry.isIntersecting; if (this.stale) this.draw(); }, { rootMargin: "200px" }).observe(this.section);
  }

  show(figures) {
    const before = this.choice.value;
    this.figures = figures;
    this.choice.replaceChildren(...figures.map(figure => element("option", figure.choice, { value: figure.word })));
    if (figures.some(figure => figure.word === before)) this.choice.value = before;
    this.filters.hidden = figures.length < 2;
    this.section.hidden = !figures.length;
    this.stale = true;
    if (this.seen) this.draw();
  }

  figure() { return this.figures.find(figure => figure.word === this.choice.value) ?? this.figures[0]; }

  draw() {
    this.stale = false;
    const figure = this.figure();
    if (!figure) return;
    const { traces, layout } = drawn(figure, this.plot.clientWidth || 900);
    this.plot.style.height = `${layout.height}px`;
    this.plot.setAttribute("aria-label", `${figure.group}, ${figure.choice}: ${figure.panels.map(panel => panel.title).join(", ")}. The numbers are in the table below.`);
    this.note.textContent = figure.note;
    this.key.replaceChildren(...(figure.kind === "rows" ? [] : namesOf(figure)).map(name => {
      const made = element("span");
      made.append(glyph(name), ` ${name}`);
      return made;
    }));
    Plotly.react(this.plot, traces, layout, SETTINGS);
    this.drawNumbers();
  }

  drawNumbers() {
    if (!this.numbers.open) return;
    const figure = this.figure();
    const rows = figure.panels.flatMap(panel => panel.map
      ? panel.map.rows.flatMap((name, i) => panel.map.columns.map((word, j) => [panel.title, name, word, number(panel.map.values[i][j], 2), "–", "–", ""]))
      : [...panel.series, ...(panel.front ? [{ ...panel.front, name: "front", notes: [] }] : [])].flatMap(one => one.x.map((x, at) => [
        panel.title, one.name, x.toPrecision(6), number(one.y[at], 2), number(one.low[at], 2), number(one.high[at], 2), one.notes[at] ?? "",
      ])));
    this.view.show(`${figure.group}: ${figure.choice}`, EVERY_NUMBER, rows, { words: 2, notes: [figure.note] });
  }

  save(format) {
    const figure = this.figure(), width = Math.max(900, this.plot.clientWidth);
    const { traces, layout } = drawn(figure, width);
    const names = new Set(figure.kind === "rows" ? [] : namesOf(figure).map(plain));
    for (const trace of traces) trace.showlegend = names.delete(trace.name); // once each
    const lines = Math.ceil(namesOf(figure).length / 5);
    const legend = { orientation: "h", y: -55 / layout.height, yanchor: "top" };
    const paper = { ...layout, showlegend: true, legend, width, height: layout.height + 22 * lines };
    Plotly.downloadImage({ data: traces, layout: paper }, { format, width, height: paper.height, scale: 2, filename: `${data.study}-${figure.word}` });
  }
}
