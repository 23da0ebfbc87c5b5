// Charts: the panels of report/panels.py, drawn by plotly in the page's own colours.

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function color(index) {
  return style(`--series-${index % 8}`);
}

function faded(hex, alpha) {
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
  return `rgba(${red}, ${green}, ${blue}, ${alpha})`;
}

function traces(curve) {
  const shade = color(curve.color);
  const common = { x: curve.x, y: curve.y, name: curve.name, type: "scatter" };
  if (curve.style === "area") {
    const line = { width: 0.5, color: shade };
    return [{ ...common, mode: "lines", stackgroup: "phases", line, fillcolor: faded(shade, 0.65) }];
  }
  const thin = curve.style === "thin";
  const points = curve.style === "points" || curve.x.length === 1;
  const line = { ...common, mode: points ? "lines+markers" : "lines" };
  line.line = { width: thin ? 1 : 2, color: thin ? faded(shade, 0.55) : shade };
  line.marker = { size: 6, color: shade };
  if (!curve.lower.length) return [line];
  const edge = { x: curve.x, type: "scatter", mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
  const upper = { ...edge, y: curve.upper, fill: "tonexty", fillcolor: faded(shade, 0.16) };
  return [{ ...edge, y: curve.lower }, upper, line];
}

// what cannot be negative starts at 0, so that a flat curve looks flat
function yAxis(panel) {
  if (panel.unit === "fraction") return { tickformat: ".0%", range: [0, 1.02], dtick: 0.25 };
  const stacked = panel.curves.some((curve) => curve.style === "area");
  const values = panel.curves.flatMap((curve) => curve.y);
  const largest = values.reduce((a, b) => Math.max(a, b), 0);
  const axis = largest >= 1e4 ? { exponentformat: "SI" } : {};
  if (panel.unit === "small fraction") axis.tickformat = "~%";
  if (!stacked && largest > 0 && values.every((value) => value >= 0)) axis.range = [0, 1.08 * largest];
  return axis;
}

// a few names stand above the plot; more take lines of their own below it, for which the chart is made taller
function legendPlace(numCurves) {
  const font = { size: 11, color: style("--muted") };
  const legend = { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal", font };
  if (numCurves <= 3) return { height: 280, legend };
  return { height: 280 + 18 * Math.ceil(numCurves / 2), legend: { ...legend, yref: "container", y: 0 } };
}

function layout(panel) {
  const [text, muted, grid] = [style("--text"), style("--muted"), style("--grid")];
  const axis = { gridcolor: grid, linecolor: grid, zerolinecolor: grid, tickfont: { color: muted }, automargin: true };
  axis.exponentformat = "e";
  axis.minexponent = 4;
  axis.separatethousands = true;
  const label = (words) => ({ text: words, font: { color: muted, size: 12 }, standoff: 8 });
  const unit = ["fraction", "small fraction"].includes(panel.unit) ? "" : panel.unit;
  return {
    ...legendPlace(panel.curves.length),
    margin: { l: 48, r: 12, t: 8, b: 40 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: style("--sans"), size: 12, color: text },
    hovermode: "x unified",
    hoverlabel: { bgcolor: style("--surface"), bordercolor: grid, font: { color: text } },
    showlegend: panel.curves.length > 1,
    xaxis: { ...axis, title: label("training steps"), rangemode: "tozero", hoverformat: "d" },
    yaxis: { ...axis, ...yAxis(panel), title: label(unit) },
  };
}

function draw(place, panel) {
  const options = { responsive: true, displaylogo: false, displayModeBar: false };
  Plotly.react(place, panel.curves.flatMap(traces), layout(panel), options);
}

// a chart is drawn when it first comes into view: thirty at once would hold up the page
function drawCharts(data) {
  const drawn = new Set();
  const drawPanel = (place) => draw(place, data.sections[place.dataset.section].panels[place.dataset.panel]);
  const watcher = new IntersectionObserver((entries) => {
    for (const { target } of entries.filter((entry) => entry.isIntersecting && !drawn.has(entry.target))) {
      drawn.add(target);
      drawPanel(target);
    }
  });
  for (const place of document.querySelectorAll(".chart[data-panel]")) watcher.observe(place);
  const drawChosen = document.getElementById("every-metric") ? chooseMetric(data.metrics) : () => {};
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawn.forEach(drawPanel);
    drawChosen();
  });
}

function chooseMetric(metrics) {
  const box = document.getElementById("every-metric");
  const select = document.getElementById("metric-name");
  for (const name of Object.keys(metrics)) select.append(make("option", {}, name));
  const drawChosen = () => {
    if (!box.open || !select.value) return;
    const [x, y] = metrics[select.value];
    const curve = { name: select.value, x, y, style: "line", color: 0, lower: [], upper: [] };
    draw(document.getElementById("metric-chart"), { unit: select.value, curves: [curve] });
  };
  select.addEventListener("change", drawChosen);
  box.addEventListener("toggle", drawChosen);
  return drawChosen;
}
