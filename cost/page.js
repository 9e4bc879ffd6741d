// Shows what was computed: it looks figures up in the grid that the page carries, and computes none.
"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const grid = JSON.parse(at("grid").textContent);
  const volume = at("volume"), threshold = at("threshold");
  const money = (usd) => {
    const size = Math.abs(usd);
    if (size > 0 && size < 0.01) return (usd < 0 ? "-$" : "$") + size.toPrecision(2);
    const digits = size >= 1000 ? 0 : 2;
    return usd.toLocaleString("en-US", {style: "currency", currency: "USD",
      minimumFractionDigits: digits, maximumFractionDigits: digits});
  };

  const rank = (setting, v) => {
    let rows = setting.options.map((option) => ({...option, usd: option.usd[v], ops: option.ops[v]}));
    rows = rows.filter((row) => row.usd !== null);
    rows.sort((a, b) => a.out - b.out || a.usd - b.usd);
    const body = at("rank").tBodies[0];
    body.replaceChildren(...rows.map((row, i) => {
      const line = document.createElement("tr");
      line.className = row.out ? "out" : i === 0 ? "best" : "";
      for (const text of [row.name, money(row.usd), money(row.ops), row.basis]) {
        line.insertCell().textContent = text;
      }
      return line;
    }));
  };

  vegaEmbed("#chart", grid.spec, {renderer: "svg", actions: false, tooltip: false}).then(({view}) => {
    const show = () => {
      const v = Number(volume.value);
      const setting = grid.settings[threshold ? Number(threshold.value) : 0];
      const stop = grid.stops[v], many = grid.volumes[stop];
      at("volume-now").textContent = volume.ariaValueText = grid.told[v];
      if (threshold) at("threshold-now").textContent = threshold.ariaValueText = setting.told;
      at("crossover").textContent = setting.crossover;
      const curves = setting.curves.flatMap((costs, i) =>
        costs.map((usd, k) => ({volume: grid.volumes[k], usd, who: grid.who[i]})));
      const owned = setting.curves.map((costs, i) => ({usd: costs[stop], who: grid.who[i]}));
      const cheapest = owned.slice(1).reduce((a, b) => (b.usd < a.usd ? b : a), {usd: Infinity});
      const pair = [owned[0], cheapest].filter((each) => isFinite(each.usd));
      const top = Math.max(...pair.map((each) => each.usd));
      view.data("curves", curves)
        .data("bands", setting.bands)
        .data("rings", setting.rings)
        .data("foot", [{volume: many, label: grid.told[v]}])
        .data("bills", pair.map((each) => ({...each, volume: many, label: money(each.usd), top: each.usd === top})));
      at("ranked-at").textContent = grid.told[v];
      rank(setting, v);
      return view.runAsync().then(() => document.body.dataset.drawn = `${v}/${threshold ? threshold.value : 0}`);
    };
    for (const slider of [volume, threshold]) if (slider) slider.addEventListener("input", show);
    document.body.classList.add("live");
    return show();
  });
})();
