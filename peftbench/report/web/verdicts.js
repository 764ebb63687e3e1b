"use strict";
// Who beats whom: in every cell the row's mean less the column's, in points, and how sure that is.
const SIGNS = { ahead: [">", "<"], behind: ["<", ">"], tied: ["=", "="], "not decided": ["?", "?"] };
const KINDS = { ">": "ahead", "<": "behind" };
const task = get("verdict-task");
const PAIRS = ["first", "second", "the first is", "difference", "from", "to", "p", "pairs", "test"];
const everyPair = new View(get("every-pair"), "every pair");
const verdicts = new View(get("verdicts"), "who beats whom");

function verdictCell(pair, mirrored) {
  if (!pair) return { text: "–" };
  const sign = SIGNS[pair.word][mirrored ? 1 : 0];
  const turn = value => number(mirrored ? -value : value, 1);
  const [low, high] = mirrored ? [pair.high, pair.low] : [pair.low, pair.high];
  const interval = isNumber(low) ? `, 95% interval ${turn(low)} to ${turn(high)}` : "";
  return {
    text: `${sign} ${turn(pair.difference)}`, kind: KINDS[sign],
    title: `${turn(pair.difference)} points${interval}, p = ${number(pair.p, 3)}, ${pair.seeds} ${pair.unit}; ${pair.test}`,
  };
}

function drawVerdicts() {
  const columns = data.verdicts.filter(one => onTask(one.column));
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
  verdicts.show(`${one.column}: row less column, in points`, ["row", ...names], rows);
  everyPair.show(`${one.column}: every pair, in points`, PAIRS, one.pairs.filter(pair => shown(pair.first) && shown(pair.second)).map(pair => [
    pair.first, pair.second, pair.word, number(pair.difference, 2), number(pair.low, 2), number(pair.high, 2), number(pair.p, 4),
    `${pair.seeds} ${pair.unit}`, pair.test,
  ]), { words: 3 });
}

task.addEventListener("change", drawVerdicts);
