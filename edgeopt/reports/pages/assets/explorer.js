"use strict";
// Filters, chart and table of a run's candidates. DataTables (of itables) sorts and searches,
// Plotly draws; here is what joins them, and keeps what was chosen in the page's address.
(async () => {
  const root = document.getElementById("explorer");
  const form = root.querySelector("form"), chart = root.querySelector("#frontier");
  const data = JSON.parse(root.querySelector("#explorer-data").textContent);
  const onSite = document.querySelector("article.bd-article") !== null;
  const chosen = new URLSearchParams(onSite ? location.search : "");
  const heads = [...root.querySelectorAll("#candidates th[data-name]")].map((head) => head.dataset.name);

  for (const name of ["x", "y"]) if (chosen.get(name) && form[name]) form[name].value = chosen.get(name);
  if (chosen.size) form.querySelectorAll("input").forEach((box) => {
    box.checked = Object.keys(data.filters).includes(box.name)
      ? !chosen.getAll(`without-${box.name}`).includes(box.value) : chosen.has(box.name);
  });

  const plotly = chart && unpacked(root.querySelector("#plotly").textContent);
  const { default: DataTable } = await window[data.tables];
  const sort = [heads.indexOf(chosen.get("sort") ?? "latency_p50_ms"), chosen.get("way") ?? "asc"];
  const table = new DataTable("#candidates", {
    autoWidth: false, pageLength: 50, order: sort[0] < 0 ? [] : [sort], search: { search: chosen.get("search") ?? "" },
    layout: { topStart: "search", topEnd: null, bottomStart: "info", bottomEnd: data.names.length > 50 ? "paging" : null },
    language: { search: "Name or word:", info: "_TOTAL_ candidates", infoFiltered: "of _MAX_", infoEmpty: "0 candidates",
      zeroRecords: "No candidate fits these filters: tick more of them, or clear the search." },
  });
  table.search.fixed("filters", (text, _, row) =>
    (!form.fits.checked || data.accepted[row]) &&
    Object.entries(data.filters).every(([name, values]) =>
      form.querySelector(`input[name="${name}"][value="${CSS.escape(values[row])}"]`)?.checked ?? true));
  table.on("draw", () => { keep(); draw(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => table.draw());

  function keep() {
    if (!onSite) return;
    const kept = new URLSearchParams();
    form.querySelectorAll("input").forEach((box) => {
      if (box.name in data.filters) { if (!box.checked) kept.append(`without-${box.name}`, box.value); }
      else if (box.checked) kept.set(box.name, "1");
    });
    for (const name of ["x", "y"]) if (form[name]) kept.set(name, form[name].value);
    const [column, way] = table.order()[0] ?? [];
    if (column !== undefined) { kept.set("sort", heads[column]); kept.set("way", way); }
    if (table.search()) kept.set("search", table.search());
    history.replaceState(null, "", `?${kept}${location.hash}`);
  }

  const style = getComputedStyle(document.documentElement);
  const shade = (name, otherwise) => style.getPropertyValue(`--pst-color-${name}`).trim() || otherwise;
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
  const DECADES = Array.from({ length: 45 }, (_, n) => Number(`${[1, 2, 5][n % 3]}e${Math.floor(n / 3) - 6}`));
  const gap = (from, to) => (from === null || to === null ? 0 : to - from);

  function bars(key, rows) {
    if (!form.intervals.checked || !data.bounds[key]) return { visible: false };
    const [low, high] = data.bounds[key].map((name) => data.columns[name]), middle = data.columns[key];
    return { type: "data", symmetric: false, thickness: 1, width: 0,
      array: rows.map((row) => gap(middle[row], high[row])), arrayminus: rows.map((row) => gap(low[row], middle[row])) };
  }

  function draw() {
    if (!chart || !window.Plotly) return;
    const [x, y] = [data.columns[form.x.value], data.columns[form.y.value]];
    const titles = [form.x, form.y].map((select) => select.selectedOptions[0].text);
    const ink = shade("text-base", "#222"), soft = shade("text-muted", "#666"), paper = shade("background", "#fff");
    const rows = table.rows({ search: "applied" }).indexes().toArray().filter((row) => x[row] !== null && y[row] !== null);
    const roles = (row) => Object.keys(data.roles).filter((role) => data.roles[role] === data.names[row]);
    const words = (row) => [
      ...rows.filter((other) => x[other] === x[row] && y[other] === y[row]).map((other) => `<b>${escaped(data.names[other])}</b>`),
      `${titles[0]}: ${x[row]}`, `${titles[1]}: ${y[row]}`, ...roles(row)].join("<br>");
    const groups = Map.groupBy(rows, (row) => `${data.filters.precision?.[row]}/${data.filters.runtime?.[row]}/${data.accepted[row]}`);
    const points = [...groups.values()].map((group) => {
      const color = data.colors[data.filters.precision?.[group[0]]] || ink, full = data.accepted[group[0]];
      return { type: "scatter", mode: "markers", showlegend: false, hoverinfo: "text", customdata: group,
        x: group.map((row) => x[row]), y: group.map((row) => y[row]), text: group.map(words),
        error_x: bars(form.x.value, group), error_y: bars(form.y.value, group),
        marker: { symbol: data.symbols[data.filters.runtime?.[group[0]]] || "circle", color: full ? color : paper,
          size: group.map((row) => (data.names[row] === data.roles.Pick ? 18 : 10)),
          line: { width: full ? 1 : 2, color: full ? ink : color } } };
    });
    let best = -Infinity;
    const front = rows.filter((row) => data.accepted[row]).sort((a, b) => x[a] - x[b] || y[b] - y[a])
      .filter((row) => y[row] > best && ((best = y[row]), true));
    const line = { type: "scatter", mode: "lines", showlegend: false, hoverinfo: "skip", line: { shape: "hv", dash: "dot", color: soft },
      x: front.map((row) => x[row]), y: front.map((row) => y[row]) };
    // Roles stand above all points, the leftmost highest, so that no line crosses a word.
    const named = rows.filter((row) => roles(row).length).sort((a, b) => x[a] - x[b]);
    const high = data.columns[form.intervals.checked && data.bounds[form.y.value]?.[1]] || y, heights = rows.map((row) => high[row] ?? y[row]);
    const top = Math.max(...heights), step = 0.08 * (top - Math.min(...rows.map((row) => y[row])) || 1);
    const across = rows.map((row) => x[row]), [least, most] = [Math.min(...across), Math.max(...across)];
    const log = form.log.checked && least > 0, axis = { gridcolor: shade("border", "#ddd"), zeroline: false };
    Plotly.react(chart, [line, ...points], {
      margin: { l: 62, r: 15, t: 10, b: 55 }, hovermode: "closest", paper_bgcolor: "#0000", plot_bgcolor: "#0000",
      dragmode: innerWidth < 640 ? false : "zoom", font: { size: 13, color: ink, family: getComputedStyle(root).fontFamily },
      hoverlabel: { bgcolor: paper, font: { color: ink }, align: "left" },
      xaxis: { ...axis, title: { text: titles[0] }, type: log ? "log" : "linear", tickvals: log && most > 5 * least ? DECADES : undefined, rangemode: log ? "normal" : "tozero" },
      yaxis: { ...axis, title: { text: titles[1] } },
      annotations: named.map((row, place) => ({
        x: log ? Math.log10(x[row]) : x[row], y: y[row], text: roles(row).join(", "), xanchor: "left",
        axref: "x", ax: log ? Math.log10(x[row]) : x[row], ayref: "y", ay: top + (named.length - place) * step,
        arrowcolor: soft, arrowwidth: 1, arrowhead: 0, standoff: 6, bgcolor: paper, font: { color: ink, size: 14 } })),
    }, { displayModeBar: false, responsive: true });
  }

  function mark(row) {
    root.querySelectorAll("tr.marked").forEach((line) => line.classList.remove("marked"));
    const line = table.row(row).node();
    line.classList.add("marked");
    return line;
  }
  root.querySelector("tbody").addEventListener("click", (event) => {
    const row = table.row(event.target.closest("tr")).index();
    if (row === undefined || !chart?.data) return;
    mark(row);
    chart.data.forEach((trace, curve) => {
      const point = trace.customdata?.indexOf(row) ?? -1;
      if (point >= 0) { Plotly.Fx.hover(chart, [{ curveNumber: curve, pointNumber: point }]); chart.scrollIntoView({ block: "nearest" }); }
    });
  });
  async function unpacked(text) {
    const packed = await fetch(`data:application/gzip;base64,${text}`);
    return new Response(packed.body.pipeThrough(new DecompressionStream("gzip"))).text();
  }
  table.draw();
  if (chart) {
    const script = document.createElement("script");
    script.textContent = await plotly;
    await new Promise((painted) => requestAnimationFrame(() => setTimeout(painted)));
    document.head.append(script);
    chart.replaceChildren();  // the still picture
    draw();
  }
  chart?.on("plotly_click", ({ points: [point] }) => {
    const place = table.rows({ order: "applied", search: "applied" }).indexes().indexOf(point.customdata);
    table.page(Math.floor(place / table.page.len())).draw("page");
    mark(point.customdata).scrollIntoView({ block: "center" });
  });
  new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
})();
