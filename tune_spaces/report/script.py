"""The page's behaviour: draw the plots in the colours of the theme, switch theme, filter series, copy a command.

A figure names its colours as CSS properties ("var(--c0)"), which plotly's SVG cannot read; they are looked up here each
time that the theme changes. A trace is shown while every one of its `meta.keys` is switched on.
"""

from __future__ import annotations

SCRIPT = r"""
"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const system = matchMedia("(prefers-color-scheme: dark)");
  const off = {};
  const config = {responsive: true, displaylogo: false, displayModeBar: "hover", showSendToCloud: false,
    plotlyServerURL: "", topojsonURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};

  const coloured = (value, style) => {
    if (typeof value === "string") {
      const named = /^var\((--[a-z0-9-]+)\)$/.exec(value);
      return named ? style.getPropertyValue(named[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((each) => coloured(each, style));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, coloured(each, style)]));
    return value;
  };

  const draw = (name) => {
    const figure = coloured(figures[name], getComputedStyle(root));
    for (const trace of figure.data)
      trace.visible = ((trace.meta && trace.meta.keys) || []).every((key) => !off[name].has(key));
    return Plotly.react("chart-" + name, figure.data, figure.layout, config);
  };
  const drawAll = () => Promise.all(Object.keys(figures).map(draw));

  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const toggle = document.getElementById("theme");
  const label = () => { toggle.textContent = dark() ? "Light" : "Dark"; };
  toggle.hidden = false;
  toggle.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); drawAll(); });
  system.addEventListener("change", () => { label(); drawAll(); });

  for (const chip of document.querySelectorAll("button.chip"))
    chip.addEventListener("click", () => {
      const {chart, key} = chip.dataset, on = off[chart].has(key);
      if (on) off[chart].delete(key); else off[chart].add(key);
      chip.setAttribute("aria-pressed", String(on));
      draw(chart);
    });

  const copied = async (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = text; area.select(); document.execCommand("copy"); area.remove();
  };
  for (const button of document.querySelectorAll("button.copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      try { await copied(button.previousElementSibling.textContent); button.textContent = "Copied"; }
      catch { button.textContent = "Select it"; }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  for (const name of Object.keys(figures)) off[name] = new Set();
  for (const chip of document.querySelectorAll("button.chip[aria-pressed=false]"))
    off[chip.dataset.chart].add(chip.dataset.key);
  label();
  drawAll().then(() => { root.dataset.ready = "true"; });
})();
"""
