// Draws the charts of a page: <figure class="chart"> with a <div> and the chart as JSON.
(async () => {
  const figures = [...document.querySelectorAll("figure.chart")].map((figure) => ({
    place: figure.querySelector("div"),
    chart: JSON.parse(figure.querySelector("script").textContent),
  }));
  if (typeof DecompressionStream === "undefined") {
    for (const { place } of figures) place.textContent = "The charts need a browser of 2023 or later.";
    return;
  }
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const library = document.createElement("script");
  library.textContent = await new Response(stream).text();
  document.head.append(library);

  const colors = {
    light: ["#1f5fbf", "#c2410c", "#1a7f37", "#7c3aed", "#b0155b", "#0e7490", "#8a6d00", "#52525b"],
    dark: ["#86b0ff", "#ffa06b", "#67d17f", "#c4a5ff", "#ff8fc0", "#5fd3e6", "#e5c94f", "#c3c7ce"],
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)").matches;
  const value = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let logarithmic = false;

  const color = (index) => {
    const all = colors[dark.matches ? "dark" : "light"];
    return all[index % all.length];
  };
  const trace = (chart, one) => {
    if (chart.bars) {
      return { type: "bar", orientation: "h", name: one.name, x: one.y, y: one.x, marker: { color: color(one.color) },
        hovertemplate: "%{fullData.name}: %{x:,.4~g}" + chart.unit + "<extra></extra>" };
    }
    const marks = one.dash || one.y.length < 3;
    return { type: "scatter", mode: marks ? "lines+markers" : "lines", name: one.name, x: one.x, y: one.y,
      line: { color: color(one.color), width: 1.6, dash: one.dash ? "dot" : "solid" }, marker: { size: 5 },
      hovertemplate: "%{y:,.5~g}" + chart.unit };
  };
  const layout = (chart) => {
    const axis = { gridcolor: value("--edge"), zerolinecolor: value("--edge"), linecolor: value("--edge"),
      automargin: true };
    const settings = { paper_bgcolor: "transparent", plot_bgcolor: "transparent", dragmode: coarse ? false : "zoom",
      font: { color: value("--text"), family: "system-ui, sans-serif", size: 12 },
      margin: { l: 8, r: 12, t: 28, b: 8 }, showlegend: chart.series.length > 1,
      legend: { orientation: "h", y: -0.18, yanchor: "top" },
      modebar: { bgcolor: "transparent", color: value("--muted"), activecolor: value("--accent") },
      hoverlabel: { bgcolor: value("--card"), bordercolor: value("--edge"), font: { color: value("--text") },
        namelength: 40 } };
    if (chart.bars) {
      return { ...settings, barmode: "stack", xaxis: { ...axis, ticksuffix: chart.unit },
        yaxis: { ...axis, autorange: "reversed" },
        legend: { orientation: "h", y: 1, yanchor: "bottom", traceorder: "normal" } };
    }
    return { ...settings, hovermode: "x unified", xaxis: { ...axis, title: { text: "step", standoff: 4 } },
      yaxis: { ...axis, exponentformat: "SI", type: chart.logarithmic && logarithmic ? "log" : "linear" } };
  };
  const draw = () => {
    for (const { place, chart } of figures) {
      Plotly.react(place, chart.series.map((one) => trace(chart, one)), layout(chart),
        { responsive: true, displaylogo: false, displayModeBar: coarse ? false : "hover", modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]] });
    }
    document.documentElement.dataset.drawn = figures.length;
  };
  draw();
  dark.addEventListener("change", draw);
  const toggle = document.getElementById("logarithmic");
  if (toggle) toggle.addEventListener("change", () => { logarithmic = toggle.checked; draw(); });
})();
