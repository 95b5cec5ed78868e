"use strict";
// Filters, frontier and table of one run, all from the JSON that stands in the page.
// The plotting library stands in the page too, packed; the table does not wait for it.
const DATA = JSON.parse(document.getElementById("explorer-data").textContent);
const FIRST_ROWS = 50;
const MOST_INTERVALS = 300;
const byId = (id) => document.getElementById(id);
const state = { sort: DATA.sort, descending: false, showAll: false };
const names = DATA.values.candidate;
const field = (name, row) => (DATA.values[name] || [])[row];
const everyRow = names.map((_, row) => row);

function checkedValues(name) {
  return new Set([...document.querySelectorAll(`input[name="${name}"]:checked`)].map((box) => box.value));
}

function selectedRows() {
  const allowed = DATA.filters.map((name) => [DATA.values[name], checkedValues(name)]);
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const fitting = byId("only-accepted").checked;
  return everyRow.filter((row) =>
    allowed.every(([column, values]) => values.has(String(column[row]))) &&
    (!fitting || DATA.values.accepted[row]) &&
    words.every((word) => DATA.haystack[row].includes(word)));
}

function sortedRows(rows) {
  const column = DATA.values[state.sort];
  const sign = state.descending ? -1 : 1;
  return rows.slice().sort((a, b) => {
    const x = column[a], y = column[b];
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
  });
}

function numberText(value) {
  if (value === null) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 0.001) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return value.toPrecision(3);
}

function cellText(column, row) {
  const value = DATA.values[column.key][row];
  if (column.kind === "text") return value === null ? "" : value;
  return column.kind === "percent" && value !== null ? value.toFixed(1) : numberText(value);
}

function tableRow(row) {
  const line = document.createElement("tr");
  if (names[row] === DATA.roles.Pick) line.className = "chosen";
  DATA.columns.forEach((column) => {
    const cell = document.createElement(column.key === "candidate" ? "th" : "td");
    if (cell.tagName === "TH") cell.scope = "row";
    cell.textContent = cellText(column, row);
    if (column.kind !== "text") cell.className = "number";
    if (column.key === "reason") cell.className = "words";
    line.append(cell);
  });
  return line;
}

