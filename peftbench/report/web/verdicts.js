"use strict";
// Who beats whom: in every cell the row's mean less the column's, in points, and how sure that is.
const SIGNS = { ahead: [">", "<"], behind: ["<", ">"], tied: ["=", "="], "not decided": ["?", "?"] };
const KINDS = { ">": "ahead", "<": "behind" };
const task = get("verdict-task");
const PAIRS = [
  "first", "second", "the first is", "difference", "from", "to", "drawn from", "drawn to", "p", "p of differing by the margin",
  "shows from", "first better in", "dev rows", "test",
];
const PAIR_NOTES = [
  "from, to: 95% interval of the test; drawn from, drawn to: that of seeds and rows drawn anew",
  "shows from: the difference from which on this design shows one in four of five repetitions",
];
const everyPair = new View(get("every-pair"), "every pair");
const verdicts = new View(get("verdicts"), "who beats whom");

const probability = (p, digits, equal = "") => (p < 10 ** -digits ? `< ${number(10 ** -digits, digits)}` : equal + number(p, digits));

function verdictCell(pair, mirrored) {
  if (!pair) return { text: "–" };
  const sign = SIGNS[pair.word][mirrored ? 1 : 0];
  return { text: `${sign} ${number(mirrored ? -pair.difference : pair.difference, 1)}`, kind: KINDS[sign], title: behind(pair, mirrored) };
}

// All that stands behind a cell, seen from its row: the numbers, the test, and what the design could have shown.
function behind(pair, mirrored) {
  const turn = value => number(mirrored ? -value : value, 1);
  const range = limits => (mirrored ? limits.toReversed() : limits).map(turn).join(" to ");
  return [
    `${turn(pair.difference)} points`,
    ...(pair.interval ? [`95% interval ${range(pair.interval)}`] : []),
    ...(pair.drawn ? [`seeds and rows drawn anew: ${range(pair.drawn)}`] : []),
    `p ${probability(pair.p, 3, "= ")}`, `p of differing by the margin or more ${probability(pair.p_of_equality, 3, "= ")}`,
    `${pair.first} better in ${pair.better} of ${pair.seeds} ${pair.unit}`,
    isNumber(pair.visible) ? `this design shows ${number(pair.visible, 1)} points or more` : "what this design could show is not known",
    pair.rows ? `${pair.test} (${quantity(pair.rows, "dev row")})` : pair.test,
  ].join("; ");
}

function everyPairOf(pair) {
  const [low, high] = pair.interval ?? [], [drawnLow, drawnHigh] = pair.drawn ?? [];
  return [
    pair.first, pair.second, pair.word, number(pair.difference, 2), number(low, 2), number(high, 2), number(drawnLow, 2),
    number(drawnHigh, 2), probability(pair.p, 4), probability(pair.p_of_equality, 4), number(pair.visible, 2),
    `${pair.better} of ${pair.seeds} ${pair.unit}`, number(pair.rows, 0), pair.test,
  ];
}

function drawVerdicts() {
  const columns = data.verdicts.filter(one => (one.mean ? chosen("task") === ALL : onTask(one.column)));
  const before = task.value;
  task.replaceChildren(...columns.map(one => element("option", one.column, { value: one.column })));
  if (columns.some(one => one.column === before)) task.value = before;
  get("verdict-part").hidden = !columns.length;
  const one = columns.find(other => other.column === task.value);
  if (!one) return;
  const names = one.names.filter(shown);
  const pairs = new Map(one.pairs.map(pair => [JSON.stringify([pair.first, pair.second]), pair]));
  const rows = names.map(name => [name, ...names.map(other => {
    const pair = pairs.get(JSON.stringify([name, other]));
    return verdictCell(pair ?? pairs.get(JSON.stringify([other, name])), !pair);
  })]);
  verdicts.show(`${one.column}: row less column, in points`, ["row", ...names], rows, one);
  get("verdict-notes").replaceChildren(...one.notes.map(note => element("p", note)));
  const both = one.pairs.filter(pair => shown(pair.first) && shown(pair.second));
  everyPair.show(`${one.column}: every pair, in points`, PAIRS, both.map(everyPairOf), { words: 3, notes: [...one.notes, ...PAIR_NOTES] });
}

task.addEventListener("change", drawVerdicts);
