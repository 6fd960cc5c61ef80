// Draws the charts one after another, from the top; a chart that fails says so in its place.
"use strict";
document.documentElement.classList.add("js");
(async () => {
  const store = document.getElementById("charts");
  if (store) {
    const { config, charts } = JSON.parse(store.textContent);
    if (innerWidth < 560) config.legend.columns = 1;
    for (const [name, spec] of Object.entries(charts)) {
      const place = document.getElementById("chart-" + name);
      try {
        await window.deadreckonDraw(place, spec, config);
      } catch (error) {
        console.error(error);
        place.textContent = "This chart could not be drawn; its numbers are in the tables.";
      }
      await new Promise((go) => setTimeout(go));
    }
  }
  // What is folded on the screen is open on paper.
  const folded = [...document.querySelectorAll("details")];
  addEventListener("beforeprint", () => folded.forEach((one) => {
    one.dataset.was = one.open ? "open" : "";
    one.open = true;
  }));
  addEventListener("afterprint", () => folded.forEach((one) => { one.open = one.dataset.was === "open"; }));
  document.documentElement.dataset.drawn = "true";
})();