function drawTable(rows) {
  const shown = sortedRows(rows).slice(0, state.showAll ? rows.length : FIRST_ROWS);
  byId("candidates").tBodies[0].replaceChildren(...shown.map(tableRow));
  byId("count").textContent = `${rows.length} of ${names.length} candidates` +
    (shown.length < rows.length ? `, the first ${shown.length} listed` : "");
  byId("show-all").hidden = shown.length === rows.length;
  document.querySelectorAll("#candidates th").forEach((head) => {
    const sorted = head.dataset.key === state.sort;
    if (sorted) head.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  requestAnimationFrame(markScrollers);
}

function frontierRows(rows, x, y) {
  const usable = rows.filter((row) => DATA.values.accepted[row] && x[row] !== null && y[row] !== null);
  usable.sort((a, b) => x[a] - x[b] || y[b] - y[a]);
  let best = -Infinity;
  return usable.filter((row) => y[row] > best && ((best = y[row]), true));
}

function bars(key, rows, color) {
  const bounds = DATA.bounds[key];
  if (!bounds) return { visible: false };
  const [low, high] = bounds.map((name) => DATA.values[name]);
  const middle = DATA.values[key];
  const gap = (from, to) => (from === null || to === null ? 0 : to - from);
  return {
    type: "data", symmetric: false, thickness: 1, width: 0, color: `${color}60`,
    array: rows.map((row) => gap(middle[row], high[row])),
    arrayminus: rows.map((row) => gap(low[row], middle[row])),
  };
}

function hoverText(row, axes) {
  const shown = axes.map((axis) => `${axis.title}: ${cellText(axis, row)}`);
  return [`<b>${escapeText(names[row])}</b>`, ...shown, escapeText(DATA.values.state[row])].join("<br>");
}

function escapeText(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function groupTrace(rows, axes, theme, intervals) {
  const [x, y] = axes.map((axis) => axis.key);
  const accepted = DATA.values.accepted[rows[0]];
  const color = (DATA.colors[field("precision", rows[0])] || "currentColor").replace("currentColor", theme.ink);
  return {
    type: "scatter", mode: "markers", showlegend: false, hoverinfo: "text",
    x: rows.map((row) => DATA.values[x][row]), y: rows.map((row) => DATA.values[y][row]),
    text: rows.map((row) => hoverText(row, axes)),
    error_x: intervals ? bars(x, rows, color) : { visible: false },
    error_y: intervals ? bars(y, rows, color) : { visible: false },
    marker: {
      size: 10, symbol: DATA.symbols[field("runtime", rows[0])] || "circle", color: accepted ? color : theme.paper,
      line: { width: accepted ? 1 : 2, color: accepted ? theme.ink : color },
    },
  };
}

function traces(rows, axes, theme) {
  const [x, y] = axes.map((axis) => DATA.values[axis.key]);
  const drawn = rows.filter((row) => x[row] !== null && y[row] !== null);
  const groups = new Map();
  drawn.forEach((row) => {
    const key = [field("precision", row), field("runtime", row), DATA.values.accepted[row]].join("/");
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(row);
  });
  const edge = frontierRows(drawn, x, y);
  const line = {
    type: "scatter", mode: "lines", showlegend: false, hoverinfo: "skip",
    x: edge.map((row) => x[row]), y: edge.map((row) => y[row]),
    line: { shape: "hv", width: 1.5, dash: "dot", color: theme.soft },
  };
  const intervals = byId("intervals").checked && drawn.length <= MOST_INTERVALS;
  return [line, ...[...groups.values()].map((group) => groupTrace(group, axes, theme, intervals))];
}

function readTheme() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  return Object.fromEntries(["ink", "soft", "line", "paper", "panel"].map((name) => [name, read(name)]));
}

function roleLabels(rows, axes, theme, logarithmic) {
  const roles = new Map();
  Object.entries(DATA.roles).forEach(([role, name]) => {
    const row = names.indexOf(name);
    if (rows.includes(row)) roles.set(row, [...(roles.get(row) || []), role]);
  });
  const [across, up] = axes.map((axis) => DATA.values[axis.key]);
  const drawn = [...roles].filter(([row]) => across[row] !== null && up[row] !== null);
  return drawn.map(([row, words]) => ({
    x: logarithmic ? Math.log10(across[row]) : across[row], y: up[row], text: words.join(", "),
    ax: 0, ay: words.includes("Pick") ? 44 : -44,
    arrowcolor: theme.soft, arrowwidth: 1, arrowhead: 0, standoff: 6,
    font: { color: theme.ink, size: 14 }, bgcolor: theme.paper, borderpad: 2,
  }));
}

function logTicks(values) {
  const ticks = [];
  const known = values.filter((value) => value > 0);
  const decades = [Math.min(...known), Math.max(...known)].map((value) => Math.floor(Math.log10(value)));
  for (let decade = decades[0]; decade <= decades[1]; decade += 1) {
    [1, 2, 5].forEach((digit) => ticks.push(Number(`${digit}e${decade}`)));
  }
  return { tickvals: ticks, ticktext: ticks.map((tick) => tick.toLocaleString("en", { maximumSignificantDigits: 1 })) };
}

function drawChart(rows) {
  const axes = [byId("x-axis"), byId("y-axis")].map((select) =>
    DATA.axes.find((axis) => axis.key === select.value));
  const logarithmic = byId("log-x").checked;
  const theme = readTheme();
  const shared = { gridcolor: theme.line, linecolor: theme.line, zeroline: false };
  const narrow = window.innerWidth < 640;
  Plotly.react("frontier", traces(rows, axes, theme), {
    margin: { l: 62, r: 15, t: 10, b: 55 }, hovermode: "closest", dragmode: narrow ? false : "zoom",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: theme.ink },
    hoverlabel: { bgcolor: theme.panel, bordercolor: theme.soft, font: { color: theme.ink }, align: "left" },
    xaxis: { ...shared, title: { text: axes[0].title }, type: logarithmic ? "log" : "linear", rangemode: logarithmic ? "normal" : "tozero",
      ...(logarithmic ? logTicks(rows.map((row) => DATA.values[axes[0].key][row])) : {}) },
    yaxis: { ...shared, title: { text: axes[1].title } },
    annotations: roleLabels(rows, axes, theme, logarithmic),
  }, { displayModeBar: false, responsive: true });
}

function draw() {
  const rows = selectedRows();
  drawTable(rows);
  if (window.Plotly) drawChart(rows);
}

async function loadPlotly() {
  const packed = await fetch(`data:application/gzip;base64,${byId("plotly").textContent}`);
  const script = document.createElement("script");
  script.textContent = await new Response(packed.body.pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(script);
  drawChart(selectedRows());
}

document.querySelector("#explorer form").addEventListener("submit", (event) => event.preventDefault());
document.querySelectorAll("#explorer input, #explorer select").forEach((control) => {
  control.addEventListener("input", draw);
});
document.querySelectorAll("#candidates th button").forEach((button) => {
  button.addEventListener("click", () => {
    const key = button.parentElement.dataset.key;
    state.descending = key === state.sort && !state.descending;
    state.sort = key;
    drawTable(selectedRows());
  });
});
byId("show-all").addEventListener("click", () => { state.showAll = true; drawTable(selectedRows()); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
if (byId("frontier")) {
  loadPlotly().catch((error) => { byId("frontier").textContent = `No plot: this browser cannot unpack it (${error}).`; });
}
